"""``formats``: what the number formats of answering cost: perplexity on held-out text, and recalled facts.

All formats are of the same weights: a 4-bit file's blocks as they are (int4), 8 bits a weight (int8), and the
file's numbers in bfloat16 and float32. Text is predicted as answers are made, one token at a time, each from
the scores that the format's step gives; where the step is the model's own forward in its own type, whole
segments give the same numbers sooner. Differences are to bfloat16, token by token on the same text, so that
what makes a text hard cancels. The facts are those of ``facts``, the same conversations for every format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.engine.native import NativeStep
from infinichat.evals import facts
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText
from infinichat.evals.perplexity import books_of, streamed_losses
from infinichat.evals.task import Cell, Options, Report

FORMATS = ("float32", "bfloat16", "int8", "int4")
REFERENCE = "bfloat16"
BOOKS = 4
"""Texts at most; each gives as many tokens as the first of the lengths."""


def measure(
    load: Callable[[str], Bench],
    options: Options,
    transcript: list[dict[str, Any]] | None = None,
    formats: Sequence[str] = FORMATS,
) -> Report:
    """Two kinds of cells for each format: ``loss`` with ``more``, by how much of bfloat16's perplexity it is
    larger, and the standard error of that; and the questions of ``facts``. ``load`` makes the engine for a
    format."""
    filler = FillerText(options.filler)
    books = books_of(filler, min(BOOKS, max(1, len(filler.books))), options.seed)
    length = options.lengths[0]
    losses: dict[str, Tensor] = {}
    recalled: list[Cell] = []
    report = Report("formats", "", options.seed, notes=list(filler.notes))
    for name in sorted(formats, key=lambda name: name != REFERENCE):
        bench = load(name)
        report.model = bench.engine.info.name
        runs = bench.engine.step.weights
        if runs != name:
            report.notes.append(f"{name} runs as {runs} here")
        tokenizer = bench.engine.tokenizer
        texts = [tokenizer.encode(text[: 8 * length])[:length] for _, text in books]
        losses[name] = _losses(bench, texts)
        bench.say(f"{name}: loss {float(losses[name].mean()):.4f} over {losses[name].numel():,} tokens")
        asked: list[dict[str, Any]] = []
        told = facts.measure(bench, replace(options, lengths=(length,), memory=("on",)), asked)
        recalled += [replace(cell, extra={"format": name, **cell.extra}) for cell in told.cells]
        if transcript is not None:
            transcript += [{"format": name, **answer} for answer in asked]
    report.cells = [_cell(name, losses, length) for name in formats]
    report.cells += sorted(recalled, key=lambda cell: formats.index(cell.extra["format"]))
    report.notes.append(f"books: {', '.join(title for title, _ in books)}")
    return report


def _cell(name: str, losses: dict[str, Tensor], length: int) -> Cell:
    mine, loss = losses[name], float(losses[name].mean())
    extra: dict[str, Any] = {"format": name, "loss": loss, "perplexity": math.exp(loss)}
    if REFERENCE in losses:
        more = mine - losses[REFERENCE]
        extra["more"] = f"{100 * math.expm1(float(more.mean())):+.2f} %"
        extra["error"] = f"{100 * float(more.std()) / math.sqrt(len(more)):.2f} %"
    return Cell(length, None, None, "on", n=mine.numel(), extra=extra)


def _losses(bench: Bench, texts: Sequence[Sequence[int]]) -> Tensor:
    """Nats of every token after the first of each text, one text after the other."""
    engine = bench.engine
    if isinstance(engine.step, NativeStep):
        return _by_token(bench, texts)
    return torch.cat([streamed_losses(engine.model, engine.new_state(), list(ids)) for ids in texts])


@torch.inference_mode()
def _by_token(bench: Bench, texts: Sequence[Sequence[int]]) -> Tensor:
    """All texts at once, a token of each in every step."""
    engine = bench.engine
    states = [engine.new_state() for _ in texts]
    found: list[list[Tensor]] = [[] for _ in texts]
    for place in range(max(map(len, texts)) - 1):
        rows = [row for row, ids in enumerate(texts) if place + 1 < len(ids)]
        caches = [states[row] for row in rows]
        engine.feed_each(caches, [texts[row][place] for row in rows])
        wanted = torch.tensor([texts[row][place + 1] for row in rows])
        scores = F.cross_entropy(engine.scores_each(caches).float(), wanted, reduction="none")
        for row, loss in zip(rows, scores, strict=True):
            found[row].append(loss)
        if place % 256 == 0:
            bench.say(f"{place:,} tokens of {len(texts)} texts")
    return torch.cat([torch.stack(of_text) for of_text in found])
