"""The last stage of a bank memory: what its reads add to the residual, and how the layers above use it.

The layers above are frozen but for what a read carries there (``model.adapters``): low-rank changes of their
attention, which learn to repeat what a question asks for, word by word, and to say that it was never told,
and the values that were found, said once more at the vocabulary head.

Answers are learned by cross-entropy under banks of many facts. Everything else must stay the base's: its own
distribution on talk and on general questions is held by KL under the same banks, what is added where nothing
is asked costs energy, and so does an adapter that opens there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.corpus.conversations import GENERAL, VALUE, Asked
from infinichat.errors import UsageError
from infinichat.model.adapters import Carried
from infinichat.model.bank_memory import BankMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.opening import Opening, said
from infinichat.training.plain import Past, past_of
from infinichat.training.pool import Episode, Pool
from infinichat.training.reading import Bank, write
from infinichat.training.rows import Held, Row, Rows
from infinichat.training.strays import Strays

READ = ("out", "confidence", "ending", "found_bias", "read_gate", "adapt_in", "adapt_in_bias", "adapt_out")
CARRIED = ("carry", "say_final")
READ_SCALARS = ("alpha", "read_confidence", "read_bias", "carry_bias", "say")
QUIET, OTHERS = 160, 3
"""Tokens of talk, and how many general questions, that are held to the base's distribution in a step."""

SILENT, PIECE = 2, 300
"""Pieces of talk and of books in a step, and their tokens, where nothing should be added and no adapter be
open, with what is let through of them in the memory. They cost little: no layer above the memory has to be
run for them."""

SHUT, HARDEST = 1.0, 0.05
"""What an adapter costs that is open where nothing is asked, in nats: in the mean of all those tokens, and
once more in the mean of the share of them where it is furthest open."""

ALONE, SHARING = 16, (1, 2, 4, 8)
"""Questions and tellings of a step that stand alone behind the same other talk, which is run once: the first
question has no answered one before it that shows how answers look. So many are put to one memory."""

FRESH, FIRST_LONGEST = 0.3, 160
"""Share of the steps in which they stand at the start of a conversation instead, and the tokens that it has
up to the end of the answer."""

COMPANY, LITTLE = (0, 0, 8, 32, 96), (0, 0, 0, 4, 32)
"""Tokens in a memory that nobody meant to be written, where it is asked and where something is just told."""

TOLD = 0.35
"""Share of draws that give a telling, to be answered by saying it back or that it will be remembered; the
others give questions."""

YOUNG, PAGES = 0.35, 0.25
"""Shares of young conversations, and of pages, among the streams that are taken whole."""

JUDGED = 48
"""Tokens of the talk whose distributions are compared, first those that open a turn: there one refuses."""

OPENING = 6
"""Tokens at the start of a turn, with those that mark it."""

BEFORE = (48, 800)
"""Tokens of the talk that comes before: in a conversation of any length the window is full of it."""

