"""``infinichat train passkey``: fine-tuning on the paper's passkey task, at a few thousand tokens.

A row is the paper's text with one key at a random depth, exactly ``tokens`` long, and ends with the question
and its answer; only the answer is learned. As in a measurement, key and question stand between whole lines
(asked after "The sun is", a model goes on about the sun); what is too much of a line stands right after the
opening, with the line's end. Keys are those that no measurement uses (``corpus.passkeys``), and
step s draws from a seed of its own, so a run goes on exactly. ``infinichat eval passkey --model
OUT/checkpoint --lengths N,...`` then asks for other keys after any number of tokens.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from infinichat.corpus.passkeys import OPENING, QUESTION, REPEATED, SENTENCE, draw_key
from infinichat.errors import UsageError
from infinichat.protocols import TextTokenizer
from infinichat.training.blocks import Batch, Share, Step
from infinichat.training.lm import recorded
from infinichat.training.lm_model import Learning, Start, begin, seed_everything, write_model
from infinichat.training.lm_run import Processes, Report, Run, RunOptions
from infinichat.training.loop import run_record
from infinichat.training.streamed import IGNORED


@dataclass(frozen=True, slots=True)
class PasskeyOptions:
    """Rows of ``tokens`` tokens, or, with ``least_tokens``, of a length between that is drawn for each step;
    ``rows`` in a batch of one process, ``accumulation`` batches a step; ``check_rows`` rows with keys for
    measuring are checked."""

    start: Start
    learning: Learning
    run: RunOptions
    tokens: int = 4096
    least_tokens: int | None = None
    rows: int = 1
    accumulation: int = 1
    check_rows: int = 16

    def deciding(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        sizes = {name: getattr(self, name) for name in ("tokens", "least_tokens", "rows", "accumulation")}
        start = {"window": self.start.window, "segment": self.start.segment}
        return {**sizes, **start, **asdict(self.learning)}


def passkey_row(
    tokenizer: TextTokenizer, rng: random.Random, tokens: int, *, training: bool, depth: float | None = None
) -> tuple[list[int], list[int]]:
    """Ids and labels of one row of exactly ``tokens``; the key stands at ``depth`` (0: before all whole
    lines, 1: before the question; None: anywhere). Raises ``UsageError`` when that is too short."""
    key = draw_key(rng, training=training)
    # In the pieces in which a measurement feeds them: the same tokens.
    opening, told = tokenizer.encode(OPENING), tokenizer.encode(" " + SENTENCE.format(key=key))
    question, answer = tokenizer.encode(QUESTION), tokenizer.encode(f" {key}.")
    room = tokens - sum(map(len, (opening, told, question, answer)))
    if room < 0:
        raise UsageError(f"a row of {tokens} tokens is {-room} too short for the task. Raise --num_tokens.")
    line = tokenizer.encode(REPEATED)
    lines, rest = divmod(room, len(line))
    before = round((rng.random() if depth is None else depth) * lines)
    begun = line[len(line) - rest :]
    ids = opening + begun + line * before + told + line * (lines - before) + question + answer
    labels = [IGNORED] * (tokens - len(answer)) + answer
    return ids, labels


@dataclass(frozen=True, slots=True)
class PasskeySource:
    """Steps without end; each row from a seed of its own, whichever process it falls to."""

    tokenizer: TextTokenizer
    options: PasskeyOptions
    share: Share

    def steps(self, first: int) -> Iterator[Step]:
        """Steps from number ``first`` on."""
        number = first
        while True:
            yield Step([self._batch(number, part) for part in range(self.options.accumulation)], 0, False)
            number += 1

    def _batch(self, number: int, part: int) -> Batch:
        options, seed = self.options, self.options.run.seed
        least = options.least_tokens or options.tokens
        tokens = random.Random(f"{seed}/passkey/{number}").randint(least, options.tokens)
        start = self.share.index * options.rows
        rngs = [random.Random(f"{seed}/passkey/{number}/{part}/{start + row}") for row in range(options.rows)]
        return batch_of([passkey_row(self.tokenizer, rng, tokens, training=True) for rng in rngs])


def batch_of(rows: list[tuple[list[int], list[int]]]) -> Batch:
    """Rows of one length as a batch."""
    return Batch(torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows]))


def held_out(tokenizer: TextTokenizer, options: PasskeyOptions, share: Share) -> list[Batch]:
    """This process's share of rows with keys that are never trained on, at depths from 0 to 1."""
    last = max(1, options.check_rows - 1)
    rows = [
        passkey_row(
            tokenizer,
            random.Random(f"{options.run.seed}/passkey/check/{row}"),
            options.tokens,
            training=False,
            depth=row / last,
        )
        for row in range(options.check_rows)
    ]
    groups = [rows[at : at + options.rows] for at in range(0, len(rows), options.rows)]
    return [batch_of(group) for group in groups[share.index :: share.count]]


def train_passkey(
    options: PasskeyOptions,
    *,
    processes: Processes,
    report: Report | None = None,
    say: Report | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train and write ``<out>/checkpoint``, ``passkey.jsonl`` and ``run.json``; returns the checkpoint's
    folder. Raises ``UsageError`` for options that do not fit, and what loading a model raises."""
    started = time.perf_counter()
    seed_everything(options.run.seed)
    made = begin(options.start, options.learning)
    options = replace(options, learning=made.learning)
    config = made.model.config
    if (options.least_tokens or options.tokens) > options.tokens:
        raise UsageError(f"--min_tokens {options.least_tokens} is more than --num_tokens {options.tokens}.")
    if say is not None and processes.first:
        say(
            f"{made.about}, {options.run.steps:,} steps at "
            f"{options.tokens:,} tokens, window {config.window:,}, segment {config.segment:,}"
        )
        if options.tokens <= config.window:
            say("every row fits into the window: the memory has nothing to learn. Raise --num_tokens.")
    run = Run(
        "passkey",
        made.trained,
        options.learning,
        options.run,
        processes,
        deciding=options.deciding(),
        held_out=held_out(made.tokenizer, options, processes.data_share),
        report=report,
        say=say,
        on_step=on_step,
    )
    figures = run.train(PasskeySource(made.tokenizer, options, processes.share))
    folder, extra = options.run.out / "checkpoint", {}
    if processes.first:
        record = run_record(recorded(options), data={}, seconds=time.perf_counter() - started)
        text = json.dumps(record | {"held_out": figures}, indent=2) + "\n"
        (options.run.out / "run.json").write_text(text, encoding="utf-8")
        extra = {"run.json": text}
    write_model(made, folder, extra=extra, writes=processes.first)
    processes.wait()
    return folder
