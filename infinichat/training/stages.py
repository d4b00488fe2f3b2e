"""The first three stages that make a bank memory recall, each a loss on cached streams (the last:
``recall.py``), in the order in which they are trained.

    gate     the write gate: value tokens open it, everything else leaves it exactly shut
    keys     what is asked must find what was told: cross-entropy on the bank's read-out over many facts in
             one memory, with a null slot for what was never told
    marks    what is told again must replace what was told before: cross-entropy over all that was written

Every random choice comes from the ``random.Random`` and torch's generator that the loop seeds for each step,
so a stage that is stopped and taken up again does what it would have done.
"""

from __future__ import annotations

import random
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.attention.bank import replaced, unit
from infinichat.corpus.conversations import OTHER, VALUE, Asked
from infinichat.errors import UsageError
from infinichat.model.bank_memory import BankMemory
from infinichat.training.pool import Episode, Pool, value_places
from infinichat.training.reading import (
    FADED,
    Bank,
    project,
    read,
    same_slot,
    seen_at,
    slots_of,
    write,
)
from infinichat.training.strays import Strays

SCALARS = ("head_weight", "beta", "null")
"""Not ``recency``: what is asked for in an episode is younger than the rest, because corrections are asked
for more often, and a rho that learns that (0.6) hides what was told long ago."""

COMPANY = (0, 8, 32, 96)
"""Tokens in a memory that nobody meant to be written."""

PAIRS, NEIGHBOURS = 24, 2
"""Questions of a step that are put to memories of one thing, and how many neighbours of each sort they
have."""

SURE = 2.0
"""Nats by which what is asked for should at least outweigh that nothing was told."""


class Stage(Protocol):
    """What the loop runs: all parameters by name, the learning rates of those that it trains, and a loss with
    numbers for the log."""

    name: str
    parameters: dict[str, nn.Parameter]
    rates: dict[str, float]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]: ...


