"""How much a memory recalls on cached streams: a line for the log while it is trained.

Reads of the bank alone, token by token with the right answer before each (teacher forced): quick, and a
little kinder than real conversations, which ``infinichat eval`` measures.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from infinichat.corpus.conversations import OTHER
from infinichat.model.bank_memory import BankMemory
from infinichat.training.pool import Pool
from infinichat.training.reading import follow, project, read, seen_at, write
from infinichat.training.strays import Strays, let_through

COMPANY = (8, 64)
"""Strays in the memories that are asked."""


@torch.no_grad()
def recall_on(
    memory: BankMemory, pool: Pool, *, facts: int, questions: int, seed: int = 0, ideal: bool = False
) -> dict[str, float]:
    """Shares over at least ``questions`` questions in memories of ``facts`` facts: ``recall`` of values told
    once and ``updated`` of corrected ones, all their tokens right; ``refused`` of both; ``unknown``
    admitted. ``ideal``: as ``write``."""
    rng, strays = random.Random(f"{seed}/{facts}"), Strays(memory, pool)
    once: list[bool] = []
    updated: list[bool] = []
    refused: list[bool] = []
    unknown: list[bool] = []
    while len(once) + len(updated) < questions:
        episode = pool.episode(facts, rng)
        if not episode.asked:
            break
        bank = write(memory, pool, strays.into(episode, rng.choice(COMPANY), rng), ideal=ideal)
        places = [torch.arange(a.value - 1, a.value + a.count - 1) for a in episode.asked]
        strange = torch.tensor([a.value - 1 for a in episode.strangers], dtype=torch.long)
        queries = project(memory, seen_at(memory, pool, torch.cat((*places, strange))))
        weights, start = read(memory, bank, queries).exp(), 0
        for some in places:
            part = slice(start, start + len(some))
            weights[part] = follow(pool, bank, some, weights[part])[0]
            start = part.stop
        right = _right(weights, bank.ids, pool.ids[torch.cat(places) + 1])
        at = 0
        for a in episode.asked:
            (updated if a.version else once).append(bool(right[at : at + a.count].all()))
            refused.append(bool(weights[at, -1] > 0.5))
            at += a.count
        unknown += (weights[at:, -1] > 0.5).tolist()
    named = {"recall": once, "updated": updated, "refused": refused, "unknown": unknown}
    return {name: sum(values) / max(1, len(values)) for name, values in named.items()}


@torch.no_grad()
def gate_on(memory: BankMemory, pool: Pool) -> dict[str, float]:
    """What the write gate does: the share of values told that are ``written`` whole, and the share of all
    tokens that are written and should not be, ``stray``."""
    opened = let_through(memory, pool)
    told = [t for tellings in pool.told.values() for t in tellings]
    whole = [bool(opened[t.start : t.start + t.count].all()) for t in told]
    other = pool.labels == OTHER
    return {
        "written": sum(whole) / max(1, len(whole)),
        "stray": float(opened[other].float().mean()) if bool(other.any()) else 0.0,
    }


def _right(weights: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
    """Whether the ``wanted`` tokens [n] have more weight than any other and than the null slot, for weights
    [>= n, slots + 1] of slots that hold ``ids`` [slots]."""
    tokens, place = torch.unique(ids, return_inverse=True)
    weights = weights[: len(wanted)]
    summed = weights.new_zeros(len(weights), len(tokens)).index_add_(1, place, weights[:, :-1])
    best = summed.max(dim=1)
    right: Tensor = (tokens[best.indices] == wanted) & (best.values > weights[:, -1])
    return right
