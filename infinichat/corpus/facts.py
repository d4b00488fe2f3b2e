"""Generated facts: how people tell them, ask for them, correct them, and what the right answer says.

A ``Fact`` is (subject, attribute, value). ``FactMaker`` draws facts, and renders them as sentences with the
place
of the value marked, so that a trainer knows which tokens a memory should write:

    tell      "By the way, Clara's locker code is 4821."          value at (34, 38)
    ask       "Do you remember Clara's locker code?"
    answer    "Clara's locker code is 4821."                      the value follows a restatement of the fact
    unknown   "Clara's locker code is something you have not told me."

Answers restate the fact because a memory read works best where the last words before the value are those of
the telling; who asks with a verb is answered with it ("Clara lives in Toronto."). Whether there is anything
to say is decided at the value's place, where the read is. Everything is drawn from the ``random.Random``
that is passed in. Three sides are kept apart: ``train``; ``seen`` (people and values never trained on,
attributes and phrasings trained on); ``held_out`` (attributes and phrasings never trained on as well).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from infinichat.corpus.attributes import BARE_THINGS, FAVOURITES, PERSONAL, PLACE_THINGS, PLACES
from infinichat.corpus.phrasings import (
    ASK,
    ASK_CORES,
    ASK_ENDINGS,
    ASK_HELD_OUT,
    ASK_KIND,
    ASK_MORE,
    ASK_OPENINGS,
    CORRECT,
    CORRECT_HELD_OUT,
    CORRECT_MORE,
    PAGE_ASK,
    PASSKEY,
    TELL,
    TELL_HELD_OUT,
    TELL_MORE,
)
from infinichat.corpus.spoken import PET_SPOKEN, SPOKEN, Spoken
from infinichat.corpus.vocabulary import KIN, MAKERS, NAMES, choose, is_held_out, words

PRONOUNS = (("She", "her"), ("He", "his"), ("They", "their"))
Side = Literal["train", "seen", "held_out"]
SubjectKind = Literal["user", "person", "kin", "thing"]
NOT_TOLD = "something you have not told me"
BARE = 0.35
"""Share of the things that belong to no place."""

COMBINED = 0.4
"""Share of the questions in training that are put together of parts."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Who (``name`` is empty for the user), what (``noun``, ``kind`` of value), and the value."""

    subject: SubjectKind
    name: str
    noun: str
    kind: str
    value: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What the fact is about; a later fact with the same key corrects this one."""
        return (self.subject, self.name, self.noun)


@dataclass(frozen=True, slots=True)
class Sentence:
    """Text with the character spans of values, and which fact each span belongs to; ``echo`` are the words
    before the value when the listener says it back."""

    text: str
    spans: tuple[tuple[int, int, Fact], ...] = ()
    echo: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its right answer, the span in it of the value or of what says that it was never told, and
    the fact."""

    ask: str
    answer: str
    span: tuple[int, int]
    fact: Fact


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _nouns() -> list[tuple[bool, str, str]]:
    """All attributes as (is about a thing, noun, kind of value)."""
    found: dict[tuple[bool, str], str] = {}
    for kind, nouns in PERSONAL.items():
        for noun in nouns:
            found[False, f"{noun}'s name" if kind == "pet" else noun] = kind
            if kind == "person":
                found[False, f"{noun}'s name"] = kind
    for kind, nouns in FAVOURITES.items():
        for rank, noun in enumerate(nouns):
            found.setdefault((False, f"favourite {noun}"), kind)
            if rank < 2:
                found.setdefault((False, f"least favourite {noun}"), kind)
    for place in PLACES:
        for kind, nouns in PLACE_THINGS.items():
            for noun in nouns:
                found.setdefault((True, f"{place} {noun}"), kind)
    return [(thing, noun, kind) for (thing, noun), kind in found.items()]


# attributes whose last word is never trained on, beside one composed attribute in eight
HELD_OUT_WORDS = words(
    "instrument, ticket number, sister, neighbour, parrot's name, cheese, flower, booking reference, badge "
    "number, "
    "passport number, bike colour, anniversary, closing time, codeword, coach, boat's name"
)


def is_held_out_noun(noun: str) -> bool:
    """Whether an attribute is kept for validation."""
    return is_held_out(noun) or any(noun == word or noun.endswith(" " + word) for word in HELD_OUT_WORDS)


