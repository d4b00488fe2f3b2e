"""Token streams for training: facts told, questions asked, real filler between, every token labelled.

A stream looks like what the product feeds: system prompt (or only the attention sinks, as after the window
has moved on), turns in the chat template, documents. ``labels`` say what the write gate should do (``VALUE``
tokens are written, ``OTHER`` are not, ``IGNORE`` is not judged); ``Told`` and ``Asked`` say where facts are
told and asked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from infinichat.corpus.facts import FactMaker
from infinichat.corpus.filler import Filler
from infinichat.corpus.phrasings import ACKS
from infinichat.corpus.sentences import Fact, Question, Sentence, join
from infinichat.corpus.ways import KIND

OTHER, VALUE, IGNORE = 0, 1, 2
GENERAL = -2
"""The version of a question that has nothing to do with what was told."""

SAID_BACK = -3
"""The version of a reply to something told."""

LONG_PAGE = 12
"""Pieces of text before the first fact of a long page: about half a window."""

VERSIONS = 3
"""A fact is corrected at most twice."""
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
SINKS = "<|im_start|>system\nYou"

SAYING_BACK = "Got it. "
"""How the reply to one fact begins, which then is said back, unless it is told in somebody's own words."""

ALL_OF_IT = "Got it, I will remember all of that."
"""The reply to several facts at once."""

KEPT = "Got it, I will remember that."
"""The reply to a fact in somebody's own words: which of them is the value is easily mistaken."""

OF_THEMSELVES = re.compile(r"\b(I|i|[Mm]y|[Ww]e|[Oo]ur|mine|me)\b")
"""What users say of themselves in real dialogues may be facts: the write gate is not taught to pass them
over."""

REPLIED = 0.6
"""Share of the replies to something told that are to be learnt."""


