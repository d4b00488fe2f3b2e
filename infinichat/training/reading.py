"""A made-up memory on cached streams: the bank that a past would leave, and what is read from it.

The same rules as the product's bank (``infinichat.attention.bank``), with gradients, for one conversation
whose tokens are places of a ``Pool``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.bank import (
    asked_alike,
    followed,
    headwise_unit,
    inherited,
    replaced,
    replaced_for_good,
    unit,
)
from infinichat.attention.topics import RECENT, pooled
from infinichat.model.bank_memory import STATE_TAPS, BankMemory
from infinichat.model.layer_state import TOKEN_TAPS
from infinichat.training.pool import Episode, Pool, value_places


@dataclass(frozen=True, slots=True)
class Bank:
    """Unit keys [n, K], by how much each has faded and aged [n] <= 0, ids [n] and places [n] of the written
    tokens, oldest first, and the slot [n] that has replaced each, -1 for none."""

    keys: Tensor
    bias: Tensor
    ids: Tensor
    places: Tensor
    heirs: Tensor


FADED = 20.0
"""Nats that a replaced token has lost in a bank that was written as it should be."""


def seen_at(memory: BankMemory, pool: Pool, places: Tensor) -> Tensor:
    """What keys and queries are made of at ``places`` [n]: what is around them, [n, 10 C], and what the topic
    heads find, [n, (10 + N) C] with N of them."""
    around = pool.around(places)
    if memory.topics is None:
        return around
    return torch.cat((around, pool.topics(places, memory.topics)), dim=-1)


def seen_along(memory: BankMemory, pool: Pool, start: int, length: int) -> Tensor:
    """``seen_at`` the places ``start`` to ``start + length`` - 1 of one stream, [length, (10 + N) C]: what
    they share is worked out once."""
    before = RECENT if memory.topics is not None else max(STATE_TAPS, TOKEN_TAPS + 1) - 1
    places = torch.arange(start - before, start + length)
    own = (places >= 0) & (pool.stream[places.clamp(min=0)] == pool.stream[start])
    x = pool.inputs(places) * own[:, None]
    words = pool.values(pool.ids[places.clamp(min=0)]) * own[:, None]

    def back(of: Tensor, count: int) -> Tensor:
        return torch.cat([of[before - tap : before - tap + length] for tap in range(count)], dim=-1)

    around = torch.cat((back(x, STATE_TAPS), back(words, TOKEN_TAPS + 1)), dim=-1)
    if memory.topics is None:
        return around
    salient = memory.topics.salient(torch.cat((x[1:], x[:-1]), dim=-1), words[1:]) * own[1:, None]
    left = memory.topics.left(words.dtype)
    return torch.cat((around, pooled(words[None, 1:], salient[None], left)[0]), dim=-1)


def project(memory: BankMemory, seen: Tensor) -> Tensor:
    """Unit keys [n, K] for what is ``seen_at`` places [n, (10 + N) C]."""
    return headwise_unit(F.linear(seen, memory.context), memory.head_weight)


def write(
    memory: BankMemory,
    pool: Pool,
    episode: Episode,
    *,
    dropout: float = 0.0,
    ideal: bool = True,
) -> Bank:
    """Everything that ``episode`` tells, as if the write gate were sure of all of it. ``ideal``: what is
    replaced has faded and nothing else has; otherwise as the product's bank would hold it."""
    places = value_places(episode.told)
    seen = seen_at(memory, pool, places - 1)
    keys = project(memory, F.dropout(seen, dropout, training=dropout > 0))
    rule, count = memory.rule(keys.dtype), len(places)
    heirs = torch.full((count,), -1)
    if ideal:
        faded = -FADED * same_slot(slots_of(pool, episode)).any(dim=1).to(keys.dtype)
    else:
        around = seen[:, : memory.fade.shape[1]]
        marks, novelty = unit(F.linear(around, memory.fade)), around @ memory.novelty
        alike, faded, order = marks @ marks.T, keys.new_zeros(count), torch.arange(count)
        kin = asked_alike(keys @ keys.T, rule)
        for at in range(count):
            share = replaced(alike[:, at], faded, kin[:, at] & (order < at), novelty[at], rule)
            faded = faded - rule.force * share
            gone = replaced_for_good(share)
            heirs[gone | (gone[heirs] & (heirs >= 0))] = at
    age = torch.arange(count - 1, -1, -1, dtype=keys.dtype)
    return Bank(keys, faded - rule.recency * torch.log1p(age), pool.ids[places], places, heirs)


def read(memory: BankMemory, bank: Bank, queries: Tensor, *, unseen: Tensor | None = None) -> Tensor:
    """Logarithms of the weights [n, slots + 1] for unit queries [n, K], each by itself; the last is the null
    slot's. Slots that are ``unseen`` [n, slots] have no weight."""
    rule = memory.rule(queries.dtype)
    answers = rule.beta * (queries @ bank.keys.T)
    scores = answers + bank.bias
    if unseen is not None:
        scores = scores.masked_fill(unseen, float("-inf"))
    null = (rule.beta * rule.null).expand(len(queries), 1)
    logs = torch.cat((scores, null), dim=1).log_softmax(dim=1)
    has = bank.heirs >= 0
    if not bool(has.any()):
        return logs
    given = inherited(logs.exp()[None], answers[None], bank.heirs.clamp(min=0)[None], has[None])
    return given[0].log()


def follow(
    pool: Pool, bank: Bank, places: Tensor, weights: Tensor, *, unseen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``weights`` [n, slots + 1] of the reads at ``places`` [n], one right after the other, with values
    followed to their end, and the shares [n] of those that go on and of those that have ended."""
    after = F.pad(bank.places[1:] == bank.places[:-1] + 1, (1, 0))[None, None]
    steps = after.expand(1, len(places), len(bank.ids)) if unseen is None else after & ~unseen[None]
    start = torch.zeros_like(weights[:1, :-1])
    got, going, ended, _ = followed(weights[None], pool.ids[places][None], bank.ids[None], steps, start)
    return got[0], going[0], ended[0]


def slots_of(pool: Pool, episode: Episode) -> list[object]:
    """What each written token answers, comparable: the fact, and the value's tokens before it. Two tokens
    with the same are asked for by the same words, so that the later one must replace the earlier. What tells
    no fact answers nothing else."""
    found: list[object] = []
    for number, told in enumerate(episode.told):
        ids = pool.ids[told.start : told.start + told.count].tolist()
        key = pool.facts[told.fact].key if told.fact >= 0 else number
        found += [(key, tuple(ids[:at])) for at in range(told.count)]
    return found


def same_slot(slots: list[object]) -> Tensor:
    """[n, n] True where the second of two tokens must replace the first."""
    numbers: dict[object, int] = {}
    named = torch.tensor([numbers.setdefault(slot, len(numbers)) for slot in slots])
    return (named[:, None] == named[None]).triu(diagonal=1)