class KeysStage:
    """Trains ``context``, topic heads where there are some, and the bank's scalars for reading but
    ``recency``, on banks that were written as they should be, among strays."""

    name = "keys"

    def __init__(self, memory: BankMemory, pool: Pool, *, rate: float = 1e-3, dropout: float = 0.15) -> None:
        if not pool.known:
            raise UsageError("The cache has no fact that is told and asked for; prepare more of it first.")
        self.memory, self.pool, self.dropout = memory, pool, dropout
        self.strays = Strays(memory, pool)
        self.parameters = dict(memory.named_parameters())
        self.rates = {"context": rate} | dict.fromkeys(SCALARS, 1e-2)
        if memory.topics is not None:
            topics = {"by_state": 3 * rate, "by_token": 3 * rate, "bias": 3e-2, "fading": 3e-2}
            self.rates |= {f"topics.{name}": own for name, own in topics.items()}

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        pool, memory, dropout = self.pool, self.memory, self.dropout
        episode = pool.episode(rng.choice((16, 32, 64, 128)), rng, near=rng.choice((0.0, 0.3, 0.6)))
        bank = write(memory, pool, self.strays.into(episode, rng.choice(COMPANY), rng), dropout=dropout)
        places = torch.cat([torch.arange(a.value - 1, a.value + a.count - 1) for a in episode.asked])
        weight = torch.cat([self._weight(a) for a in episode.asked])
        strange = torch.tensor([a.value - 1 for a in episode.strangers], dtype=torch.long)
        nothing = torch.tensor(self._nothing(episode, rng), dtype=torch.long)
        logs = read(memory, bank, self._projected(torch.cat((places, strange, nothing))))
        right = self._right(episode, bank, pool.ids[places + 1])
        found = torch.logsumexp(logs[: len(places), :-1].masked_fill(~right, -30.0), dim=1)
        told = -(found * weight).sum() / weight.sum()
        empty = -logs[len(places) :, -1]
        unknown = empty[: len(strange)].sum() / max(1, len(strange))
        quiet = empty[len(strange) :].mean()
        missed, mistaken = self._alone(rng)
        numbers = {"told": told, "unknown": unknown, "quiet": quiet, "missed": missed, "mistaken": mistaken}
        loss = told + 0.5 * unknown + 0.4 * quiet + missed + 1.5 * mistaken
        return loss, {name: value.item() for name, value in numbers.items()}

    def _projected(self, places: Tensor) -> Tensor:
        seen = seen_at(self.memory, self.pool, places)
        return project(self.memory, F.dropout(seen, self.dropout, training=self.dropout > 0))

    def _alone(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Two losses for memories that hold one thing: the one that is asked for, which must be found, or one
        that resembles it, which must not. Among many things the right one takes the weight from its
        neighbours, whatever they score; a young memory has nothing to take it."""
        pool, rule = self.pool, self.memory.rule(self.memory.context.dtype)
        known = rng.sample(pool.known, min(PAIRS, len(pool.known)))
        strange = rng.sample(list(pool.question.values()), min(PAIRS, len(pool.question)))
        pairs = [(i, n) for i, a in enumerate(strange) for n in pool.neighbours(a.fact, NEIGHBOURS, rng)]
        right = [next(t for t in pool.told[a.fact] if t.version == a.version) for a in known]
        wrong = [rng.choice(pool.told[other]) for _, other in pairs]
        asked = [a.value - 1 for a in (*known, *strange)]
        keys = self._projected(torch.tensor(asked + [t.start - 1 for t in (*right, *wrong)]))
        whose = [*range(len(known)), *(len(known) + i for i, _ in pairs)]
        found = rule.beta * ((keys[whose] * keys[len(asked) :]).sum(dim=1) - rule.null)
        missed = F.softplus(SURE - found[: len(known)])
        mistaken = F.softplus(found[len(known) :])
        return missed.mean(), mistaken.sum() / max(1, len(pairs))

    @staticmethod
    def _weight(a: Asked) -> Tensor:
        """What the tokens of a value count [count]: the first decides, because the others are followed from
        it; corrections are rarer than they should be."""
        weight = torch.full((a.count,), 0.3)
        weight[0] = 1.0
        return weight * (2.0 if a.version else 1.0)

    def _right(self, episode: Episode, bank: Bank, wanted: Tensor) -> Tensor:
        """[n, slots] True at the slots to be found for the tokens ``wanted`` [n]: those of the telling, not
        of another value that begins alike. By the token alone where telling and answer are cut
        differently."""
        places: list[int] = []
        for a in episode.asked:
            told = next(t for t in self.pool.told[a.fact] if t.version == a.version)
            alike = told.count == a.count
            places += [told.start + at if alike else -1 for at in range(a.count)]
        exact = torch.tensor(places)[:, None]
        return (bank.places[None] == exact) | ((exact < 0) & (bank.ids[None] == wanted[:, None]))

    @staticmethod
    def _nothing(episode: Episode, rng: random.Random) -> list[int]:
        """Places where nothing must be found: after a value, and before it comes."""
        places: list[int] = []
        for a in episode.asked:
            places.append(a.value + a.count - 1)
            if a.answer < a.value:
                places.append(rng.randrange(a.answer, a.value) - 1)
        return places


WRONGED = 4
"""How much more a token that should have been left alone costs than one that should have been replaced: it
adds up over everything that comes later."""


class MarksStage:
    """Trains ``fade``, ``erase`` and ``novelty``: which of the tokens before it a token replaces, or that it
    replaces none."""

    name = "marks"

    def __init__(self, memory: BankMemory, pool: Pool, *, rate: float = 1e-3, dropout: float = 0.15) -> None:
        if not any(len(tellings) > 1 for tellings in pool.told.values()):
            raise UsageError("The cache has no corrected fact; prepare more of it first.")
        self.memory, self.pool, self.dropout = memory, pool, dropout
        self.strays = Strays(memory, pool)
        self.parameters = dict(memory.named_parameters())
        self.rates = {"fade": rate, "novelty": rate, "erase": 1e-2}

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        pool, memory = self.pool, self.memory
        episode = pool.episode(rng.choice((16, 32, 64)), rng, near=rng.choice((0.0, 0.3, 0.6)), corrected=0.6)
        episode = self.strays.into(episode, rng.choice(COMPANY), rng)
        # Half of the steps without: dropout makes everything less alike, and the threshold has to fit.
        dropout = rng.choice((0.0, self.dropout))
        around = F.dropout(pool.around(value_places(episode.told) - 1), dropout)
        marks, novelty = unit(F.linear(around, memory.fade)), around @ memory.novelty
        rule = memory.rule(around.dtype)
        same = same_slot(slots_of(pool, episode))
        # Of several versions it is the last that still counts: the others have faded when the next one comes.
        old = same & ~(same.float() @ same.float() > 0)
        earlier = torch.ones_like(same).triu(diagonal=1)
        faded = -FADED * (same & ~old).T.to(marks.dtype)
        taken = replaced(marks @ marks.T, faded, earlier.T, novelty, rule)
        some = old.any(dim=0)
        kept = (1 - taken.sum(dim=1)).clamp(min=1e-6)
        right = torch.where(some, (taken * old.T).sum(dim=1).clamp(min=1e-6), kept)
        missed = -right[some].log().mean() if bool(some.any()) else right.sum() * 0
        wronged = -right[~some].log().mean()
        return missed + WRONGED * wronged, {"missed": missed.item(), "wronged": wronged.item()}


class GateStage:
    """Trains the write gate: on the hardest of many tokens that must not be written, and on the hardest of
    many that must. A value is found by its first token or not at all, so a
    few that are missed cost more than their share."""

    name = "gate"

    def __init__(self, memory: BankMemory, pool: Pool, *, rate: float = 3e-3, dropout: float = 0.2) -> None:
        self.memory, self.pool, self.dropout = memory, pool, dropout
        self.value = (pool.labels == VALUE).nonzero()[:, 0]
        self.other = (pool.labels == OTHER).nonzero()[:, 0]
        if not len(self.value) or not len(self.other):
            raise UsageError("The cache has no value tokens or no others; prepare more of it first.")
        self.parameters = dict(memory.named_parameters())
        self.rates = dict.fromkeys(("gate_taps", "gate_bias", "gate_in", "gate_in_bias", "gate_out"), rate)

    def logits(self, places: Tensor) -> Tensor:
        """The gate before it is cut at ``places`` [n]: above zero a token is written."""
        return self.memory.write_logits(self.pool.states(places, self.memory.gate_taps.shape[0]))

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        value = self.value[torch.randint(len(self.value), (3072,))]
        many = self.other[torch.randint(len(self.other), (24576,))]
        with torch.no_grad():
            missed, leaked = self.logits(value), self.logits(many)
        other = torch.cat((many[:1536], many[leaked.topk(1536).indices]))
        value = torch.cat((value[:512], value[missed.topk(384, largest=False).indices]))
        places = torch.cat((value, other))
        states = self.pool.states(places, self.memory.gate_taps.shape[0])
        logits = self.memory.write_logits(F.dropout(states, self.dropout))
        yes, no = logits[: len(value)], logits[len(value) :]
        # Beyond the cross-entropy: values well above zero, everything else well below, for what is new.
        # What is written by mistake adds up over a million tokens; what is missed is missed once.
        cross = F.softplus(-yes).mean() + 2 * F.softplus(no).mean()
        margin = F.relu(3 - yes).mean() + 6 * F.relu(no + 2).mean()
        written, stray = (missed > 0).float().mean().item(), (leaked > 0).float().mean().item()
        return cross + 0.5 * margin, {"written": written, "leaked": stray}


def trainable(stage: Stage) -> dict[str, nn.Parameter]:
    """The parameters that ``stage`` trains by name, the only ones that ask for gradients afterwards."""
    for name, parameter in stage.parameters.items():
        parameter.requires_grad_(name in stage.rates)
    return {name: stage.parameters[name] for name in stage.rates}
