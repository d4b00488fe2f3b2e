"""Token streams for training: facts told, questions asked, real filler between, every token labelled.

A stream looks like what the product feeds: system prompt (or only the attention sinks, as after the window
has
moved on), turns in the chat template, documents. ``labels`` say what the write gate should do (``VALUE``
tokens
are written, ``OTHER`` are not, ``IGNORE`` is not judged); ``Told`` and ``Asked`` say where facts are told
and asked.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from infinichat.corpus.facts import Fact, FactMaker, Question, Sentence, join
from infinichat.corpus.filler import Filler

OTHER, VALUE, IGNORE = 0, 1, 2
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
SINKS = "<|im_start|>system\nYou"
ACKS = (
    "Got it.",
    "Okay, I will remember that.",
    "Thanks for telling me.",
    "Noted.",
    "Thank you, I will keep that in mind.",
    "I'm glad you told me. Is there anything else I can help you with?",
    "That's good to know! How can I help you today?",
    "I understand. Please let me know if you need anything else.",
)


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
    """A question about fact number ``fact``; ``version`` -1: never told. The answer's tokens are
    ``[answer, end)`` with the closing control token; the value's (or of "something you ...") ``[value, value
    + count)``."""

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

    def question(self, question: Question, number: int, version: int, space_before: bool = True) -> None:
        """A user turn that asks and an assistant turn that answers."""
        self.turn("user", question.ask)
        start = self.turn("assistant", question.answer)
        prefix = question.answer.rindex(" is ") + 4
        low, high = question.span if question.span else (prefix, len(question.answer) - 1)
        self.answers.append((start, start + len(question.answer), start + low, start + high, number, version))

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

    def __init__(self, maker: FactMaker, filler: Filler, tokenizer: Any, rng: random.Random) -> None:
        self.maker, self.filler, self.tokenizer, self.rng = maker, filler, tokenizer, rng
        self.facts: list[list[Fact]] = []  # every version of every fact
        self._keys: set[tuple[str, str, str]] = set()

    def new_fact(self) -> int:
        """Draws a fact whose subject and attribute are not in this maker yet; returns its number."""
        while True:
            fact = self.maker.fact(self.rng)
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
            stream.turn(role, content[:700], ignore=dialogue.tells and role == "user")

    def tell_stream(self, messages: int) -> Stream:
        """``messages`` messages that tell one to four facts each, with dialogue between, some corrected
        later."""
        rng, stream = self.rng, self.opening()
        told: list[int] = []
        for _ in range(messages):
            if rng.random() < 0.15:
                self.chatter(stream, 1)
            count = rng.choice((1, 1, 1, 2, 2, 3, 4))
            new = [self.new_fact() for _ in range(count)]
            self._tell(stream, [(n, None) for n in new])
            told += [n for n in new if len(self.facts[n]) == 1]
            if told and rng.random() < 0.6:
                number = told.pop(rng.randrange(len(told)))
                self._tell(stream, [(number, self.facts[number][-1])])
        return stream.encode(self.tokenizer)

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
        stream.turn("assistant", rng.choice(ACKS))

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

    def ask_stream(self, numbers: list[int], *, unknown: float, chatter: float) -> Stream:
        """Questions about the facts ``numbers`` (about a share ``unknown`` as never told), dialogue before
        and between."""
        rng, stream = self.rng, self.opening()
        for number in numbers:
            if rng.random() < chatter:
                self.chatter(stream, 1)
            told = rng.random() >= unknown
            fact = self.facts[number][-1]
            stream.question(
                self.maker.ask(rng, fact, told=told), number, len(self.facts[number]) - 1 if told else -1
            )
        return stream.encode(self.tokenizer)