BEHIND = 0.4
"""Share of the steps in which talk and general questions come after other talk."""


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
        streams: int = 2,
        alone: int = ALONE,
        longest: int = 360,
    ) -> None:
        self.memory, self.pool, self.model, self.layer = memory, pool, model, layer
        self.streams, self.alone, self.longest = streams, alone, longest
        self.strays, self.rows = Strays(memory, pool), Rows(memory, pool, model, layer)
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
        if not by_stream:
            raise UsageError("The cache has no question with its answer; prepare more of it first.")
        kinds = {number: pool.streams[number][2] for number in by_stream}
        self.asking = sorted((n, asked) for n, asked in by_stream.items() if kinds[n] == "ask")
        self.telling = sorted((n, asked) for n, asked in by_stream.items() if kinds[n] == "tell")
        self.young = sorted((n, asked) for n, asked in by_stream.items() if kinds[n] == "mixed")
        self.pages = sorted((n, asked) for n, asked in by_stream.items() if kinds[n] == "page")
        apart = ("ask", "mixed", "page", "general")
        self.quiet = [n for n, s in enumerate(pool.streams) if s[2] not in apart]
        self.talk = [n for n, s in enumerate(pool.streams) if s[2] == "talk"]
        self.heard = [n for n, s in enumerate(pool.streams) if s[2] in ("talk", "book")]
        self.general = [s for s in pool.streams if s[2] == "general"]
        answering = (*self.asking, *self.young, *self.telling, *self.pages)
        self.begins: dict[int, int] = {}
        for a in pool.asked:
            self.begins.setdefault(int(pool.stream[a.answer]), a.answer)
        self.opening = Opening(memory, pool, [a for _, asked in answering for a in asked])

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        whole = self._drawn(self._whole, self.streams, rng)
        past: Past = ()
        if rng.random() < FRESH:
            alone = self._drawn(self._first, self.alone, rng)
        else:
            alone, past = self._drawn(self._apiece, self.alone, rng), self._past(rng)
        chosen, energy = list[Tensor](), list[Tensor]()
        for rows, earlier in ((whole, ()), (alone, past)):
            if rows:
                hidden, added, carried, spent = self.rows.added(rows)
                final = self.rows.upper(hidden, added, carried, earlier)
                chosen += [final[index, places] for index, places in enumerate(map(self._places, rows))]
                energy += [part[self._silent(row)] for part, row in zip(spent, rows, strict=True)]
        answers, right = self._answers(torch.cat(chosen), whole + alone)
        kept, opened, more = self._kept([row.bank for row in whole + alone], rng)
        silence = _mean(torch.cat(energy + more))
        opening = self.opening.loss(rng)
        numbers = {"answers": answers.item(), "right": right, "kept": kept.item(), "added": silence.item()}
        numbers |= {"opened": opened.item(), "opening": opening.item()}
        return answers + 2 * kept + 3 * silence + SHUT * opened + opening, numbers

    @staticmethod
    def _drawn(draw: Callable[[random.Random], Sequence[Row]], count: int, rng: random.Random) -> list[Row]:
        """``count`` rows, or fewer where many draws give none."""
        rows = (row for _ in range(20 * count) for row in draw(rng))
        return list(itertools.islice(rows, count))

    def _whole(self, rng: random.Random) -> Sequence[Row]:
        """A stream from its start on with all that is asked, or told, in it."""
        draw, kinds = rng.random(), [self.asking, self.telling]
        if draw < YOUNG + PAGES:
            kinds = [self.young if draw < YOUNG else self.pages]
        streams = rng.choice(
            [s for s in kinds if s] or [s for s in (self.asking, self.young, self.pages) if s]
        )
        number, asked = rng.choice(streams)
        start = self.pool.streams[number][0]
        asked = [a for a in asked if a.end - start <= self.longest]
        if not asked:
            return ()
        end = asked[-1].end
        asks = streams is self.asking or streams is self.pages
        if asks:
            bank = self._written(rng, self._episode(rng, asked))
        else:
            bank = self._own_bank(rng, number, asked, upto=end)
        return (Row(start, end - start, bank, asked),)

    def _apiece(self, rng: random.Random) -> Sequence[Row]:
        """Some questions with their answers that are put to one memory, or a telling with the reply to it:
        each a row by itself."""
        tells = bool(self.telling) and (not self.asking or rng.random() < TOLD)
        streams = self.telling if tells else self.asking
        if not streams:
            return ()
        chosen = [rng.choice(rng.choice(streams)[1]) for _ in range(1 if tells else rng.choice(SHARING))]
        if tells:
            bank = self._own_bank(rng, int(self.pool.stream[chosen[0].answer]), (), upto=chosen[0].end)
        else:
            episode = self._episode(rng, [a for a in chosen if a.fact >= 0])
            # Two that contradict each other cannot both be told.
            chosen = [a for a in chosen if a.version < 0 or a in episode.asked]
            bank = self._written(rng, episode)
        turns = ((self._turn(a), a) for a in chosen)
        return [Row(turn, a.end - turn, bank, [a]) for turn, a in turns if a.end - turn <= self.longest]

    def _first(self, rng: random.Random) -> Sequence[Row]:
        """The first answer of a conversation, or the first reply to a telling, that is learned from, with
        everything before it."""
        tells = bool(self.telling) and (not self.asking or rng.random() < TOLD)
        streams = self.telling if tells else self.asking
        if not streams:
            return ()
        number, asked = rng.choice(streams)
        start, first = self.pool.streams[number][0], asked[0]
        if first.answer != self.begins[number] or first.end - start > FIRST_LONGEST:
            return ()
        if tells:
            bank = self._own_bank(rng, number, (), upto=first.end)
        else:
            bank = self._written(rng, self._episode(rng, [first]))
        return (Row(start, first.end - start, bank, [first]),)

    def _turn(self, question: Asked) -> int:
        """Where the turn opens that asks ``question``; a stream begins with the token that opens one."""
        start = self.pool.streams[int(self.pool.stream[question.answer])][0]
        opened = (self.pool.ids[start : question.answer] == self.pool.ids[start]).nonzero()[:, 0]
        return start + int(opened[-2:][0])

    def _past(self, rng: random.Random) -> Past:
        """Some talk that comes before."""
        if not self.talk:
            return ()
        start, length, _ = self.pool.streams[rng.choice(self.talk)]
        count = min(length, rng.randint(*BEFORE))
        start += rng.randint(0, length - count)
        states = self.pool.hidden[start : start + count].to(self.model.model.norm.weight.dtype)
        return past_of(self.model, states[None], first=self.layer, last=self.model.config.num_hidden_layers)

    @staticmethod
    def _places(row: Row) -> Tensor:
        """The places in the row [n] whose next tokens are the answers'."""
        return torch.cat([torch.arange(a.answer - 1, a.end - 1) - row.start for a in row.asked])

    def _silent(self, row: Row) -> Tensor:
        """[length] True where nothing should be added: outside of the answers, and of replies to what is
        told."""
        silent = ~self._replies(row.start, row.length)
        silent[self._places(row)] = False
        return silent

    def _replies(self, start: int, length: int) -> Tensor:
        """[length] True in the turns right after those that tell something, for a part of a stream that
        begins with a turn."""
        ids = self.pool.ids[start : start + length]
        turn = (ids == ids[0]).cumsum(dim=0)
        told = turn[self.pool.labels[start : start + length] == VALUE]
        return torch.isin(turn, told + 1)

    def _own_bank(self, rng: random.Random, number: int, questions: Sequence[Asked], *, upto: int) -> Bank:
        """What stream ``number`` tells itself before place ``upto``, and what else of it is let through,
        after nothing or after some other facts and strays."""
        let = (*self.pool.told_in.get(number, ()), *self.strays.of.get(number, ()))
        own = [told for told in let if told.start < upto]
        own.sort(key=lambda told: told.start)
        taken = {self.pool.facts[t.fact].key for t in own if t.fact >= 0}
        taken |= {self.pool.facts[a.fact].key for a in questions if a.fact >= 0}
        count = rng.choice((0, 0, 0, 0, 2, 8, 32))
        others = self.pool.episode(count, rng).told if count else []
        before = [t for t in others if self.pool.facts[t.fact].key not in taken]
        told = self.strays.among(before, rng.choice(LITTLE), rng) + own
        with torch.no_grad():
            return write(self.memory, self.pool, Episode(told, [], []))

    def _episode(self, rng: random.Random, questions: Sequence[Asked]) -> Episode:
        """A past of which ``questions`` may be asked."""
        count, near = rng.choice((1, 2, 4, 8, 16, 32, 64, 128)), rng.choice((0.0, 0.3, 0.6))
        return self.pool.episode(count, rng, asked=questions, near=near)

    def _written(self, rng: random.Random, episode: Episode) -> Bank:
        episode = self.strays.into(episode, rng.choice(COMPANY), rng)
        with torch.no_grad():
            return write(self.memory, self.pool, episode)

    def _answers(self, final: Tensor, rows: Sequence[Row]) -> tuple[Tensor, float]:
        """Cross-entropy on the answers' tokens, whose final states are ``final`` [n, C], and the share of
        them that would be said. First and value tokens count twice, the token after a value four times: a
        value that goes on is a wrong one."""
        targets, weights = [], []
        for a in (a for row in rows for a in row.asked):
            weight, value = torch.ones(a.end - a.answer), a.value - a.answer
            if a.version == GENERAL:
                weight[:8] = 3
                weight[-1] = 0  # these answers were cut
            else:
                weight[value : value + a.count] = 2
                weight[0] = 2
                if a.count:
                    weight[min(value + a.count, len(weight) - 1)] = 4
            targets.append(self.pool.ids[a.answer : a.end])
            weights.append(weight)
        logits = self.model.lm_head(final).float()
        weight, target = torch.cat(weights), torch.cat(targets)
        loss = F.cross_entropy(logits, target, reduction="none")
        right = (logits.argmax(dim=-1) == target).float().mean().item()
        return (loss * weight).sum() / weight.sum(), right

    def _kept(self, banks: Sequence[Bank], rng: random.Random) -> tuple[Tensor, Tensor, list[Tensor]]:
        """KL to the base on a stretch of talk and on general questions, how far the adapters are open there
        and on other talk, and the energy added to all of it."""
        past = self._past(rng) if rng.random() < BEHIND else ()
        apart, shut, energy = [torch.zeros(0)], [torch.zeros(0)], [torch.zeros(0)]
        for held in (self._stretch(banks, rng), self._general(banks, rng)):
            if held:
                rows = [one.row for one in held]
                hidden, added, carried, spent = self.rows.added(rows)
                apart.append(self._apart(held, hidden, added, carried, past))
                parts = zip(held, carried.opened, spent, strict=True)
                for one, opened, used in parts:
                    shut.append(opened[: one.row.length][one.silent, 0])
                    energy.append(used[one.silent])
        for number in rng.sample(self.heard, min(SILENT, len(self.heard))):
            start, length, _ = self.pool.streams[number]
            start, length = start + rng.randint(0, max(0, length - PIECE)), min(length, PIECE)
            own = self._own_bank(rng, number, (), upto=start + length)
            got = self.rows.read(Row(start, length, own if len(own.ids) else rng.choice(banks)))
            shut.append(got[1].opened[:, 0])
            energy.append(got[2])
        flat, far = torch.cat(shut), torch.cat(apart)
        hardest = flat.topk(max(1, int(HARDEST * len(flat)))).values if len(flat) else flat
        return _mean(far), _mean(flat) + _mean(hardest), energy

    def _stretch(self, banks: Sequence[Bank], rng: random.Random) -> list[Held]:
        """A part of some talk, told facts or book."""
        if not self.quiet:
            return []
        number = rng.choice(self.quiet)
        start, length = self._some_turns(number, rng)
        own = number in self.pool.told_in and rng.random() < 0.7
        bank = self._own_bank(rng, number, (), upto=start + length) if own else rng.choice(banks)
        ids, silent = self.pool.ids[start : start + length], ~self._replies(start, length)
        turns = (ids == ids[0]).nonzero()[:, 0].tolist()
        opening = {at + after for at in turns for after in range(OPENING) if at + after < length}
        rest = rng.sample(range(length), length)
        places = sorted(opening | set(rest[: max(0, JUDGED - len(opening))]))
        return [Held(Row(start, length, bank), [at for at in places if bool(silent[at])], silent)]

    def _general(self, banks: Sequence[Bank], rng: random.Random) -> list[Held]:
        """Some general questions, with what the base says to them."""
        held: list[Held] = []
        for start, length, _ in rng.sample(self.general, min(OTHERS, len(self.general))):
            places = (said(self.pool, start, length) - start).tolist()
            row = Row(start, length, rng.choice(banks))
            held.append(Held(row, places, torch.ones(length, dtype=torch.bool)))
        return held

    def _apart(
        self, held: Sequence[Held], hidden: Tensor, added: Tensor, carried: Carried, past: Past
    ) -> Tensor:
        """KL [n] to the base at all judged places."""
        where = (
            torch.tensor([row for row, one in enumerate(held) for _ in one.judged], dtype=torch.long),
            torch.tensor([place for one in held for place in one.judged], dtype=torch.long),
        )
        with torch.no_grad():
            plain = self.model.lm_head(self.rows.upper(hidden, past=past)[where]).float().log_softmax(dim=-1)
        final = self.rows.upper(hidden, added, carried, past)[where]
        changed = self.model.lm_head(final).float().log_softmax(dim=-1)
        return F.kl_div(changed, plain, reduction="none", log_target=True).sum(dim=-1)

    def _some_turns(self, number: int, rng: random.Random) -> tuple[int, int]:
        """Start and length of a part of a stream that begins with a turn, as the stream itself does."""
        start, length, _ = self.pool.streams[number]
        ids = self.pool.ids[start : start + length]
        at = rng.choice((ids == ids[0]).nonzero()[:, 0].tolist())
        return start + at, min(length - at, QUIET)


def _mean(values: Tensor) -> Tensor:
    """The mean of [n], 0 of nothing."""
    return values.sum() / max(1, len(values))
