"""The three stages that make a bank memory recall, each a loss on cached streams.

    keys     what is asked must find what was told: cross-entropy on the bank's read-out over many facts in
    one
             memory, with a null slot for what was never told
    gate     the write gate: value tokens open it, everything else leaves it exactly shut
    recall   the read into the residual: answers through the frozen upper layers, with the base model's own
             distribution kept on ordinary chat under a full memory

Every random choice comes from the ``random.Random`` and torch's generator that the loop seeds for each step,
so a stage that is stopped and taken up again does what it would have done.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.corpus.conversations import OTHER, VALUE, Asked
from infinichat.errors import UsageError
from infinichat.model.bank_memory import BankMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.plain import decode
from infinichat.training.pool import Episode, Pool, value_places

SCALARS = ("head_weight", "beta", "null", "recency", "erase")
READ = ("out", "confidence", "found_bias", "read_gate", "adapt_in", "adapt_in_bias", "adapt_out")
READ_SCALARS = ("alpha", "read_confidence", "read_bias")


class Stage(Protocol):
    """What the loop runs: parameters by name with learning rates, and a loss with numbers for the log."""

    name: str
    rates: dict[str, float]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True, slots=True)
class Bank:
    """A made-up memory: unit keys [n, K], how far each has faded and aged [n], ids [n]."""

    keys: Tensor
    bias: Tensor
    ids: Tensor


def write(memory: BankMemory, pool: Pool, episode: Episode, stray: Tensor) -> Bank:
    """Everything that ``episode`` tells, after the ``stray`` tokens, as the product's bank would hold it."""
    places = torch.cat((stray, value_places(episode.told)))
    keys = pool.contexts(memory, places - 1)
    rule = memory.rule(keys.dtype)
    faded = F.softplus(rule.gain * (keys @ keys.T - rule.same)).triu(diagonal=1).sum(dim=1)
    age = torch.arange(len(keys) - 1, -1, -1, dtype=keys.dtype)
    return Bank(keys, -faded - rule.recency * torch.log1p(age), pool.ids[places])


def read(memory: BankMemory, bank: Bank, queries: Tensor) -> Tensor:
    """Logarithms of the weights [n, slots + 1] for unit queries [n, K]; the last is the null slot's."""
    rule = memory.rule(queries.dtype)
    scores = rule.beta * (queries @ bank.keys.T) + bank.bias
    null = (rule.beta * rule.null).expand(len(queries), 1)
    return torch.cat((scores, null), dim=1).log_softmax(dim=1)


def stray_tokens(pool: Pool, count: int, rng: random.Random) -> Tensor:
    """``count`` tokens that nobody meant to be written: the gate's mistakes, made up."""
    found: list[int] = []
    while len(found) < count:
        place = rng.randrange(len(pool.ids))
        if int(pool.labels[place]) == OTHER:
            found.append(place)
    return torch.tensor(found, dtype=torch.long)


class KeysStage:
    """Trains ``context`` and the bank's scalars."""

    name = "keys"

    def __init__(self, memory: BankMemory, pool: Pool, *, rate: float = 1e-3, dropout: float = 0.15) -> None:
        if not pool.known:
            raise UsageError("The cache has no fact that is told and asked for; prepare more of it first.")
        self.memory, self.pool, self.dropout = memory, pool, dropout
        self.rates = {"context": rate} | dict.fromkeys(SCALARS, 1e-2)

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        pool, memory = self.pool, self.memory
        episode = pool.episode(rng.choice((16, 32, 64, 128)), rng, near=rng.choice((0.0, 0.3, 0.6)))
        bank = write(memory, pool, episode, stray_tokens(pool, rng.choice((0, 8, 24)), rng))
        places = torch.cat([torch.arange(a.value - 1, a.value + a.count - 1) for a in episode.asked])
        weight = torch.cat([torch.full((a.count,), 2.0 if a.version else 1.0) for a in episode.asked])
        nothing = torch.tensor(self._nothing(episode, rng), dtype=torch.long)
        queries = pool.contexts(memory, torch.cat((places, nothing)))
        queries = F.dropout(queries, self.dropout)
        logs = read(memory, bank, queries)
        right = bank.ids[None] == pool.ids[places + 1][:, None]
        found = torch.logsumexp(logs[: len(places), :-1].masked_fill(~right, -30.0), dim=1)
        told = -(found * weight).sum() / weight.sum()
        unknown = -logs[len(places) :, -1].mean()
        return told + unknown, {"told": told.item(), "unknown": unknown.item()}

    @staticmethod
    def _nothing(episode: Episode, rng: random.Random) -> list[int]:
        """Places where nothing must be found: what was not told, after a value, and before it comes."""
        places = [a.value - 1 for a in episode.strangers]
        for a in episode.asked:
            places += [a.value + a.count - 1, rng.randrange(a.answer, a.value) - 1]
        return places


class GateStage:
    """Trains the write gate."""

    name = "gate"

    def __init__(self, memory: BankMemory, pool: Pool, *, rate: float = 1e-2) -> None:
        self.memory, self.pool = memory, pool
        self.value = (pool.labels == VALUE).nonzero()[:, 0]
        self.other = (pool.labels == OTHER).nonzero()[:, 0]
        if not len(self.value) or not len(self.other):
            raise UsageError("The cache has no value tokens or no others; prepare more of it first.")
        self.rates = {"gate_taps": rate, "gate_bias": rate}

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        value = self.value[torch.randint(len(self.value), (768,))]
        other = self.other[torch.randint(len(self.other), (4096,))]
        taps = self.memory.gate_taps.shape[0]
        x = self.pool.states(torch.cat((value, other)), taps)
        logits = x @ self.memory.gate_taps.reshape(-1) + self.memory.gate_bias
        yes, no = logits[: len(value)], logits[len(value) :]
        # Beyond the cross-entropy: values well above zero, everything else well below, for what is new.
        cross = F.softplus(-yes).mean() + F.softplus(no).mean()
        margin = F.relu(3 - yes).mean() + 3 * F.relu(no + 2).mean()
        numbers = {"written": (yes > 0).float().mean().item(), "leaked": (no > 0).float().mean().item()}
        return cross + 0.5 * margin, numbers


