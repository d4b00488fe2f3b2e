"""The loop behind ``train lm`` and ``train passkey``: one process or many, stopped and taken up at any step.

Steps come from a source that knows the place of each; gradients from one forward over everything ("I") or
from streaming by segments ("II", ``streamed.py``). Accelerate knows which process this is and what device it
has. The gradients of all processes are added up once a step, after the last backward: streaming goes
backward many times, which wrappers that reduce in every backward do not foresee. What a process has is
divided by the targets of all of them, so that the result is that of one process with the whole batch.

Logged as JSON lines into ``<out>/<name>.jsonl``; nothing is reported anywhere else.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from infinichat.errors import UsageError
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.blocks import Batch, Share, Step
from infinichat.training.lm_model import Learning, groups_of, learners
from infinichat.training.lm_state import cut_log, forget_old, load_state, save_state, state_named
from infinichat.training.loop import CLIP, progress_line
from infinichat.training.sharding import shard, spread_gradients
from infinichat.training.streamed import Counted, Streamed, evaluating, target_count

Way = Literal["I", "II"]
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")

Report = Callable[[str], None]


class Source(Protocol):
    """Where steps come from: those from number ``first`` on, the same every time."""

    def steps(self, first: int) -> Iterator[Step]: ...


@dataclass(frozen=True, slots=True)
class RunOptions:
    """``steps`` in all; ``way`` and ``truncate`` as in ``streamed.py`` (``truncate`` for II alone);
    ``save_every`` steps, or "epoch", the state is written (None: at the end), of which ``keep`` stay."""

    out: Path
    steps: int
    way: Way = "II"
    truncate: int | None = None
    schedule: str = "linear"
    warm_up: int = 0
    seed: int = 0
    save_every: int | Literal["epoch"] | None = None
    keep: int = 2
    log_every: int = 10
    check_every: int | None = None
    resume: str | None = None

    def deciding(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that was stopped."""
        names = ("steps", "way", "truncate", "schedule", "warm_up", "seed")
        return {name: getattr(self, name) for name in names}


