"""What is measured of each model: perplexity along whole held-out books, and the passkey task.

A stream goes through in whole segments with its state carried on from the first token to the last. Books go
side by side, each until it ends.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.errors import UsageError
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.tokenizer import Tokenizer
from infinichat.training.passkey import passkey_row
from infinichat.training.streamed import IGNORED, evaluating

DEPTHS = {"start": 0.0, "middle": 0.5, "end": 1.0}
Report = Callable[[str], None]


@torch.no_grad()
def books_by_position(
    model: InfiniForCausalLM, books: Sequence[Tensor], *, first: int, step: int, report: Report | None = None
) -> list[dict[str, float]]:
    """``loss`` (nats a token) and ``tokens`` of the positions ``upto`` the first ``first``, from there to
    twice as far, and so on. What does not fill ``step`` tokens at a book's end is left out: with one ``step``
    all models are measured on the same tokens."""
    size = model.config.segment
    lengths = sorted(((len(book) - 1) // step * step for book in books), reverse=True)
    rows = sorted(books, key=len, reverse=True)
    ends = bucket_ends(lengths[0], first)
    sums = torch.zeros(len(ends), dtype=torch.float64)
    counts = torch.zeros(len(ends), dtype=torch.int64)
    with evaluating(model):
        cache = model.model.new_cache(len(rows))
        for at in range(0, lengths[0], size):
            there = sum(length > at for length in lengths)
            if there < cache.batch_size:
                cache.batch_select_indices(torch.arange(there))
            ids = torch.stack([row[at : at + size + 1] for row in rows[:there]]).to(cache.device)
            logits = model(ids[:, :-1], past_key_values=cache).logits
            model.model.evict(cache)
            losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            # Position p holds the p-th prediction, from 1.
            bucket = torch.bucketize(torch.arange(at + 1, at + size + 1), torch.tensor(ends))
            sums.index_add_(0, bucket, losses.view(there, size).double().sum(dim=0).cpu())
            counts.index_add_(0, bucket, torch.full((size,), there))
            if report is not None and at // size % 50 == 0:
                report(f"held-out books: {at:,} of {lengths[0]:,} tokens")
    return [
        {"upto": end, "tokens": count, "loss": total / count}
        for end, count, total in zip(ends, counts.tolist(), sums.tolist(), strict=True)
    ]


def bucket_ends(length: int, first: int) -> list[int]:
    """``first``, twice that, four times, … and ``length``."""
    ends, end = [], first
    while end < length:
        ends.append(end)
        end *= 2
    return [*ends, length]


def perplexity(buckets: Sequence[dict[str, float]]) -> float:
    """Over all tokens of ``books_by_position``'s result."""
    tokens = sum(bucket["tokens"] for bucket in buckets)
    return math.exp(min(700.0, sum(bucket["loss"] * bucket["tokens"] for bucket in buckets) / tokens))


@torch.no_grad()
def passkeys(
    model: InfiniForCausalLM,
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    samples: int,
    seed: int,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """For each length (tokens) and depth: how many of ``samples`` keys, none of them for training, come back
    ``exact``, and how many of their ``tokens`` are right, as shares. Exact is what greedy decoding would
    have said: each token is the most likely one after the right ones before it. Raises ``UsageError`` for a
    tokenizer that makes keys of unequal length."""
    cells: list[dict[str, Any]] = []
    for length in lengths:
        for name, depth in DEPTHS.items():
            if report is not None:
                report(f"passkey: {length:,} tokens, {name}")
            rngs = [random.Random(f"{seed}/paper/{length}/{name}/{n}") for n in range(samples)]
            rows = [passkey_row(tokenizer, rng, length, training=False, depth=depth) for rng in rngs]
            right = _answered(model, torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows]))
            exact, tokens = right.all(dim=1).float().mean(), right.float().mean()
            cell = {"length": length, "depth": name, "n": samples}
            cells.append({**cell, "exact": float(exact), "tokens": float(tokens)})
    return cells


def _answered(model: InfiniForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """For rows ids, labels [B, T] whose labels are an answer of equal length at the end: whether each of its
    tokens [B, n], the full stop after it left out, was the most likely one."""
    counts = (labels != IGNORED).sum(dim=1)
    n = int(counts[0])
    if not bool((counts == n).all()):
        raise UsageError(
            "this tokenizer makes keys of five digits of unequal length. Choose one with single digits, as "
            "the one that is learned without --tokenizer_name."
        )
    size, length = model.config.segment, ids.shape[1]
    found: list[Tensor] = []
    with evaluating(model):
        cache = model.model.new_cache(ids.shape[0])
        for at in range(0, length, size):
            stop = min(at + size, length)
            # Predictions of the answer come from the n tokens before its last one.
            wanted = stop > length - n - 1
            piece = ids[:, at:stop].to(cache.device)
            logits = model(piece, past_key_values=cache, logits_to_keep=0 if wanted else 1).logits
            model.model.evict(cache)
            if wanted:
                found.append(logits.argmax(dim=-1).cpu())
    said = torch.cat(found, dim=1)[:, -n - 1 : -2]
    return said == ids[:, -n:-1]
