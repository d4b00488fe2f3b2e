"""The last stage of a bank memory: what its reads add to the residual, and how the layers above use it.

The layers above are frozen but for low-rank changes of their attention (``model.adapters``), which learn to
repeat what a question asks for, word by word, and to say that it was never told.

Answers are learned by cross-entropy under banks of many facts. Everything else must stay the base's: its own
distribution on talk and on general questions is held by KL under the same banks, and what is added where
nothing is asked costs energy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.corpus.conversations import GENERAL, Asked
from infinichat.model.adapters import Adapters
from infinichat.model.bank_memory import BankMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.plain import decode
from infinichat.training.pool import Episode, Pool
from infinichat.training.reading import Bank, follow, project, read, stray_tokens, write

READ = ("out", "confidence", "ending", "found_bias", "read_gate", "adapt_in", "adapt_in_bias", "adapt_out")
READ_SCALARS = ("alpha", "read_confidence", "read_bias")
QUIET, OTHERS = 100, 3
"""Tokens of talk, and how many general questions, that are held to the base's distribution in a step."""

YOUNG = 0.33
"""Share of young conversations among those with questions."""

JUDGED = 48
"""Tokens of that talk whose distributions are compared."""

ALONE = 0.6
"""Share of the questions about the past that stand alone behind other talk: the first question after a long
talk has no answered one before it that shows how answers look."""

BEFORE = (48, 320)
"""Tokens of that talk."""


@dataclass(frozen=True, slots=True)
class Row:
    """``length`` tokens from place ``start`` on with their ``bank``, after the tokens at ``before`` [n],
    which are of another stream and have no memory."""

    start: int
    length: int
    bank: Bank
    before: Tensor


