"""The last stage of a bank memory: what its reads add to the residual, and how the layers above use it.

The layers above are frozen but for what a read carries there (``model.adapters``): low-rank changes of their
attention, which learn to repeat what a question asks for, word by word, and to say that it was never told,
and the values that were found, said once more at the vocabulary head.

Answers are learned by cross-entropy under banks of many facts. Everything else must stay the base's: its own
distribution on talk and on general questions is held by KL under the same banks, what is added where nothing
is asked costs energy, and so does an adapter that opens there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.corpus.conversations import GENERAL, Asked
from infinichat.model.adapters import Carried
from infinichat.model.bank_memory import BankMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.plain import decode
from infinichat.training.pool import Episode, Pool
from infinichat.training.reading import Bank, follow, project, read, stray_tokens, write

READ = ("out", "confidence", "ending", "found_bias", "read_gate", "adapt_in", "adapt_in_bias", "adapt_out")
CARRIED = ("carry", "say_final")
READ_SCALARS = ("alpha", "read_confidence", "read_bias", "carry_bias", "say")
QUIET, OTHERS = 160, 3
"""Tokens of talk, and how many general questions, that are held to the base's distribution in a step."""

SILENT, PIECE = 3, 400
"""Pieces of talk in a step, and their tokens, where nothing should be added and no adapter be open. They cost
little: no layer above the memory has to be run for them."""

SHUT, HARDEST = 1.0, 0.05
"""What an adapter costs that is open where nothing is asked, in nats: in the mean of all those tokens, and
once more in the mean of the share of them where it is furthest open."""

YOUNG = 0.33
"""Share of young conversations among those with questions."""

JUDGED = 48
"""Tokens of that talk whose distributions are compared: first those that open a turn, where a model that
would rather refuse does it."""