@dataclass(frozen=True, slots=True)
class Told:
    """Tokens ``[start, start + count)`` of the stream are the value of fact number ``fact``, ``version`` 0,
    1, ..."""

    fact: int
    version: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about fact number ``fact``; ``version`` -1: never told. The answer's tokens are ``[answer,
    end)`` with the closing control token; the value's (or of "something you ...") ``[value, value +
    count)``. ``fact`` -1 and ``version`` ``GENERAL``: a general question, and all of its answer is the
    value; ``SAID_BACK``: the reply to something told, with the value where one is said back, else count
    0."""

    fact: int
    version: int
    answer: int
    value: int
    count: int
    end: int


@dataclass(slots=True)
class Stream:
    """Ids, labels and places of one stream."""

    ids: list[int]
    labels: list[int]
    told: list[Told] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


class StreamText:
    """Text under construction with character marks, turned into a ``Stream`` by a fast tokenizer."""

    def __init__(self) -> None:
        self.text = ""
        self.values: list[tuple[int, int, int, int]] = []  # start, end, fact, version
        self.ignored: list[tuple[int, int]] = []
        self.answers: list[
            tuple[int, int, int, int, int, int]
        ] = []  # start, end, value start, end, fact, version

    def turn(self, role: str, content: str, *, ignore: bool = False) -> int:
        """Appends a turn; returns where its content starts."""
        start = len(self.text) + len(f"<|im_start|>{role}\n")
        self.text += f"<|im_start|>{role}\n{content}<|im_end|>\n"
        if ignore:
            self.ignored.append((start, start + len(content)))
        return start

    def mark(self, sentence: Sentence, at: int, numbers: dict[Fact, tuple[int, int]]) -> None:
        """Marks the values of ``sentence``, which starts at ``at``; ``numbers``: fact -> (number,
        version)."""
        for start, end, fact in sentence.spans:
            self.values.append((at + start, at + end, *numbers[fact]))

    def question(self, question: Question, number: int, version: int) -> None:
        """A user turn that asks and an assistant turn that answers."""
        self.turn("user", question.ask)
        start = self.turn("assistant", question.answer)
        low, high = question.span
        self.answers.append((start, start + len(question.answer), start + low, start + high, number, version))

    def reply(self, sentences: Sequence[Sentence]) -> None:
        """The assistant turn, to be learnt, after a message that told ``sentences``."""
        told = [(sentence.echo, fact) for sentence in sentences for *_, fact in sentence.spans]
        text, low, high = ALL_OF_IT if len(told) > 1 else KEPT, 0, 0
        if len(told) == 1 and not told[0][1].kind.startswith(KIND):
            echo, value = told[0][0], told[0][1].value
            low = len(SAYING_BACK + echo)
            high = low + len(value)
            text = f"{SAYING_BACK}{echo}{value}."
        start = self.turn("assistant", text)
        self.answers.append((start, start + len(text), start + low, start + high, -1, SAID_BACK))

    def encode(self, tokenizer: Any) -> Stream:
        """Ids by ``tokenizer`` (a fast one: character offsets are needed) with all marks moved to tokens."""
        coded = tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(coded["input_ids"]), coded["offset_mapping"]
        labels = [OTHER] * len(ids)
        for low, high in self.ignored:
            for index in token_range(offsets, self.text, low, high):
                labels[index] = IGNORE
        stream = Stream(ids, labels)
        for low, high, number, version in self.values:
            places = token_range(offsets, self.text, low, high)
            for index in places:
                labels[index] = VALUE
            stream.told.append(Told(number, version, places.start, len(places)))
        for low, high, value_low, value_high, number, version in self.answers:
            whole = token_range(offsets, self.text, low, high)
            value = range(whole.start, whole.start)
            if value_low < value_high:
                value = token_range(offsets, self.text, value_low, value_high)
            stream.asked.append(Asked(number, version, whole.start, value.start, len(value), whole.stop + 1))
        return stream


def token_range(offsets: list[tuple[int, int]], text: str, low: int, high: int) -> range:
    """Tokens that overlap characters [low, high), with a lone blank before them (digits have one of their
    own)."""
    first = next(i for i, (a, b) in enumerate(offsets) if b > low and b > a)
    last = first
    while last < len(offsets) and offsets[last][0] < high:
        last += 1
    if first and offsets[first][0] == low and text[offsets[first - 1][0] : offsets[first - 1][1]] == " ":
        first -= 1
    return range(first, last)


class StreamMaker:
    """Draws streams of one side: ``tell_streams`` and ``ask_streams`` share the facts numbered in
    ``facts``."""

    def __init__(
        self,
        maker: FactMaker,
        filler: Filler,
        tokenizer: Any,
        rng: random.Random,
        *,
        general: Sequence[tuple[str, str]] = (),
    ) -> None:
        """``general`` are questions about other things with the base model's answers."""
        self.maker, self.filler, self.tokenizer, self.rng = maker, filler, tokenizer, rng
        self.general = general
        self.settled: list[int] = []  # told in earlier streams; some are corrected later
        self.facts: list[list[Fact]] = []  # every version of every fact
        self._keys: set[tuple[str, str, str]] = set()

    def new_fact(self, beside: int | None = None) -> int:
        """Draws a fact whose subject and attribute are not in this maker yet, about whom fact ``beside`` is
        about where that is given; returns its number."""
        while True:
            near = self.facts[beside][0] if beside is not None else None
            fact = (
                self.maker.fact(self.rng)
                if near is None or near.subject == "thing"
                else self.maker.fact_about(self.rng, near.subject, near.name)
            )
            if fact.key not in self._keys:
                break
        self._keys.add(fact.key)
        self.facts.append([fact])
        return len(self.facts) - 1

    def opening(self) -> StreamText:
        """A stream's start: the whole system prompt, or the sinks alone."""
        stream = StreamText()
        stream.text = SYSTEM if self.rng.random() < 0.5 else SINKS
        return stream

    def chatter(self, stream: StreamText, turns: int) -> None:
        """Appends real dialogue."""
        dialogue = self.filler.turns(self.rng, turns)
        for role, content in dialogue.messages:
            tells = role == "user" and (dialogue.tells or bool(OF_THEMSELVES.search(content)))
            stream.turn(role, content[:700], ignore=tells)

    def tell_stream(self, messages: int, *, before: int = 0) -> Stream:
        """``messages`` messages that tell one to four facts each, after ``before`` turns of dialogue and with
        some between; some are corrected later, once or twice, in the same stream or a later one."""
        rng, stream = self.rng, self.opening()
        told: list[int] = []
        for _ in range(before):
            self.chatter(stream, 1)
        for _ in range(messages):
            if rng.random() < 0.15:
                self.chatter(stream, 1)
            if rng.random() < 0.2:
                new = self.tell_pair(stream)
            else:
                new = [self.new_fact()]
                for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
                    new.append(self.new_fact(beside=new[0] if rng.random() < 0.3 else None))
                self._tell(stream, [(n, None) for n in new])
            told += new
            if told and rng.random() < 0.7:
                earlier = self.settled if self.settled and rng.random() < 0.3 else told
                corrected = [earlier.pop(rng.randrange(len(earlier)))]
                if earlier and rng.random() < 0.3:
                    corrected.append(earlier.pop(rng.randrange(len(earlier))))
                self._tell(stream, [(number, self.facts[number][-1]) for number in corrected])
                # Some once more, later.
                told += [n for n in corrected if len(self.facts[n]) < VERSIONS and rng.random() < 0.5]
        self.settled += told
        return stream.encode(self.tokenizer)

    def tell_pair(self, stream: StreamText) -> list[int]:
        """A message with two facts about the same one, the second with a pronoun; returns their numbers."""
        first = self.new_fact()
        while self.facts[first][0].subject == "thing":
            first = self.new_fact()
        second = self.new_fact(beside=first)
        one, two = self.facts[first][0], self.facts[second][0]
        message = self.maker.tell_both(self.rng, one, two)
        at = stream.turn("user", message.text)
        stream.mark(message, at, {one: (first, 0), two: (second, 0)})
        self._reply(stream, [message])
        return [first, second]

    def _tell(self, stream: StreamText, which: list[tuple[int, Fact | None]]) -> None:
        rng, parts, numbers = self.rng, [], {}
        for number, old in which:
            fact = self.facts[number][-1]
            if old is not None:
                fact = self.maker.corrected(rng, old)
                self.facts[number].append(fact)
            numbers[fact] = (number, len(self.facts[number]) - 1)
            parts.append(self.maker.tell(rng, fact, old=old))
        if rng.random() < 0.25:
            parts.insert(0, Sentence(self.filler.sentence(rng)))
        if rng.random() < 0.15:
            parts.append(Sentence(self.filler.sentence(rng)))
        message = join(parts)
        stream.mark(message, stream.turn("user", message.text), numbers)
        self._reply(stream, parts)

    def _reply(self, stream: StreamText, parts: Sequence[Sentence]) -> None:
        if self.rng.random() < REPLIED:
            stream.reply(parts)
        else:
            stream.turn("assistant", self.rng.choice(ACKS))

    def book_stream(self, chars: int, facts: int) -> Stream:
        """Prose as a document or as plain text, with ``facts`` sentences that tell a fact in the middle of
        it."""
        rng, stream = self.rng, self.opening()
        plain = rng.random() < 0.4
        if not plain:
            stream.text += "<|im_start|>user\n"
        pieces = [self.filler.prose(rng, chars // (facts + 1)) for _ in range(facts + 1)]
        for index, piece in enumerate(pieces):
            stream.text += piece
            if index < facts:
                number = self.new_fact()
                sentence = self.maker.tell(rng, self.facts[number][0])
                stream.text += rng.choice((" ", "\n", "\n\n"))
                stream.mark(sentence, len(stream.text), {self.facts[number][0]: (number, 0)})
                stream.text += sentence.text + rng.choice((" ", "\n", "\n\n"))
        stream.text += "" if plain else "<|im_end|>\n"
        return stream.encode(self.tokenizer)

    def page_stream(self, tells: int, asks: Sequence[int]) -> Stream:
        """Text outside of any conversation: ``tells`` sentences that tell a fact in the middle of it, then
        the facts numbered in ``asks`` once more, each up to its value and with it."""
        rng, stream, text = self.rng, StreamText(), self._lines()
        # A gate that has not seen a window full of the same lines takes what comes then for more of them.
        stream.text = "".join(text() for _ in range(rng.choice((1, LONG_PAGE)) if tells else 1))
        for _ in range(tells):
            number = self.new_fact()
            sentence = self.maker.tell(rng, self.facts[number][0])
            stream.text += rng.choice((" ", " ", "\n\n"))
            stream.mark(sentence, len(stream.text), {self.facts[number][0]: (number, 0)})
            stream.text += sentence.text + text()
        for number in asks:
            at, question = len(stream.text), self.maker.ask_on_page(rng, self.facts[number][-1])
            low, high = (at + place for place in question.span)
            stream.answers.append((low, high, low, high, number, len(self.facts[number]) - 1))
            stream.text += question.answer + "."
            if rng.random() < 0.4:
                stream.text += text()
        return stream.encode(self.tokenizer)

    def _lines(self) -> Callable[[], str]:
        """A source of some lines of text: prose, or the same few sentences over and over."""
        rng = self.rng
        if rng.random() < 0.5:
            return lambda: " " + self.filler.prose(rng, rng.randint(80, 320))
        lines = " " + " ".join(self.filler.sentence(rng) for _ in range(rng.randint(1, 3)))
        return lambda: lines * rng.randint(1, max(1, 320 // len(lines)))

    def mixed_stream(self) -> Stream:
        """A young conversation: little or nothing told, and at once questions about it, about what was not
        told, and about other things."""
        rng, stream = self.rng, self.opening()
        told: list[int] = []
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            if rng.random() < 0.3:
                told += self.tell_pair(stream)
            else:
                told.append(self.new_fact())
                self._tell(stream, [(told[-1], None)])
        if told and rng.random() < 0.2:
            number = rng.choice(told)
            self._tell(stream, [(number, self.facts[number][-1])])
        for _ in range(rng.randint(3, 5)):
            draw = rng.random()
            if self.general and draw < 0.45:
                ask, answer = rng.choice(self.general)
                stream.turn("user", ask)
                at = stream.turn("assistant", answer)
                if answer:
                    stream.answers.append((at, at + len(answer), at, at + len(answer), -1, GENERAL))
                continue
            known = bool(told) and draw < 0.75
            number = rng.choice(told) if known else self._never_told(told)
            version = len(self.facts[number]) - 1 if known else -1
            stream.question(self.maker.ask(rng, self.facts[number][-1], told=known), number, version)
        return stream.encode(self.tokenizer)

    def _never_told(self, told: Sequence[int]) -> int:
        """A fact to ask for in vain, half of the time the nearest neighbour of one that was ``told``."""
        beside = self.rng.choice(told) if told else None
        if beside is None or self.rng.random() < 0.5:
            return self.new_fact(beside=beside)
        fact = self.maker.sibling(self.rng, self.facts[beside][0])
        if fact.key in self._keys:
            return self.new_fact(beside=beside)
        self._keys.add(fact.key)
        self.facts.append([fact])
        return len(self.facts) - 1

    def talk_stream(self, turns: int) -> Stream:
        """Dialogue and nothing else."""
        stream = self.opening()
        self.chatter(stream, turns)
        return stream.encode(self.tokenizer)

    def ask_stream(self, numbers: list[int], *, unknown: float, chatter: float, before: int = 0) -> Stream:
        """Questions about the facts ``numbers`` (about a share ``unknown`` as never told), after ``before``
        turns of dialogue, with dialogue and general questions between."""
        rng, stream = self.rng, self.opening()
        for _ in range(before):
            self.chatter(stream, 1)
        for number in numbers:
            if rng.random() < chatter:
                self.chatter(stream, 1)
            if self.general and rng.random() < 0.12:
                for role, content in zip(("user", "assistant"), rng.choice(self.general), strict=True):
                    stream.turn(role, content)
            told = rng.random() >= unknown
            fact = self.facts[number][-1]
            stream.question(
                self.maker.ask(rng, fact, told=told), number, len(self.facts[number]) - 1 if told else -1
            )
        return stream.encode(self.tokenizer)