class RecallStage:
    """Trains the read into the residual, and ``adapters`` of the layers above where there are some."""

    name = "recall"

    def __init__(
        self,
        memory: BankMemory,
        pool: Pool,
        model: InfiniForCausalLM,
        *,
        layer: int,
        adapters: Adapters | None = None,
        rate: float = 1e-3,
        streams: int = 3,
        longest: int = 360,
    ) -> None:
        self.memory, self.pool, self.model, self.layer = memory, pool, model, layer
        self.streams, self.longest = streams, longest
        self.adapters = adapters
        changes = {} if adapters is None else {f"adapters.{k}": p for k, p in adapters.pairs.items()}
        self.parameters = {**dict(memory.named_parameters()), **changes}
        self.rates = dict.fromkeys((*READ, *changes), rate) | dict.fromkeys(READ_SCALARS, 3e-2)
        by_stream: dict[int, list[Asked]] = {}
        answerable = {a.answer for a in pool.known}
        for a in pool.asked:
            if a.version >= 0 and a.answer not in answerable:
                continue  # its last telling was left out of the cache
            by_stream.setdefault(int(pool.stream[a.answer]), []).append(a)
        kinds = {number: pool.streams[number][2] for number in by_stream}
        self.asking = sorted((n, asked) for n, asked in by_stream.items() if kinds[n] != "mixed")
        self.young = sorted((n, asked) for n, asked in by_stream.items() if kinds[n] == "mixed")
        self.quiet = [n for n, s in enumerate(pool.streams) if s[2] not in ("ask", "mixed", "general")]
        self.talk = [n for n, s in enumerate(pool.streams) if s[2] == "talk"]
        self.general = [s for s in pool.streams if s[2] == "general"]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        rows: list[Row] = []
        asked: list[list[Asked]] = []
        for _ in range(20 * self.streams):
            young = bool(self.young) and (not self.asking or rng.random() < YOUNG)
            number, questions = rng.choice(self.young if young else self.asking)
            start = self.pool.streams[number][0]
            before = torch.empty(0, dtype=torch.long)
            if not young and self.talk and rng.random() < ALONE:
                questions = [rng.choice(questions)]
                start, before = self._turn(start, questions[0]), self._before(rng)
            questions = [a for a in questions if a.end - start <= self.longest]
            if questions and len(rows) < self.streams:
                bank = self._own_bank(rng, number, questions) if young else self._bank(rng, questions)
                rows.append(Row(start, questions[-1].end - start, bank, before))
                asked.append(questions)
        hidden, added, energy = self._added(rows)
        final = self._upper(hidden, added)
        answers, right = self._answers(final, rows, asked)
        kept, more = self._kept([row.bank for row in rows], rng)
        for row, answered, spent in zip(rows, asked, energy, strict=True):
            silent = torch.ones(len(spent))
            for a in answered:
                silent[a.answer - 1 - row.start : a.end - 1 - row.start] = 0
            more.append(spent[silent > 0])
        silence = torch.cat(more).mean()
        numbers = {"answers": answers.item(), "right": right, "kept": kept.item(), "added": silence.item()}
        return answers + 2 * kept + 3 * silence, numbers

    def _turn(self, start: int, question: Asked) -> int:
        """Where the turn that asks ``question`` opens in the stream from ``start`` on, which begins with the
        token that opens one."""
        opened = (self.pool.ids[start : question.answer] == self.pool.ids[start]).nonzero()[:, 0]
        return start + int(opened[-2:][0])

    def _before(self, rng: random.Random) -> Tensor:
        """Places of some talk [n]."""
        start, length, _ = self.pool.streams[rng.choice(self.talk)]
        count = min(length, rng.randint(*BEFORE))
        start += rng.randint(0, length - count)
        return torch.arange(start, start + count)

    def _own_bank(self, rng: random.Random, number: int, questions: Sequence[Asked]) -> Bank:
        """What stream ``number`` tells itself, after nothing or after some other facts."""
        own = sorted(self.pool.told_in.get(number, ()), key=lambda told: told.start)
        taken = {self.pool.facts[t.fact].key for t in own}
        taken |= {self.pool.facts[a.fact].key for a in questions if a.fact >= 0}
        count = rng.choice((0, 0, 0, 0, 2, 8, 32))
        others = self.pool.episode(count, rng).told if count else []
        told = [t for t in others if self.pool.facts[t.fact].key not in taken] + own
        with torch.no_grad():
            stray = stray_tokens(self.pool, rng.choice((0, 0, 0, 4)), rng)
            return write(self.memory, self.pool, Episode(told, [], []), stray)

    def _bank(self, rng: random.Random, questions: Sequence[Asked]) -> Bank:
        count, near = rng.choice((1, 2, 4, 8, 16, 32, 64, 128)), rng.choice((0.0, 0.3, 0.6))
        episode = self.pool.episode(count, rng, asked=questions, near=near)
        with torch.no_grad():
            stray = stray_tokens(self.pool, rng.choice((0, 0, 8, 24)), rng)
            return write(self.memory, self.pool, episode, stray)

    def _added(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Padded states [B, T, C], what the memory adds to them, and its share of the rows' own energy."""
        longest, width = max(len(row.before) + row.length for row in rows), self.pool.hidden.shape[1]
        hidden = torch.zeros(len(rows), longest, width, dtype=self.model.model.norm.weight.dtype)
        added = torch.zeros(len(rows), longest, width)
        energy = []
        for index, row in enumerate(rows):
            places, bank = torch.arange(row.start, row.start + row.length), row.bank
            with torch.no_grad():
                # What this stream tells itself is there from the next token on.
                own = (bank.places >= row.start) & (bank.places < row.start + row.length)
                unseen = own[None] & (bank.places[None] >= places[:, None])
                queries = project(self.memory, self.pool.around(places))
                p = read(self.memory, bank, queries, unseen=unseen).exp()
                p, ended = follow(self.pool, bank, places, p, unseen=unseen)
                values = p[:, :-1] @ self.pool.values(bank.ids)
                something = ~unseen.all(dim=1, keepdim=True)
            inputs = self.pool.inputs(places)
            got = self.memory.added(inputs, values, p[:, -1:], ended[:, None]) * something
            h = self.pool.hidden[places]
            first = len(row.before)
            hidden[index, :first] = self.pool.hidden[row.before].to(hidden.dtype)
            part = slice(first, first + row.length)
            hidden[index, part], added[index, part] = h.to(hidden.dtype), got
            energy.append(got.square().sum(dim=-1) / h.float().square().sum(dim=-1).clamp(min=1.0))
        return hidden, added, energy

    def _upper(self, hidden: Tensor, added: Tensor | None) -> Tensor:
        """The final states; without ``added`` those of the base, which no adapter changes."""
        last, adapters = self.model.config.num_hidden_layers, None if added is None else self.adapters
        final = decode(self.model, hidden, first=self.layer, last=last, added=added, adapters=adapters)
        normed: Tensor = self.model.model.norm(final)
        return normed

    def _answers(
        self, final: Tensor, rows: Sequence[Row], asked: Sequence[Sequence[Asked]]
    ) -> tuple[Tensor, float]:
        """Cross-entropy on the answers' tokens, and the share of them that would be said. First and value
        tokens count twice, the token after a value four times: a value that goes on is a wrong one."""
        chosen, targets, weights = [], [], []
        for index, (row, questions) in enumerate(zip(rows, asked, strict=True)):
            for a in questions:
                places = torch.arange(a.answer - 1, a.end - 1)
                weight, value = torch.ones(len(places)), a.value - a.answer
                if a.version == GENERAL:
                    weight[:8] = 3
                    weight[-1] = 0  # these answers were cut
                else:
                    weight[value : value + a.count] = 2
                    weight[0] = 2
                    weight[min(value + a.count, len(weight) - 1)] = 4
                chosen.append(final[index, places - row.start + len(row.before)])
                targets.append(self.pool.ids[places + 1])
                weights.append(weight)
        logits = self.model.lm_head(torch.cat(chosen)).float()
        weight, target = torch.cat(weights), torch.cat(targets)
        loss = F.cross_entropy(logits, target, reduction="none")
        right = (logits.argmax(dim=-1) == target).float().mean().item()
        return (loss * weight).sum() / weight.sum(), right

    def _kept(self, banks: Sequence[Bank], rng: random.Random) -> tuple[Tensor, list[Tensor]]:
        """KL to the base on a stretch of talk and on general questions, and the energy added to them."""
        rows: list[Row] = []
        judged: list[list[int]] = []
        nothing = torch.empty(0, dtype=torch.long)
        if self.quiet:
            number = rng.choice(self.quiet)
            start, length, _ = self.pool.streams[number]
            own = number in self.pool.told_in and rng.random() < 0.7
            bank = self._own_bank(rng, number, ()) if own else rng.choice(banks)
            rows.append(Row(start, min(length, QUIET), bank, nothing))
            judged.append(rng.sample(range(rows[0].length), min(JUDGED, rows[0].length)))
        for start, length, _ in rng.sample(self.general, min(OTHERS, len(self.general))):
            before = self._before(rng) if self.talk and rng.random() < 0.4 else nothing
            rows.append(Row(start, length, rng.choice(banks), before))
            ids = self.pool.ids[start : start + length]
            # A stream begins with the token that opens a turn; after the last of those, the answer.
            opened = int((ids == ids[0]).nonzero()[-1, 0])
            first = len(before)
            judged.append([first + at for at in range(min(opened + 2, length - 1), length)])
        if not rows:
            return torch.zeros(()), []
        hidden, added, energy = self._added(rows)
        where = (
            torch.tensor([row for row, places in enumerate(judged) for _ in places]),
            torch.tensor([place for places in judged for place in places]),
        )
        with torch.no_grad():
            plain = self.model.lm_head(self._upper(hidden, None)[where]).float().log_softmax(dim=-1)
        changed = self.model.lm_head(self._upper(hidden, added)[where]).float().log_softmax(dim=-1)
        apart = F.kl_div(changed, plain, reduction="none", log_target=True).sum(dim=-1)
        return apart.mean(), energy
