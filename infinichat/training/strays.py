"""What the write gate lets through of talk that tells nothing: the company that facts have in a bank.

A memory that has listened to ten thousand tokens of talk holds more of them than of what it was told, most
of them written after it, and much that resembles it: what other people said of themselves. A bank without
them teaches the wrong thing: where strays are few, random, and always the oldest, the surest way to tell a
fact from a stray is its age, and a fact that has grown old is not found.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.bank import with_neighbours
from infinichat.corpus.conversations import OTHER, VALUE, Told
from infinichat.model.bank_memory import BankMemory
from infinichat.training.pool import Episode, Pool

PIECE = 8192
"""Tokens that are looked at together."""

NOBODY = -1
"""The fact that a stray tells."""

MADE_UP = 0.25
"""Share of strays that are any token at all, so that a gate that is trained later may make other mistakes."""

LONGEST = 8
"""Tokens of one stray; a gate that is not trained lets everything through."""

LATER = 0.5
"""Share of strays that come after everything that is told; the others are anywhere."""


@torch.no_grad()
def let_through(memory: BankMemory, pool: Pool) -> Tensor:
    """[tokens] True at the tokens of ``pool`` that the write gate of ``memory`` lets through."""
    taps, size = memory.gate_taps.shape[0], len(pool.ids)
    places = [torch.arange(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]
    logits = torch.cat([memory.write_logits(pool.states(some, taps)) for some in places])
    # The next stream's first token is not the next one.
    following = F.pad(logits[1:], (0, 1)).masked_fill(F.pad(pool.stream[1:] != pool.stream[:-1], (0, 1)), -99)
    there, first = torch.ones_like(logits, dtype=torch.bool), pool.stream != F.pad(pool.stream[:-1], (1, 0))

    def before(written: Tensor) -> Tensor:
        return F.pad(written[:-1], (1, 0)).masked_fill(first, 0)

    return with_neighbours(logits, following, there, before) > 0


class Strays:
    """``runs`` are the tokens written by mistake in the talk of ``pool``, those that follow each other
    together, ``of`` the same of every stream by its number; ``others`` are all tokens that tell nothing
    [n]."""

    def __init__(self, memory: BankMemory, pool: Pool) -> None:
        self.others = (pool.labels == OTHER).nonzero()[:, 0]
        # Also what the gate is not judged by: what people said of themselves is what resembles facts most.
        stray = let_through(memory, pool) & (pool.labels != VALUE)
        begins = stray & ~(F.pad(stray[:-1], (1, 0)) & (pool.stream == F.pad(pool.stream[:-1], (1, 0))))
        lengths = torch.bincount(begins.cumsum(dim=0)[stray], minlength=1)[1:].tolist()
        whole = zip(begins.nonzero()[:, 0].tolist(), lengths, strict=True)
        self.of: dict[int, list[Told]] = {}
        for start, length in whole:
            parts = range(start, start + length, LONGEST)
            run = [Told(NOBODY, 0, at, min(LONGEST, start + length - at)) for at in parts]
            self.of.setdefault(int(pool.stream[start]), []).extend(run)
        talk = (self.of.get(n, []) for n, (_, _, kind) in enumerate(pool.streams) if kind == "talk")
        self.runs = [run for runs in talk for run in runs]

    def among(self, told: Sequence[Told], count: int, rng: random.Random) -> list[Told]:
        """``told`` in its order, with about ``count`` tokens that are strays before, between and after,
        none of them twice."""
        placed, taken, left = [(float(at), one) for at, one in enumerate(told)], set[int](), count
        for _ in range(2 * count if len(self.others) else 0):
            if left <= 0:
                break
            if self.runs and rng.random() >= MADE_UP:
                stray = rng.choice(self.runs)
            else:
                stray = Told(NOBODY, 0, int(self.others[rng.randrange(len(self.others))]), 1)
            if stray.start in taken:
                continue
            taken.add(stray.start)
            placed.append((float(len(told)) if rng.random() < LATER else rng.uniform(-1, len(told)), stray))
            left -= stray.count
        return [one for _, one in sorted(placed, key=lambda entry: entry[0])]

    def into(self, episode: Episode, count: int, rng: random.Random) -> Episode:
        """``episode`` with strays ``among`` what it tells."""
        return replace(episode, told=self.among(episode.told, count, rng))
