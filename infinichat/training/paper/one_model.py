"""One model of the comparison: trained, measured, fine-tuned on the passkey task, and measured again.

<out>/KIND/lm.jsonl  step_N/    the log, and the state to go on from
<out>/KIND/checkpoint/          the trained model, complete
<out>/KIND/passkey/             the same of fine-tuning
<out>/KIND/figures.json         what is known of it so far: a stage that is in there is not done again
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from infinichat.errors import UsageError
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.tokenizer import Tokenizer
from infinichat.training.blocks import Batch, Step
from infinichat.training.lm_model import Learning, Start, Started, seed_everything, write_model
from infinichat.training.lm_run import Processes, Report, Run, RunOptions, Source
from infinichat.training.lm_state import LAST, states_in
from infinichat.training.paper.books import ShuffledBlocks
from infinichat.training.paper.measure import books_by_position, passkeys, perplexity
from infinichat.training.paper.options import PaperOptions
from infinichat.training.paper.variants import Kind, cached_numbers, count, make, state_numbers
from infinichat.training.passkey import PasskeyOptions, PasskeySource

Figures = dict[str, Any]
OnStep = Callable[[Kind, str, int], None]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all models are trained on and measured with; ``checks`` is this process's share of what is
    measured while training."""

    options: PaperOptions
    processes: Processes
    tokenizer: Tokenizer
    source: ShuffledBlocks
    books: list[Tensor]
    checks: list[Batch]
    report: Report
    say: Report
    on_step: OnStep | None


@dataclass(frozen=True, slots=True)
class Upto:
    """The first ``most`` steps of a source."""

    source: Source
    most: int

    def steps(self, first: int) -> Iterator[Step]:
        """Those from number ``first`` on."""
        return itertools.islice(self.source.steps(first), max(0, self.most - first))


def figures_of(kind: Kind, shared: Shared) -> Figures:
    """Everything about one model: a stage is done where its figures are missing. Raises ``UsageError`` when
    the model was trained with other options; what is only measured with others is measured again."""
    options, writes = shared.options, shared.processes.first
    tuning, folder = options.tuning, options.run.out / kind
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "figures.json"
    figures: Figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"kind": kind}
    made_with: dict[str, Any] = figures.setdefault("made_with", {})

    def due(stage: str, inputs: dict[str, Any], *, trains: bool = False) -> bool:
        inputs = json.loads(json.dumps(inputs))
        if stage in figures and trains and made_with[stage] != inputs:
            raise UsageError(
                f"{folder} was {stage} with other options. Give the same ones to go on, or another "
                "--output_dir."
            )
        is_due = stage not in figures or made_with[stage] != inputs
        made_with[stage] = inputs
        return is_due

    def keep(**found: Any) -> None:
        figures.update(found)
        if writes:
            file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        shared.processes.wait()

    seed_everything(options.run.seed)
    model = make(kind, options.sizes, shared.tokenizer.vocab_size).to(shared.processes.device)
    made = Started(model, model, shared.tokenizer, kind, options.learning, knows=False)
    if due("trained", options.deciding() | options.run.deciding(), trains=True):
        checked = _train(made, kind, shared, folder)
        write_model(made, folder / "checkpoint", extra={}, writes=writes)
        keep(trained=checked)
    keep(**_sizes(model, kind, shared), **_speed(folder / "lm.jsonl", shared))
    _load(model, folder / "checkpoint")
    if due("by_position", {"books": options.books}):
        keep(**_on_books(model, shared))
    asked = {"lengths": tuning.lengths, "samples": tuning.samples}
    if due("zero_shot", asked):
        keep(zero_shot=_asked(model, shared))
    if due("tuned", tuning.deciding(), trains=True):
        _tune(made, kind, shared, folder / "passkey")
        write_model(made, folder / "passkey" / "checkpoint", extra={}, writes=writes)
        keep(tuned=tuning.steps)
    if due("fine_tuned", asked):
        _load(model, folder / "passkey" / "checkpoint")
        keep(fine_tuned=_asked(model, shared))
    return figures


def _load(model: InfiniForCausalLM, folder: Path) -> None:
    missing, unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:
        raise UsageError(f"{folder} is no checkpoint of this model. Remove it, and train it again.")


# ---- training


def _train(made: Started, kind: Kind, shared: Shared, folder: Path) -> dict[str, float]:
    options = shared.options
    run = replace(options.run, out=folder)
    return _run("lm", made, kind, shared, run, options.learning, shared.source, shared.checks)


def _tune(made: Started, kind: Kind, shared: Shared, folder: Path) -> None:
    """Fine-tune on the passkey task."""
    options, tuning = shared.options, shared.options.tuning
    learning = replace(options.learning, rate=tuning.rate)
    run = replace(options.run, out=folder, steps=tuning.steps, check_every=None)
    task = PasskeyOptions(
        Start(), learning, run, tokens=tuning.tokens, least_tokens=tuning.least, rows=tuning.rows
    )
    source = PasskeySource(shared.tokenizer, task, shared.processes.share)
    _run("passkey", made, kind, shared, run, learning, source, [])


def _run(
    name: str,
    made: Started,
    kind: Kind,
    shared: Shared,
    options: RunOptions,
    learning: Learning,
    source: Source,
    held_out: list[Batch],
) -> dict[str, float]:
    """Do the steps that are still to do; returns the last check's figures."""
    # What is cached of the segment before is without gradient: that is what Transformer-XL does.
    truncate = 1 if kind == "xl" else options.truncate
    resume = LAST if states_in(options.out) else None
    on_step = shared.on_step
    run = Run(
        name,
        made.trained,
        learning,
        replace(options, truncate=truncate, resume=resume),
        shared.processes,
        deciding=shared.options.deciding() | (shared.options.tuning.deciding() if name == "passkey" else {}),
        held_out=held_out,
        report=lambda line: shared.report(f"{kind} {line}"),
        say=lambda line: shared.say(f"{kind} {line}"),
        on_step=None if on_step is None else lambda done: on_step(kind, name, done),
    )
    return run.train(Upto(source, options.steps))


# ---- figures


def _sizes(model: InfiniForCausalLM, kind: Kind, shared: Shared) -> Figures:
    parameters, of_memory = count(model)
    books = shared.books
    cached = cached_numbers(model.config, sum(map(len, books)) // len(books))
    state = state_numbers(model, kind)
    return {
        "parameters": parameters,
        "memory_parameters": of_memory,
        "inner": model.config.intermediate_size,
        "window": model.config.window,
        "segment": model.config.segment,
        "state": state,
        "compression": cached / state if state else None,
    }


def _speed(log: Path, shared: Shared) -> Figures:
    options = shared.options
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    of_step = options.rows * options.block * shared.processes.share.count
    return {
        "steps": options.run.steps,
        "tokens": options.run.steps * of_step,
        "tokens_per_second": of_step * len(seconds) / sum(seconds),
    }


def _on_books(model: InfiniForCausalLM, shared: Shared) -> Figures:
    options = shared.options
    found = books_by_position(
        model, shared.books, first=options.sizes.segment, step=options.block, report=shared.report
    )
    return {
        "by_position": found,
        "perplexity": perplexity(found),
        "held_out_tokens": sum(bucket["tokens"] for bucket in found),
    }


def _asked(model: InfiniForCausalLM, shared: Shared) -> list[dict[str, Any]]:
    tuning = shared.options.tuning
    return passkeys(
        model,
        shared.tokenizer,
        lengths=tuning.lengths,
        samples=tuning.samples,
        seed=shared.options.run.seed,
        report=shared.report,
    )
