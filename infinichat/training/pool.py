"""Cached streams as a pool of facts: who was told what, where it is asked, and the memory's inputs at any
token.

An ``Episode`` is a made-up past: some facts with their tellings in a random order (corrections after what
they
correct), questions about them, and questions about what is not among them. Because a pool's pieces are
cached one
by one, any facts can meet in an episode.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinichat.attention.topics import RECENT, pooled
from infinichat.corpus.conversations import Asked, Told
from infinichat.corpus.sentences import Fact
from infinichat.model.bank_memory import STATE_TAPS, BankMemory
from infinichat.model.layer_state import TOKEN_TAPS
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.topics import Topics
from infinichat.training.cache import Shard

STRANGERS = 48
"""Questions of an episode about what was not told."""


@dataclass(frozen=True, slots=True)
class Episode:
    """``told`` in the order of telling; ``asked`` about those; ``strangers`` are asked about other things."""

    told: list[Told]
    asked: list[Asked]
    strangers: list[Asked]


class Pool:
    """All shards of one side, with what a memory at ``layer`` of ``model`` sees of them."""

    def __init__(self, shards: Sequence[Shard], model: InfiniForCausalLM, layer: int) -> None:
        weight = model.model.layers[layer].input_layernorm
        self.norm, self.eps = weight.weight.detach().float(), weight.eps
        self.embedding = model.model.embed_tokens.weight.detach()
        self.hidden = torch.cat([s.hidden for s in shards])
        self.ids = torch.cat([s.ids for s in shards]).long()
        self.labels = torch.cat([s.labels for s in shards])
        self.stream = torch.empty(len(self.ids), dtype=torch.long)
        self.streams: list[tuple[int, int, str]] = []
        self.facts: list[Fact] = []
        self.told: dict[int, list[Told]] = {}
        self.asked: list[Asked] = []
        tokens = 0
        for shard in shards:
            self._add(shard, tokens)
            tokens += len(shard.ids)
        versions = {(t.fact, t.version) for tellings in self.told.values() for t in tellings}
        self.known = [a for a in self.asked if a.version >= 0 and (a.fact, a.version) in versions]
        self.corrected = [a for a in self.known if a.version > 0]
        self.same: dict[tuple[str, ...], list[int]] = {}
        for number in self.told:
            for shared in self._shared(number):
                self.same.setdefault(shared, []).append(number)
        self.question = {a.fact: a for a in self.asked if a.fact >= 0}
        self.told_in: dict[int, list[Told]] = {}
        for t in (t for tellings in self.told.values() for t in tellings):
            self.told_in.setdefault(int(self.stream[t.start]), []).append(t)

    def _add(self, shard: Shard, tokens: int) -> None:
        facts = len(self.facts)
        for start, length, kind in shard.streams:
            self.stream[tokens + start : tokens + start + length] = len(self.streams)
            self.streams.append((tokens + start, length, kind))
        self.facts += [versions[0] for versions in shard.facts]
        for t in shard.told:
            moved = replace(t, fact=t.fact + facts, start=t.start + tokens)
            self.told.setdefault(moved.fact, []).append(moved)
        for a in shard.asked:
            places = {name: getattr(a, name) + tokens for name in ("answer", "value", "end")}
            self.asked.append(replace(a, fact=a.fact + facts if a.fact >= 0 else -1, **places))

    def _shared(self, number: int) -> list[tuple[str, ...]]:
        fact = self.facts[number]
        who = [("who", fact.subject, fact.name)] if fact.subject != "thing" else []
        alike = [("both", *fact.key[:2], fact.kind)] if who or fact.subject == "thing" else []
        return [("what", fact.noun), *who, *alike]

    def inputs(self, places: Tensor) -> Tensor:
        """The layer's normed input at ``places`` [...]: [..., C], float32."""
        h = self.hidden[places.clamp(min=0)].float()
        normed: Tensor = h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + self.eps) * self.norm
        return normed

    def before(self, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Places t .. t - count + 1 for each of ``places`` [n]: [n, count], and which are in the same
        stream."""
        around = places[:, None] - torch.arange(count)
        inside = (around >= 0) & (
            self.stream[around.clamp(min=0)] == self.stream[places.clamp(min=0)][:, None]
        )
        return around.clamp(min=0), inside

    def states(self, places: Tensor, count: int) -> Tensor:
        """Inputs t .. t - count + 1 beside each other: [n, count * C]; zeros before a stream's start."""
        around, inside = self.before(places, count)
        return (self.inputs(around) * inside[..., None]).flatten(1)

    def values(self, ids: Tensor) -> Tensor:
        """Stored values of ids [n]: [n, C]."""
        return BankMemory.unit_rms(self.embedding[ids])

    def around(self, places: Tensor) -> Tensor:
        """f_t: what marks and most of a key are made of, the last states and tokens [n, 10 C]."""
        around, inside = self.before(places, TOKEN_TAPS + 1)
        words = (self.values(self.ids[around]) * inside[..., None]).flatten(1)
        return torch.cat((self.states(places, STATE_TAPS), words), dim=-1)

    def topics(self, places: Tensor, topics: Topics) -> Tensor:
        """What the topic heads find at ``places`` [n]: [n, N C]. Every place has its own gradient."""
        around, inside = self.before(places, RECENT + 1)
        x = self.inputs(around) * inside[..., None]
        tokens = self.values(self.ids[around[:, :-1]]) * inside[:, :-1, None]
        salient = topics.salient(torch.cat((x[:, :-1], x[:, 1:]), dim=-1), tokens) * inside[:, :-1, None]
        # From the oldest on, as a conversation goes.
        return pooled(tokens.flip(1), salient.flip(1), topics.left(tokens.dtype))[:, 0]

    def neighbours(self, number: int, count: int, rng: random.Random) -> list[int]:
        """Other facts that resemble fact ``number``: up to ``count`` each with its noun, about the same one,
        and both of the same kind and about the same one."""
        found: list[int] = []
        for shared in self._shared(number):
            others = [n for n in self.same.get(shared, ()) if self.facts[n].key != self.facts[number].key]
            found += rng.choices(others, k=count) if others else []
        return found

    def episode(
        self,
        count: int,
        rng: random.Random,
        *,
        asked: Sequence[Asked] = (),
        near: float = 0.3,
        corrected: float = 0.25,
    ) -> Episode:
        """``count`` facts. ``asked``: these questions are among them (or, with version -1, are not);
        without, all facts are asked for, a share ``corrected`` of them corrected ones. ``near``: share that
        resembles another."""
        chosen = list(asked) or self._questions(count, rng, corrected)
        banned = {self.facts[a.fact].key for a in chosen if a.version < 0}
        facts: dict[tuple[str, str, str], int] = {}
        questions: list[Asked] = []
        for a in chosen:
            key = self.facts[a.fact].key
            there = any(t.version == a.version for t in self.told.get(a.fact, ()))
            if a.version >= 0 and there and key not in facts and key not in banned:
                facts[key] = a.fact
                questions.append(a)
        numbers = list(self.told)
        # What was never told has neighbours, too: the dog's name when the cat's is asked for.
        missing = [a.fact for a in chosen if a.version < 0]
        for _ in range(5 * count):
            if len(facts) >= count:
                break
            pick = rng.choice(numbers)
            if rng.random() < near and (facts or missing):
                model = rng.choice(missing if missing and rng.random() < 0.5 else [*facts.values(), *missing])
                pick = rng.choice(self.same.get(rng.choice(self._shared(model)), [pick]))
            if self.facts[pick].key not in banned:
                facts.setdefault(self.facts[pick].key, pick)
        timed: list[tuple[float, Told]] = []
        for number in facts.values():
            tellings = sorted(self.told[number], key=lambda t: t.version)
            timed += zip(sorted(rng.random() for _ in tellings), tellings, strict=True)
        told = [t for _, t in sorted(timed, key=lambda pair: pair[0])]
        return Episode(told, questions, self._strangers(facts, rng))

    def _questions(self, count: int, rng: random.Random, corrected: float) -> list[Asked]:
        fixed = rng.sample(self.corrected, min(len(self.corrected), int(count * corrected)))
        return (fixed + rng.sample(self.known, min(len(self.known), count)))[:count]

    def _strangers(self, facts: dict[tuple[str, str, str], int], rng: random.Random) -> list[Asked]:
        found: list[Asked] = []
        for _ in range(STRANGERS if facts else 0):
            shared = self._shared(rng.choice(list(facts.values())))
            pick = rng.choice(self.same[rng.choice(shared)] if rng.random() < 0.7 else list(self.told))
            if self.facts[pick].key not in facts and pick in self.question:
                found.append(self.question[pick])
        return found


def value_places(told: Sequence[Told]) -> Tensor:
    """The places of all value tokens in order of telling: [n]."""
    places = [torch.arange(t.start, t.start + t.count) for t in told]
    return torch.cat(places) if places else torch.empty(0, dtype=torch.long)
