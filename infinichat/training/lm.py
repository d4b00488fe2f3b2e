"""``infinichat train lm``: language modelling on any text, over blocks of many segments.

    <out>/lm.jsonl  lm.png   the log and its picture      <out>/step_N/   states to go on from
    <out>/checkpoint/        the model, complete          <out>/run.json  how it was made

Evaluation is over all segments of every block, the first token of each included. Steps are counted in
optimizer steps; a step takes ``rows`` blocks in each process, ``accumulation`` times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from infinichat.errors import UsageError
from infinichat.training.blocks import BlockSource, validation_batches
from infinichat.training.lm_model import Learning, Start, begin, seed_everything, write_model
from infinichat.training.lm_run import Processes, Report, Run, RunOptions
from infinichat.training.loop import run_record
from infinichat.training.texts import Texts


@dataclass(frozen=True, slots=True)
class LmOptions:
    """``block`` tokens of a row; ``rows`` in a batch of one process; ``most_steps`` or ``epochs`` decides how
    long; at most ``check_blocks`` blocks are measured (None: all)."""

    start: Start
    texts: Texts
    learning: Learning
    run: RunOptions
    block: int = 32768
    rows: int = 8
    check_rows: int = 8
    accumulation: int = 1
    epochs: int = 3
    most_steps: int | None = None
    check_blocks: int | None = 64

    def deciding(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        texts = {"train": self.texts.train.name, "held_out": self.texts.held_out, "column": self.texts.column}
        sizes = {name: getattr(self, name) for name in ("block", "rows", "accumulation", "epochs")}
        start = {"window": self.start.window, "segment": self.start.segment}
        return {**texts, **sizes, **start, **asdict(self.learning)}


def train_lm(
    options: LmOptions,
    *,
    processes: Processes,
    report: Report | None = None,
    say: Report | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train and write; returns the checkpoint's folder. Raises ``UsageError`` for text or options that do not
    fit, and what loading a model raises."""
    started = time.perf_counter()
    seed_everything(options.run.seed)
    made = begin(options.start, options.learning)
    options = replace(options, learning=made.learning)
    source = BlockSource(
        options.texts,
        made.tokenizer,
        size=options.block,
        rows=options.rows,
        accumulation=options.accumulation,
        epochs=None if options.most_steps is not None else options.epochs,
        share=processes.share,
    )
    steps = options.most_steps or source.steps_of_epoch() * options.epochs
    held_out = validation_batches(
        options.texts,
        made.tokenizer,
        size=options.block,
        rows=options.check_rows,
        most=options.check_blocks,
        share=processes.data_share,
    )
    if say is not None and processes.first:
        config = made.model.config
        say(
            f"{made.about}, {steps:,} steps of {source.of_step} blocks "
            f"of {options.block:,} tokens, window {config.window:,}, segment {config.segment:,}"
        )
    run = Run(
        "lm",
        made.trained,
        options.learning,
        replace(options.run, steps=steps),
        processes,
        deciding=options.deciding(),
        held_out=held_out,
        report=report,
        say=say,
        on_step=on_step,
    )
    figures = run.train(source)
    folder, extra = options.run.out / "checkpoint", {}
    if processes.first:
        record = run_record(recorded(options), data={}, seconds=time.perf_counter() - started)
        record |= {"steps": steps, "held_out": figures}
        text = json.dumps(record, indent=2) + "\n"
        (options.run.out / "run.json").write_text(text, encoding="utf-8")
        extra = {"run.json": text}
    write_model(made, folder, extra=extra, writes=processes.first)
    processes.wait()
    return folder


def recorded(options: Any) -> dict[str, Any]:
    """Options for ``run.json``: values, and of paths the last part only."""
    plain = json.loads(json.dumps(asdict(options), default=lambda value: Path(value).name))
    assert isinstance(plain, dict)
    return plain


def check_options(options: LmOptions) -> None:
    """Raises ``UsageError`` for numbers that cannot be."""
    if options.block < 2:
        raise UsageError(f"--block_size is {options.block}; a block needs 2 tokens or more.")
    if not 0 <= options.texts.held_out < 100:
        raise UsageError(f"--validation_split_percentage is {options.texts.held_out}; expected 0 to 99.")