class RecallStage:
    """Trains the read into the residual, through the frozen layers above the memory."""

    name = "recall"

    def __init__(
        self,
        memory: BankMemory,
        pool: Pool,
        model: InfiniForCausalLM,
        *,
        layer: int,
        rate: float = 1e-3,
        streams: int = 4,
        longest: int = 330,
    ) -> None:
        self.memory, self.pool, self.model, self.layer = memory, pool, model, layer
        self.streams, self.longest = streams, longest
        self.rates = dict.fromkeys(READ, rate) | dict.fromkeys(READ_SCALARS, 3e-2)
        by_stream: dict[int, list[Asked]] = {}
        for a in pool.asked:
            by_stream.setdefault(int(pool.stream[a.answer]), []).append(a)
        self.asking = sorted(by_stream.items())
        self.quiet = [s for s in pool.streams if s[2] != "ask"]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        rows: list[tuple[int, int, Bank]] = []
        asked: list[Sequence[Asked]] = []
        for _ in range(20 * self.streams):
            number, questions = rng.choice(self.asking)
            start = self.pool.streams[number][0]
            questions = [a for a in questions if a.end - start <= self.longest]
            if questions and len(rows) < self.streams:
                rows.append((start, questions[-1].end - start, self._bank(rng, questions)))
                asked.append(questions)
        hidden, added, energy = self._added(rows)
        final = self._upper(hidden, added)
        answers = self._answers(final, rows, asked)
        kept = self._kept(rows[0][2], rng)
        silence = torch.stack([e.mean() for e in energy]).mean()
        return answers + kept + 3 * silence, {"answers": answers.item(), "kept": kept.item()}

    def _bank(self, rng: random.Random, questions: Sequence[Asked]) -> Bank:
        count, near = rng.choice((4, 8, 16, 32, 64, 128)), rng.choice((0.0, 0.3, 0.6))
        episode = self.pool.episode(count, rng, asked=questions, near=near)
        with torch.no_grad():
            return write(
                self.memory, self.pool, episode, stray_tokens(self.pool, rng.choice((0, 8, 24)), rng)
            )

    def _added(self, rows: Sequence[tuple[int, int, Bank]]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Padded states [B, T, C], what the memory adds to them, and its share of their energy."""
        longest, width = max(row[1] for row in rows), self.pool.hidden.shape[1]
        hidden = torch.zeros(len(rows), longest, width, dtype=self.model.model.norm.weight.dtype)
        added = torch.zeros(len(rows), longest, width)
        energy = []
        for index, (start, length, bank) in enumerate(rows):
            places = torch.arange(start, start + length)
            with torch.no_grad():
                p = read(self.memory, bank, self.pool.contexts(self.memory, places)).exp()
                values = p[:, :-1] @ self.pool.values(bank.ids)
            got = self.memory.added(self.pool.inputs(places), values, p[:, -1:])
            h = self.pool.hidden[places]
            hidden[index, :length], added[index, :length] = h.to(hidden.dtype), got
            energy.append(got.square().sum(dim=-1) / h.float().square().sum(dim=-1).clamp(min=1.0))
        return hidden, added, energy

    def _upper(self, hidden: Tensor, added: Tensor | None) -> Tensor:
        last = self.model.config.num_hidden_layers
        normed: Tensor = self.model.model.norm(
            decode(self.model, hidden, first=self.layer, last=last, added=added)
        )
        return normed

    def _answers(
        self, final: Tensor, rows: Sequence[tuple[int, int, Bank]], asked: Sequence[Sequence[Asked]]
    ) -> Tensor:
        """Cross-entropy on the answers' tokens; first and value tokens count twice."""
        chosen, targets, weights = [], [], []
        for index, questions in enumerate(asked):
            for a in questions:
                places = torch.arange(a.answer - 1, a.end - 1)
                weight = torch.ones(len(places))
                weight[a.value - a.answer : a.value - a.answer + a.count] = 2
                weight[0] = 2
                chosen.append(final[index, places - rows[index][0]])
                targets.append(self.pool.ids[places + 1])
                weights.append(weight)
        logits = self.model.lm_head(torch.cat(chosen)).float()
        weight = torch.cat(weights)
        loss = F.cross_entropy(logits, torch.cat(targets), reduction="none")
        return (loss * weight).sum() / weight.sum()

    def _kept(self, bank: Bank, rng: random.Random) -> Tensor:
        """KL to the base on a stretch of a stream that asks for nothing, under ``bank``."""
        if not self.quiet:
            return torch.zeros(())
        start, length, _ = rng.choice(self.quiet)
        hidden, added, _ = self._added([(start, min(length, 190), bank)])
        with torch.no_grad():
            plain = self.model.lm_head(self._upper(hidden, None)).float().log_softmax(dim=-1)
        changed = self.model.lm_head(self._upper(hidden, added)).float().log_softmax(dim=-1)
        return F.kl_div(changed, plain, reduction="none", log_target=True).sum(dim=-1).mean()


def trainable(memory: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """The parameters of ``stage`` by name, the only ones that ask for gradients afterwards."""
    chosen = {}
    for name, parameter in memory.named_parameters():
        parameter.requires_grad_(name in stage.rates)
        if name in stage.rates:
            chosen[name] = parameter
    return chosen