class FactMaker:
    """Draws facts and sentences of one ``side``. Holds no random state: the caller passes
    ``random.Random``."""

    def __init__(self, side: Side = "train") -> None:
        self.side: Side = side
        held_out = side == "held_out"
        attributes = [a for a in _nouns() if is_held_out_noun(a[1]) == held_out]
        self.personal = [(noun, kind) for thing, noun, kind in attributes if not thing]
        self.things = [(noun, kind) for thing, noun, kind in attributes if thing]
        bare = BARE_THINGS if side == "train" else {}
        self.bare = [(noun, kind) for kind, nouns in bare.items() for noun in nouns]
        more = side == "train"
        self.tell_forms = TELL_HELD_OUT if held_out else TELL + more * TELL_MORE
        self.correct_forms = CORRECT_HELD_OUT if held_out else CORRECT + more * CORRECT_MORE
        self.ask_forms = ASK_HELD_OUT if held_out else ASK + more * ASK_MORE

    def subject(self, rng: random.Random) -> tuple[SubjectKind, str]:
        """Whose fact it is: mostly the user's own or a named person's."""
        draw = rng.random()
        if draw < 0.35:
            return "user", ""
        if draw < 0.8:
            return "person", choose(rng, NAMES, self.side != "train")
        return "kin", rng.choice(KIN)

    def fact(self, rng: random.Random) -> Fact:
        """A random fact of this side."""
        if rng.random() < 0.25:
            bare = bool(self.bare) and rng.random() < BARE
            noun, kind = rng.choice(self.bare if bare else self.things)
            return Fact("thing", "", noun, kind, self.value(rng, kind))
        return self.fact_about(rng, *self.subject(rng))

    def fact_about(self, rng: random.Random, subject: SubjectKind, name: str) -> Fact:
        """A random fact about somebody."""
        by_kind: dict[str, list[str]] = {}
        for noun, kind in self.personal:
            by_kind.setdefault(kind, []).append(noun)
        kind = rng.choice([*by_kind, "code", "code", "number", "person", "person", "pet"])
        if kind not in by_kind:
            kind = rng.choice(list(by_kind))
        return Fact(subject, name, rng.choice(by_kind[kind]), kind, self.value(rng, kind))

    def value(self, rng: random.Random, kind: str) -> str:
        """A value of ``kind`` from this side's words."""
        return MAKERS[kind](rng, self.side != "train")

    def sibling(self, rng: random.Random, fact: Fact) -> Fact:
        """Another fact about the same one, of the same kind where there is such: the cat's name beside the
        dog's."""
        nouns = self.things + self.bare if fact.subject == "thing" else self.personal
        alike = [noun for noun, kind in nouns if kind == fact.kind and noun != fact.noun]
        noun = rng.choice(alike) if alike else rng.choice(nouns)[0]
        kind = next(kind for name, kind in nouns if name == noun)
        return Fact(fact.subject, fact.name, noun, kind, self.value(rng, kind))

    def corrected(self, rng: random.Random, fact: Fact) -> Fact:
        """The same fact with another value."""
        while True:
            value = self.value(rng, fact.kind)
            if value != fact.value:
                return Fact(fact.subject, fact.name, fact.noun, fact.kind, value)

    def tell(self, rng: random.Random, fact: Fact, *, old: Fact | None = None) -> Sentence:
        """One way of telling ``fact``; with ``old``, of correcting that earlier value."""
        if old is None or (self.side == "train" and rng.random() < 0.12):
            form = self._tell_form(rng, fact)
        else:
            form = rng.choice(self.correct_forms)
        echo = _answer_start(fact, with_verb=form in _spoken_forms(fact))
        if self.side == "train" and fact.subject == "person" and rng.random() < 0.1:
            who = f"my {rng.choice(KIN)} {fact.name}"
            return replace(_fill(form, fact, f"{who}'s {fact.noun}", old, who), echo=echo)
        return replace(_fill(form, fact, phrase(fact, voice="user", rng=rng), old), echo=echo)

    def tell_both(self, rng: random.Random, first: Fact, second: Fact) -> Sentence:
        """Two facts about the same one, the second with a pronoun: "Clara lives in Toronto and her PIN is
        12"."""
        one = self.tell(rng, first)
        pronoun, possessive = rng.choice(PRONOUNS)
        if second.subject == "user":
            pronoun, possessive = "I", "my"
        spoken = _spoken(second)
        form = rng.choice(self.tell_forms[:2])
        if spoken is not None and rng.random() < 0.5:
            form = rng.choice(spoken.mine if second.subject == "user" else spoken.theirs)
            form = form.replace("{S}'s", possessive.capitalize()).replace("call {s} ", f"call {possessive} ")
            if pronoun == "They":
                pronoun, possessive = "He", "his"
        two = _fill(form, second, f"{possessive} {second.noun}", None, pronoun)
        if one.text.endswith(".") and rng.random() < 0.6:
            glue = rng.choice((", and ", " and ", ", "))
            start = (
                two.text
                if pronoun == "I" and two.text.startswith("I ")
                else two.text[0].lower() + two.text[1:]
            )
            return join((Sentence(one.text[:-1], one.spans), Sentence(start, two.spans)), glue)
        return join((one, two))

    def _tell_form(self, rng: random.Random, fact: Fact) -> str:
        spoken = _spoken(fact)
        if spoken is not None and rng.random() < 0.5 and self.side != "held_out":
            return rng.choice(_spoken_forms(fact))
        if fact.kind == "code" and fact.subject in ("user", "thing") and rng.random() < 0.12:
            return rng.choice(PASSKEY)
        return rng.choice(self.tell_forms)

    def ask(self, rng: random.Random, fact: Fact, *, told: bool = True) -> Question:
        """One way of asking for ``fact``, and the right answer; ``told=False``: it was never said."""
        spoken, unknown = _spoken(fact), NOT_TOLD
        form = rng.choice(self.ask_forms)
        if self.side == "train" and rng.random() < COMBINED:
            form = combined(rng)
        with_verb = False
        if self.side == "train" and fact.kind in ASK_KIND and rng.random() < 0.2:
            form = rng.choice(ASK_KIND[fact.kind])
        if spoken is not None and rng.random() < 0.4 and self.side != "held_out":
            form = rng.choice(spoken.ask_mine if fact.subject == "user" else spoken.ask_theirs)
            with_verb, unknown = True, spoken.unknown
        start = _answer_start(fact, with_verb=with_verb)
        ask = _fill(form, fact, phrase(fact, voice="user", rng=rng), None).text
        value = fact.value if told else unknown
        return Question(ask, f"{start}{value}.", (len(start), len(start) + len(value)), fact)

    def ask_on_page(self, rng: random.Random, fact: Fact) -> Question:
        """Text that is no conversation up to the value of ``fact`` and with it; ``ask`` is empty."""
        noun_phrase, form = phrase(fact, voice="user", rng=rng), rng.choice(PAGE_ASK)
        start = _fill(form.replace("{q}", rng.choice(self.ask_forms)), fact, noun_phrase, None).text
        return Question("", f"{start} {fact.value}", (len(start) + 1, len(start) + 1 + len(fact.value)), fact)


