"""The state of a run of ``train lm`` or ``train passkey``: enough to go on as if it had never stopped.

    <out>/step_N/state.safetensors   p.NAME the parameters that learn, m.NAME and v.NAME AdamW's moments, and
                                     rng.I, the state of torch's generator in process I
    <out>/step_N/state.json          the step, the options that decide results, figures so far

Everything else follows from the step: the rate from the schedule, the place in the text by reading it again.
Safetensors and JSON, never pickle. Folders appear whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infinichat.errors import UsageError
from infinichat.training.sharding import gathered, spread

TENSORS, RECORD = "state.safetensors", "state.json"
LAST = "last"


def save_state(
    folder: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    random_states: list[Tensor],
    record: dict[str, Any],
    writes: bool = True,
) -> None:
    """Write ``folder``, in the process that has ``writes``; all have to call it, as parameters may be spread
    over them. ``random_states`` are those of all processes."""
    tensors: dict[str, Tensor] = {f"rng.{at}": state for at, state in enumerate(random_states)}
    for name, parameter in parameters.items():
        moments = optimizer.state[parameter]
        tensors[f"p.{name}"] = _kept(parameter)
        tensors[f"m.{name}"], tensors[f"v.{name}"] = _kept(moments["exp_avg"]), _kept(moments["exp_avg_sq"])
    if not writes:
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / TENSORS)
    (part / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


@torch.no_grad()
def load_state(
    folder: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    process: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Put a saved state in place; returns its record. Raises ``UsageError`` for a state of other options, or
    one that cannot be read."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        differing = [name for name, value in options.items() if record["options"].get(name) != value]
        if differing:
            name = differing[0]
            raise UsageError(
                f"{folder} was trained with {name} {record['options'].get(name)!r}, and now it is "
                f"{options[name]!r}. Give the same options to go on, or another --output_dir."
            )
        with safe_open(folder / TENSORS, framework="pt") as saved:
            for name, parameter in parameters.items():
                parameter.copy_(spread(saved.get_tensor(f"p.{name}"), parameter))
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(record["step"])),
                    "exp_avg": spread(saved.get_tensor(f"m.{name}"), parameter),
                    "exp_avg_sq": spread(saved.get_tensor(f"v.{name}"), parameter),
                }
            torch.set_rng_state(saved.get_tensor(f"rng.{process}"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UsageError(
            f"{folder} holds no state to go on from ({type(error).__name__}: {error}). Name a step_N folder "
            "of this run, or leave out --resume_from_checkpoint."
        ) from None
    return record


def states_in(out: Path) -> list[Path]:
    """The states of a run, oldest first."""
    found = [folder for folder in out.glob("step_*") if folder.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step_")))


def state_named(out: Path, named: str | None) -> Path | None:
    """The folder to go on from: None for a new run, whose ``out`` must not hold one already."""
    there = states_in(out)
    if named is None:
        if there:
            raise UsageError(
                f"{out} holds a run that was stopped at {there[-1].name}. Go on with it: "
                "--resume_from_checkpoint; or choose another --output_dir."
            )
        return None
    if named == LAST:
        if not there:
            raise UsageError(f"{out} holds no state to go on from. Leave out --resume_from_checkpoint.")
        return there[-1]
    return Path(named)


def forget_old(out: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest states."""
    for folder in states_in(out)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def cut_log(file: Path, step: int) -> None:
    """Leave out of a log what came after ``step``: it will be done again."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        file.write_text("".join(kept), encoding="utf-8")


def _kept(tensor: Tensor) -> Tensor:
    return gathered(tensor.detach()).to("cpu", copy=True).contiguous()
