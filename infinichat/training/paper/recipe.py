"""The comparison from start to end: every model in turn, then all figures in one file.

    <out>/tokenizer/  train.ids     what all models are trained on (``books``)
    <out>/KIND/                     one model (``one_model``)
    <out>/results.json  run.json    all figures; how they were made

The same command goes on where it was stopped, bit for bit, and does not repeat what is done.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import torch
from torch import Tensor

from infinichat.model.tokenizer import Tokenizer
from infinichat.training.blocks import Batch
from infinichat.training.lm import recorded
from infinichat.training.lm_run import Processes, Report
from infinichat.training.loop import run_record
from infinichat.training.paper.books import ShuffledBlocks, held_out_books, tokenizer_for, training_ids
from infinichat.training.paper.one_model import Figures, Shared, figures_of
from infinichat.training.paper.options import PaperOptions
from infinichat.training.paper.variants import Kind, config_of
from infinichat.training.passkey import passkey_row


def compare(
    options: PaperOptions,
    *,
    processes: Processes,
    report: Report = lambda _: None,
    say: Report = lambda _: None,
    on_step: Callable[[Kind, str, int], None] | None = None,
) -> list[Figures]:
    """Do what is still to do; returns the figures of every model, and writes them. Raises ``UsageError`` for
    text or options that do not fit."""
    started = time.perf_counter()
    options.check()
    out = options.run.out
    out.mkdir(parents=True, exist_ok=True)
    if processes.first:
        report("reading the training text")
        training_ids(options.texts, _tokenizer(options), out)
    processes.wait()
    tokenizer = _tokenizer(options)
    for length in (options.tuning.least, *options.tuning.lengths):
        passkey_row(tokenizer, random.Random(0), length, training=True)  # refuses what is too short for it
    for kind in options.kinds:
        config_of(kind, options.sizes, tokenizer.vocab_size)  # refuses a memory larger than its model
    ids = training_ids(options.texts, tokenizer, out)
    books = held_out_books(options.texts, tokenizer, most=options.books, least=options.block + 1)
    if processes.first:
        say(
            f"{len(ids):,} training tokens, {tokenizer.vocab_size:,} in the vocabulary; held out: "
            f"{len(books)} books of {sum(map(len, books)):,} tokens"
        )
    source = ShuffledBlocks(ids, options.block, options.rows, options.run.seed, processes.share)
    batches = checks_of(books, options.block, options.check_rows, options.rows)
    share = processes.data_share
    mine = batches[share.index :: share.count]
    shared = Shared(options, processes, tokenizer, source, books, mine, report, say, on_step)
    results = [figures_of(kind, shared) for kind in options.kinds]
    if processes.first:
        record = run_record(recorded(options), data={}, seconds=time.perf_counter() - started)
        for name, value in (("results.json", results), ("run.json", record)):
            (out / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return results


def checks_of(books: list[Tensor], block: int, rows: int, at_once: int) -> list[Batch]:
    """``rows`` blocks from places all over the held-out books, ``at_once`` in a batch."""
    found = []
    for row in range(rows):
        book = books[row % len(books)]
        start = (len(book) - block) * row // max(1, rows)
        found.append(book[start : start + block])
    groups = [torch.stack(found[at : at + at_once]) for at in range(0, rows, at_once)]
    return [Batch(ids, ids) for ids in groups]


def _tokenizer(options: PaperOptions) -> Tokenizer:
    return tokenizer_for(
        options.texts, options.run.out, named=options.tokenizer, vocabulary=options.vocabulary
    )