def combined(rng: random.Random) -> str:
    """A way of asking that is put together of an opening, a core and an ending, and is not held out."""
    while True:
        opening, core, ending = (rng.choice(part) for part in (ASK_OPENINGS, ASK_CORES, ASK_ENDINGS))
        form = opening + core + ending
        if not opening or opening.rstrip().endswith((".", "!")):
            form = opening + _capital(core) + ending
        if form not in ASK_HELD_OUT:
            return form


def _spoken(fact: Fact) -> Spoken | None:
    if fact.kind == "pet":
        return PET_SPOKEN
    return SPOKEN.get(fact.noun) if fact.subject != "thing" else None


def _spoken_forms(fact: Fact) -> tuple[str, ...]:
    spoken = _spoken(fact)
    if spoken is None:
        return ()
    return spoken.mine if fact.subject == "user" else spoken.theirs


def _answer_start(fact: Fact, *, with_verb: bool) -> str:
    """How the assistant says ``fact``, up to the value: "Clara's locker code is ", "Clara lives in "."""
    spoken = _spoken(fact)
    if not with_verb or spoken is None:
        return _capital(phrase(fact, voice="assistant")) + " is "
    form = spoken.answer_mine if fact.subject == "user" else spoken.answer_theirs
    return _fill(form, fact, "", None, voice="assistant").text


def owner(fact: Fact, *, voice: Literal["user", "assistant"]) -> str:
    """Who has the fact, as the speaker says it: "my"/"your", "Clara", "my brother"."""
    mine = "my" if voice == "user" else "your"
    return {"user": mine, "person": fact.name, "kin": f"{mine} {fact.name}", "thing": "the"}[fact.subject]


def phrase(fact: Fact, *, voice: Literal["user", "assistant"], rng: random.Random | None = None) -> str:
    """The noun phrase: "my locker code", "Clara's locker code"; with ``rng`` sometimes "the locker code of
    Clara"."""
    who = owner(fact, voice=voice)
    if fact.subject in ("user", "thing"):
        return f"{who} {fact.noun}"
    if rng is not None and rng.random() < 0.15:
        return f"the {fact.noun} of {who}"
    return f"{who}'s {fact.noun}"


def _fill(
    form: str,
    fact: Fact,
    noun_phrase: str,
    old: Fact | None,
    who: str | None = None,
    *,
    voice: Literal["user", "assistant"] = "user",
) -> Sentence:
    who = owner(fact, voice=voice) if who is None else who
    fields = {
        "{p}": noun_phrase,
        "{P}": _capital(noun_phrase),
        "{s}": who,
        "{S}": _capital(who),
        "{n}": fact.noun.removesuffix("'s name") if fact.kind == "pet" else fact.noun,
        "{o}": old.value if old is not None else "",
    }
    for field, text in fields.items():
        form = form.replace(field, text)
    spans: list[tuple[int, int, Fact]] = []
    text = ""
    for index, part in enumerate(form.split("{v}")):
        if index:
            if not spans:  # a repetition ("Remember it. 4821 is the key.") has the value before its attribute
                spans.append((len(text), len(text) + len(fact.value), fact))
            text += fact.value
        text += part
    return Sentence(text, tuple(spans))


def join(parts: Sequence[Sentence], separator: str = " ") -> Sentence:
    """Sentences one after the other in one message, spans moved along."""
    text = ""
    spans: list[tuple[int, int, Fact]] = []
    for index, part in enumerate(parts):
        text += separator if index else ""
        spans += [(start + len(text), end + len(text), fact) for start, end, fact in part.spans]
        text += part.text
    return Sentence(text, tuple(spans))