class Processes:
    """This process among those that ``accelerate launch`` started; alone without."""

    def __init__(self, *, mixed_precision: str = "no", cpu: bool = False, fsdp: bool = False) -> None:
        try:
            from accelerate import Accelerator
        except ImportError:
            raise UsageError("this needs accelerate. Next: pip install 'infinichat[train]'") from None
        # Without being told so, Accelerate takes processes on plain processors for strangers to each other.
        cpu = cpu or not torch.accelerator.is_available()
        self.accelerator: Any = Accelerator(mixed_precision=mixed_precision, cpu=cpu)
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        self.fsdp = fsdp
        if fsdp and self.share.count == 1:
            raise UsageError(
                "--fsdp spreads a model over processes, and there is one. Next: accelerate launch "
                "--num_processes N -m infinichat train ..."
            )

    @property
    def first(self) -> bool:
        """Whether this one writes and says things."""
        return self.share.index == 0

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()

    def total(self, values: list[float]) -> list[float]:
        """Each value summed over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        summed: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return summed.tolist()

    def place(self, model: nn.Module) -> nn.Module:
        """``model`` on its device, with --fsdp spread over all processes."""
        model = model.to(self.device)
        if self.fsdp:
            if not isinstance(model, InfiniForCausalLM):
                raise UsageError("--fsdp goes with --learns all or memory; LoRA alone needs no spreading.")
            shard(model, self.device)
        return model

    @property
    def data_share(self) -> Share:
        """Whose part of what is measured this process measures: spread, all go through all of it."""
        return Share() if self.fsdp else self.share

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum every parameter's gradient over all processes."""
        if self.share.count == 1:
            return
        for part in spread_gradients(parameters):
            part.mul_(self.share.count)  # FSDP has made it a mean
        whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        for dtype in {parameter.dtype for parameter in whole}:
            chosen = [parameter for parameter in whole if parameter.dtype == dtype]
            found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in chosen]
            flat = torch.cat([gradient.reshape(-1) for gradient in found])
            flat = self.accelerator.reduce(flat, reduction="sum")
            parts = flat.split([parameter.numel() for parameter in chosen])
            for parameter, part in zip(chosen, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def clip_gradients(self, parameters: list[nn.Parameter]) -> float:
        """Scale all gradients down to a norm of ``CLIP`` where it is larger; returns what it was."""
        parts = spread_gradients(parameters)
        if not parts:
            return float(nn.utils.clip_grad_norm_(parameters, CLIP))
        own = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        squares = self.total([sum(float(part.double().square().sum()) for part in parts)])[0]
        squares += sum(float(gradient.double().square().sum()) for gradient in own)
        norm = math.sqrt(squares)
        for gradient in [*parts, *own]:
            gradient.mul_(min(1.0, CLIP / (norm + 1e-6)))
        return norm

    def random_states(self) -> list[Tensor]:
        """Torch's generator in each process."""
        own = torch.get_rng_state()
        if self.share.count == 1:
            return [own]
        gathered: Tensor = self.accelerator.gather(own.to(self.device)[None])
        return list(gathered.cpu())


class Run:
    """One training run; ``train`` does it."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        learning: Learning,
        options: RunOptions,
        processes: Processes,
        *,
        deciding: dict[str, Any] | None = None,
        held_out: list[Batch] | None = None,
        report: Report | None = None,
        say: Report | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """``deciding``: more options that must stay the same; ``held_out``: this process's share of what is
        measured; ``report`` gets passing lines, ``say`` those that should stay, of the first process."""
        self.name, self.model = name, processes.place(model)
        self.options, self.processes = options, processes
        self.parameters = learners(model)
        self.optimizer = torch.optim.AdamW(groups_of(model, learning), betas=(0.9, 0.999))
        autocast = processes.accelerator.autocast
        truncate = options.truncate if options.way == "II" else None
        self.streamed = Streamed(model, truncate=truncate, autocast=autocast)
        self.deciding = {**options.deciding(), **(deciding or {}), "processes": processes.share.count}
        self.held_out = held_out or []
        self.report, self.say, self.on_step = report, say, on_step
        self.log = options.out / f"{name}.jsonl"

    def train(self, source: Source) -> dict[str, float]:
        """Do the steps that are still to do; returns the last check's figures."""
        options, first = self.options, self._taken_up()
        rate = self._schedule()
        figures: dict[str, float] = {}
        done = first
        for step in source.steps(first):
            started = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_rate"] * rate(done)
            numbers = self._step(step.batches)
            done += 1
            last = done == options.steps
            numbers |= {"rate": rate(done - 1), "seconds": time.perf_counter() - started}
            if done % options.log_every == 0 or last:
                self._write({"step": done, **numbers})
                self._pass_on(progress_line(self.name, done, options.steps, numbers))
            if self.held_out_anywhere and self._due(options.check_every, done, step.ends, last):
                figures = self.check(done)
            if self._due(options.save_every, done, step.ends, last):
                self._save(done)
            if self.on_step is not None:
                self.on_step(done)
            if last:
                break
        return figures or (self.check(done) if self.held_out_anywhere else {})

    @property
    def held_out_anywhere(self) -> bool:
        """Whether any process has something to measure; they must all take part."""
        return self.processes.total([float(len(self.held_out))])[0] > 0

    def check(self, done: int) -> dict[str, float]:
        """Loss (nats a token), accuracy and perplexity over every segment of what is held out; logged."""
        total = Counted(0.0, 0, 0)
        with evaluating(self.model):
            for batch in self.held_out:
                ids, labels = batch.ids.to(self.processes.device), batch.labels.to(self.processes.device)
                total += self.streamed.evaluate(ids, labels)[0]
        loss, tokens, correct = self.processes.total([total.loss, total.tokens, total.correct])
        mean = loss / max(1.0, tokens)
        figures = {
            "loss": mean,
            "accuracy": correct / max(1.0, tokens),
            "perplexity": math.exp(min(mean, 700)),
        }
        self._write({"step": done, "check": figures})
        if self.say is not None and self.processes.first:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.say(f"{self.name} {done}: {shown} over {int(tokens) // self._times:,} held-out tokens")
        return figures

    @property
    def _times(self) -> int:
        """How many processes measure the same."""
        return self.processes.share.count if self.processes.fsdp else 1

    # ---- one step

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        self.optimizer.zero_grad()
        targets = self.processes.total([float(sum(target_count(b.labels) for b in batches))])[0]
        total = Counted(0.0, 0, 0)
        for batch in batches:
            total += self._backward(batch, max(1.0, targets))
        parameters = list(self.parameters.values())
        self.processes.add_gradients(parameters)
        norm = self.processes.clip_gradients(parameters)
        loss, correct = self.processes.total([total.loss, total.correct])
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss of {self.name} is {loss} after gradients of size {float(norm):.3g}. Lower "
                "--learning_rate, or go on from an earlier state with --resume_from_checkpoint FOLDER."
            )
        self.optimizer.step()
        shares = {"loss": loss / max(1.0, targets), "accuracy": correct / max(1.0, targets)}
        return {**shares, "gradient": float(norm)}

    def _backward(self, batch: Batch, targets: float) -> Counted:
        ids, labels = batch.ids.to(self.processes.device), batch.labels.to(self.processes.device)
        if self.options.way == "II":
            return self.streamed.backward(ids, labels, divisor=targets)[0]
        with self.processes.accelerator.autocast():
            out = self.model(input_ids=ids, labels=labels)
        mine = target_count(labels)
        (out.loss * (mine / targets)).backward()
        said = out.logits.detach()[:, :-1].argmax(dim=-1) == labels[:, 1:]
        return Counted(float(out.loss.detach()) * mine, mine, int(said.sum()))

    def _schedule(self) -> Callable[[int], float]:
        from transformers import get_scheduler

        dummy = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        found = get_scheduler(
            self.options.schedule,
            dummy,
            num_warmup_steps=self.options.warm_up,
            num_training_steps=self.options.steps,
        )
        rate: Callable[[int], float] = found.lr_lambdas[0]
        return rate

    # ---- what is written

    def _due(self, every: int | str | None, done: int, ends: bool, last: bool) -> bool:
        if last or (every == "epoch" and ends):
            return True
        return isinstance(every, int) and done % every == 0

    def _taken_up(self) -> int:
        folder = state_named(self.options.out, self.options.resume)
        self.options.out.mkdir(parents=True, exist_ok=True)
        self.processes.wait()
        if folder is None:
            return 0
        process = self.processes.share.index
        record = load_state(folder, self.parameters, self.optimizer, process=process, options=self.deciding)
        if self.processes.first:
            cut_log(self.log, record["step"])
        return int(record["step"])

    def _save(self, done: int) -> None:
        states = self.processes.random_states()
        save_state(
            self.options.out / f"step_{done}",
            self.parameters,
            self.optimizer,
            random_states=states,
            record={"step": done, "options": self.deciding},
            writes=self.processes.first,
        )
        if self.processes.first:
            forget_old(self.options.out, self.options.keep)
        self.processes.wait()

    def _write(self, line: dict[str, Any]) -> None:
        if self.processes.first:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"stage": self.name, **line}) + "\n")

    def _pass_on(self, line: str) -> None:
        if self.report is not None and self.processes.first:
            self.report(line)
