"""Which tokens open the adapters above a memory, learned from many answers at little cost.

An answer's first words decide: there nothing is found yet, and what a question asks for must be told from
the layer's input alone. At the last of them the value is found; so is something at two of five tokens of a
novel, which nobody asked for. The recall stage runs a few answers of a step through the layers above; this
looks at many more, for which no layer has to be run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.corpus.conversations import GENERAL, Asked
from infinichat.model.bank_memory import BankMemory
from infinichat.training.pool import Pool

OPENED, CLOSED, PREFIX = 256, 2048, 6
"""Answers of a step whose first ``PREFIX`` tokens should open the adapters, and other tokens that should
not."""


def said(pool: Pool, start: int, length: int) -> Tensor:
    """The places whose next tokens are the answer's, for a stream that ends with one and begins with the
    token that opens a turn, as every turn does."""
    ids = pool.ids[start : start + length]
    opened = int((ids == ids[0]).nonzero()[-1, 0])
    return torch.arange(min(opened + 2, length - 1), length) + start


class Opening:
    """``asked`` are the questions whose answers open, on pages, too, and the tellings whose replies do;
    answers to general questions, among them or in streams of their own, talk and books do not."""

    def __init__(self, memory: BankMemory, pool: Pool, asked: Sequence[Asked]) -> None:
        self.memory, self.pool = memory, pool
        self.asked = [a for a in asked if a.version != GENERAL]
        shut = [torch.arange(a.answer - 1, a.end - 1) for a in asked if a.version == GENERAL]
        shut += [said(pool, start, length) for start, length, kind in pool.streams if kind == "general"]
        shut += [
            torch.arange(start, start + length)
            for start, length, kind in pool.streams
            if kind in ("talk", "book")
        ]
        self.shut = torch.cat([torch.zeros(0, dtype=torch.long), *shut])

    def logits(self, places: Tensor, found: Tensor) -> Tensor:
        """How far adapters open at ``places`` [n], before the sigmoid, where the memory finds something,
        ``found`` [n] being 1, or nothing: 0."""
        seen = torch.stack((found, torch.zeros(len(places))), dim=-1)
        return self.memory.carrying(self.pool.inputs(places), seen)[1][:, 0]

    @staticmethod
    def before(asked: Asked) -> Tensor:
        """The first places whose next tokens are those of the answer before its value; where it has none, of
        all of it. Where it begins with its value, as on a page, the place before that."""
        value = max(asked.value, asked.answer + 1) if asked.count else asked.end
        return torch.arange(asked.answer - 1, min(value - 1, asked.answer - 1 + PREFIX))

    def loss(self, rng: random.Random) -> Tensor:
        """Cross-entropy of opening where answers begin and where their values are found, and of staying shut
        elsewhere, whether something is found or not: the two alike."""
        asked = rng.sample(self.asked, min(OPENED, len(self.asked)))
        begun = torch.cat([torch.zeros(0, dtype=torch.long), *map(self.before, asked)])
        finds = torch.tensor([a.value - 1 for a in asked if a.count], dtype=torch.long)
        no = self.shut[torch.randint(max(1, len(self.shut)), (CLOSED if len(self.shut) else 0,))]
        found = torch.cat((torch.zeros(len(begun)), torch.ones(len(finds)), torch.arange(len(no)) % 2))
        logits, count = self.logits(torch.cat((begun, finds, no)), found), len(begun) + len(finds)
        opened, shut = F.softplus(-logits[:count]), F.softplus(logits[count:])
        return opened.sum() / max(1, count) + shut.sum() / max(1, len(no))
