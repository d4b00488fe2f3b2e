"""The training loop: seeded step by step, logged line by line, stopped and taken up again at any step.

Step s of a stage draws from generators seeded with (seed, stage, s) and from nothing else, so the state of a
run is the parameters, the optimizer's moments and a number. It is kept as safetensors, never pickle.

Of several processes each draws its own part of a step, and all take the mean of their gradients: N of them do
the work of steps N times as large. The first writes and says things.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infinichat.training.stages import Stage, trainable

if TYPE_CHECKING:
    from infinichat.training.lm_run import Processes

CLIP = 1.0
WARM_UP = 20
LAST_RATE = 0.05
"""Steps until the learning rate is whole, and the share of it that is left at the end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, from which seed, and how often the state is written and a line is logged."""

    steps: int
    seed: int = 0
    save_every: int = 50
    log_every: int = 10


@dataclass(frozen=True, slots=True)
class Check:
    """``measure`` is called after every ``every`` steps and at the end; its figures are logged, and a line
    of them goes to ``say``."""

    every: int
    measure: Callable[[], dict[str, float]]
    say: Callable[[str], None]


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at ``step``: a short warm-up, then a line down."""
    return min(1.0, (step + 1) / WARM_UP) * (1 - (1 - LAST_RATE) * step / max(1, steps))


def seeded(seed: int, stage: str, step: int, process: int = 0) -> random.Random:
    """The step's generator in one of the processes; torch's is seeded beside it."""
    digest = hashlib.sha256(f"{seed}/{stage}/{step}{f'/{process}' if process else ''}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    return random.Random(digest)


def run_stage(
    stage: Stage,
    out: Path,
    plan: Plan,
    *,
    check: Check | None = None,
    report: Callable[[str], None] | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    processes: Processes | None = None,
) -> None:
    """Train ``stage``'s parameters in place for ``plan.steps`` steps; what is in ``out`` is taken up where it
    stopped. Writes ``<stage>.safetensors`` (the run's state) and ``<stage>.jsonl`` (one line per logged step,
    and one per check). ``report`` gets a line at each logged step. ``processes`` are those that share the
    work, None: this one has it all; what is logged of a loss is the first one's."""
    first_one = processes is None or processes.first
    out.mkdir(parents=True, exist_ok=True)
    parameters = trainable(stage)
    groups = [
        {"params": [p], "lr": stage.rates[name], "rate": stage.rates[name]} for name, p in parameters.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    file = out / f"{stage.name}.safetensors"
    first = load_run(file, parameters, optimizer) if file.exists() else 0
    if processes is not None:
        processes.wait()  # until all have read what the first will write over
    say = report if report is not None else lambda _: None
    if not first_one:
        check, say = None, lambda _: None
    log_file = out / f"{stage.name}.jsonl" if first_one else Path(os.devnull)
    with log_file.open("a", encoding="utf-8") as log:
        for step in range(first, plan.steps):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * rate_at(step, plan.steps)
            process = processes.share.index if processes is not None else 0
            loss, numbers = stage.loss(seeded(plan.seed, stage.name, step, process))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if processes is not None:
                mean_gradients(list(parameters.values()), processes)
            nn.utils.clip_grad_norm_(list(parameters.values()), CLIP)
            optimizer.step()
            numbers = {"loss": loss.item(), **numbers, "seconds": time.perf_counter() - started}
            last = step + 1 == plan.steps
            place = {"stage": stage.name, "step": step + 1}
            if (step + 1) % plan.log_every == 0 or last:
                log.write(json.dumps({**place, **numbers}) + "\n")
                log.flush()
                say(progress_line(stage.name, step + 1, plan.steps, numbers))
            if check is not None and ((step + 1) % check.every == 0 or last):
                figures = check.measure()
                log.write(json.dumps({**place, "check": figures}) + "\n")
                log.flush()
                check.say(
                    f"{stage.name} {step + 1}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items())
                )
            if first_one and ((step + 1) % plan.save_every == 0 or last):
                save_run(file, parameters, optimizer, step + 1)
            if on_step is not None:
                on_step(step + 1, numbers)


def mean_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Every parameter's gradient becomes its mean over all processes."""
    processes.add_gradients(list(parameters))
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(processes.share.count)


BAR = 20
"""Characters of the progress bar."""


def progress_line(stage: str, step: int, steps: int, numbers: dict[str, float]) -> str:
    """ "keys [#####...............] 500/2000  3 min left  loss 0.41  told 0.12"."""
    filled = BAR * step // max(1, steps)
    left = (steps - step) * numbers.get("seconds", 0.0) / 60
    shown = "  ".join(f"{key} {value:.3f}" for key, value in numbers.items() if key != "seconds")
    return f"{stage} [{'#' * filled}{'.' * (BAR - filled)}] {step}/{steps}  {left:.0f} min left  {shown}"


def save_run(
    file: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Parameters, both moments and the step, written whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        moments = optimizer.state[parameter]
        tensors |= {f"p.{name}": parameter.detach().clone()}
        tensors |= {f"m.{name}": moments["exp_avg"].clone(), f"v.{name}": moments["exp_avg_sq"].clone()}
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step)})
    os.replace(temporary, file)


@torch.no_grad()
def load_run(file: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Put a saved run's parameters and moments in place; returns the steps it has done."""
    with safe_open(file, framework="pt") as saved:
        step = int(saved.metadata()["step"])
        for name, parameter in parameters.items():
            parameter.copy_(saved.get_tensor(f"p.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": saved.get_tensor(f"m.{name}"),
                "exp_avg_sq": saved.get_tensor(f"v.{name}"),
            }
    return step


def run_record(arguments: dict[str, Any], *, data: dict[str, str], seconds: float) -> dict[str, Any]:
    """What ``run.json`` holds: enough to do it again."""
    return {
        "arguments": arguments,
        "data_sha256": data,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(seconds, 1),
    }