OPENING = 6
"""Tokens at the start of a turn, with those that mark it."""

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
    """Trains the read into the residual and what it carries on, adapters where the memory has some."""

    name = "recall"

    def __init__(
        self,
        memory: BankMemory,
        pool: Pool,
        model: InfiniForCausalLM,
        *,
        layer: int,
        rate: float = 1e-3,
        streams: int = 3,
        longest: int = 360,
    ) -> None:
        self.memory, self.pool, self.model, self.layer = memory, pool, model, layer
        self.streams, self.longest = streams, longest
        self.parameters = dict(memory.named_parameters())
        adapters = [name for name in self.parameters if name.startswith("adapters.")]
        self.rates = dict.fromkeys((*READ, *adapters), rate) | dict.fromkeys(CARRIED, 3 * rate)
        self.rates |= dict.fromkeys(READ_SCALARS, 3e-2)
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
        hidden, added, carried, energy = self._added(rows)
        final = self._upper(hidden, added, carried)
        answers, right = self._answers(final, rows, asked)
        kept, opened, more = self._kept([row.bank for row in rows], rng)
        for row, answered, spent in zip(rows, asked, energy, strict=True):
            silent = torch.ones(len(spent))
            for a in answered:
                silent[a.answer - 1 - row.start : a.end - 1 - row.start] = 0
            more.append(spent[silent > 0])
        silence = torch.cat(more).mean()
        numbers = {"answers": answers.item(), "right": right, "kept": kept.item(), "added": silence.item()}
        numbers["opened"] = opened.item()
        return answers + 2 * kept + 3 * silence + SHUT * opened, numbers

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

    def _read(self, row: Row) -> tuple[Tensor, Carried, Tensor]:
        """What the memory adds to the row's own tokens [n, C], what it carries on for them, and the share
        [n] of their own energy that is added."""
        places, bank = torch.arange(row.start, row.start + row.length), row.bank
        with torch.no_grad():
            # What this stream tells itself is there from the next token on.
            own = (bank.places >= row.start) & (bank.places < row.start + row.length)
            unseen = own[None] & (bank.places[None] >= places[:, None])
            queries = project(self.memory, self.pool.around(places))
            p = read(self.memory, bank, queries, unseen=unseen).exp()
            p, ended = follow(self.pool, bank, places, p, unseen=unseen)
            values = p[:, :-1] @ self.pool.values(bank.ids)
            something = (~unseen.all(dim=1, keepdim=True)).float()
        got, carried = self.memory.added(
            self.pool.inputs(places), values, p[:, -1:], ended[:, None], something
        )
        own_energy = self.pool.hidden[places].float().square().sum(dim=-1).clamp(min=1.0)
        return got, carried, got.square().sum(dim=-1) / own_energy

    def _added(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Carried, list[Tensor]]:
        """Padded states [B, T, C], what the memory adds to them and carries on, and its share of the rows'
        own energy."""
        longest = max(len(row.before) + row.length for row in rows)
        hidden, added, kept, energy = [], [], [], []
        for row in rows:
            got, carried, share = self._read(row)
            first, rest = len(row.before), longest - len(row.before) - row.length
            places = torch.cat((row.before, torch.arange(row.start, row.start + row.length)))
            hidden.append(F.pad(self.pool.hidden[places], (0, 0, 0, rest)))
            added.append(F.pad(got, (0, 0, first, rest)))
            kept.append(
                [F.pad(t, (0, 0, first, rest)) for t in (carried.opened, carried.values, carried.wish)]
            )
            energy.append(share)
        opened, values, wish = (torch.stack(parts) for parts in zip(*kept, strict=True))
        carried = Carried(carried.adapters, opened, values, wish, carried.by_final, carried.scale)
        states = torch.stack(hidden).to(self.model.model.norm.weight.dtype)
        return states, torch.stack(added), carried, energy

    def _upper(self, hidden: Tensor, added: Tensor | None = None, carried: Carried | None = None) -> Tensor:
        """The final states; without ``added`` those of the base."""
        last = self.model.config.num_hidden_layers
        final = decode(self.model, hidden, first=self.layer, last=last, added=added, carried=carried)
        normed: Tensor = self.model.model.norm(final)
        return normed if carried is None else carried.spoken(normed)

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

    def _kept(self, banks: Sequence[Bank], rng: random.Random) -> tuple[Tensor, Tensor, list[Tensor]]:
        """KL to the base on a stretch of talk and on general questions, how far the adapters are open there
        and on other talk, and the energy added to all of it."""
        rows: list[Row] = []
        judged: list[list[int]] = []
        nothing = torch.empty(0, dtype=torch.long)
        if self.quiet:
            number = rng.choice(self.quiet)
            own = number in self.pool.told_in and rng.random() < 0.7
            bank = self._own_bank(rng, number, ()) if own else rng.choice(banks)
            start, length = self._some_turns(number, rng)
            rows.append(Row(start, length, bank, nothing))
            ids = self.pool.ids[start : start + length]
            turns = (ids == ids[0]).nonzero()[:, 0].tolist()
            opening = {at + after for at in turns for after in range(OPENING) if at + after < length}
            rest = rng.sample(range(length), length)
            judged.append(sorted(opening | set(rest[: max(0, JUDGED - len(opening))])))
        for start, length, _ in rng.sample(self.general, min(OTHERS, len(self.general))):
            before = self._before(rng) if self.talk and rng.random() < 0.4 else nothing
            rows.append(Row(start, length, rng.choice(banks), before))
            ids = self.pool.ids[start : start + length]
            # A stream begins with the token that opens a turn; after the last of those, the answer.
            opened = int((ids == ids[0]).nonzero()[-1, 0])
            first = len(before)
            judged.append([first + at for at in range(min(opened + 2, length - 1), length)])
        if not rows:
            return torch.zeros(()), torch.zeros(()), []
        hidden, added, carried, energy = self._added(rows)
        parts = zip(carried.opened, rows, strict=True)
        shut = [part[: row.length + len(row.before)] for part, row in parts]
        for number in rng.sample(self.talk, min(SILENT, len(self.talk))):
            start, length, _ = self.pool.streams[number]
            silent = self._read(Row(start, min(length, PIECE), rng.choice(banks), nothing))
            shut.append(silent[1].opened)
            energy.append(silent[2])
        where = (
            torch.tensor([row for row, places in enumerate(judged) for _ in places]),
            torch.tensor([place for places in judged for place in places]),
        )
        with torch.no_grad():
            plain = self.model.lm_head(self._upper(hidden)[where]).float().log_softmax(dim=-1)
        changed = self.model.lm_head(self._upper(hidden, added, carried)[where]).float().log_softmax(dim=-1)
        apart = F.kl_div(changed, plain, reduction="none", log_target=True).sum(dim=-1)
        flat = torch.cat(shut).flatten()
        hardest = flat.topk(max(1, int(HARDEST * len(flat)))).values
        return apart.mean(), flat.mean() + hardest.mean(), energy

    def _some_turns(self, number: int, rng: random.Random) -> tuple[int, int]:
        """Start and length of a part of a stream that begins with a turn, as the stream itself does."""
        start, length, _ = self.pool.streams[number]
        ids = self.pool.ids[start : start + length]
        at = rng.choice((ids == ids[0]).nonzero()[:, 0].tolist())
        return start + at, min(length - at, QUIET)
