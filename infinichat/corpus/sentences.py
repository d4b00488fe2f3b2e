"""How a fact is said: the sentence forms filled in, with the place of the value marked, and the words with
which an assistant comes to it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infinichat.corpus.attributes import EVENTS, MINE_ONLY, PERSONAL
from infinichat.corpus.phrasings import SPOKEN_OPENINGS
from infinichat.corpus.spoken import EVENT_SPOKEN, KIN_SPOKEN, PET_SPOKEN, SPOKEN, UNKNOWN, Ask, Spoken
from infinichat.corpus.ways import KIND, ways

NOT_TOLD = UNKNOWN
SubjectKind = Literal["user", "person", "kin", "thing"]
SHARED = ("pet", "person", "street", "word", "weekday", "date")
OUR, AMERICAN = 0.1, 0.25
"""Kinds of things that a user may share with others, how many are "our" things then, and how many nouns are
spelled as in America."""


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
        """What the fact is about; a later fact with the same key corrects this one. "My sister" and "my
        sister's name" are one thing."""
        return (self.subject, self.name, self.noun.removesuffix("'s name"))


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


def capital(text: str) -> str:
    """``text`` as it begins a sentence."""
    return text[:1].upper() + text[1:]


def is_bound(fact: Fact) -> bool:
    """Whether the fact cannot be told of just anybody in place of the one whom it is about."""
    return fact.noun in MINE_ONLY or fact.kind.startswith(KIND)


def spoken_of(fact: Fact) -> Spoken | None:
    """The sentences that people have for this fact, beside those with its noun phrase."""
    if fact.subject == "thing":
        return None
    if fact.kind.startswith(KIND):
        return ways()[fact.kind].spoken
    if fact.kind == "pet":
        return PET_SPOKEN
    if fact.kind == "person" and fact.noun in PERSONAL["person"]:
        return KIN_SPOKEN
    return EVENT_SPOKEN.get(fact.kind) if fact.noun in EVENTS else SPOKEN.get(fact.noun)


def spoken_forms(fact: Fact) -> tuple[str, ...]:
    """Those that tell it of the one whom it is about."""
    spoken = spoken_of(fact)
    if spoken is None:
        return ()
    return spoken.mine if fact.subject == "user" else spoken.theirs


def contracted(rng: random.Random, form: str) -> str:
    """``form`` as most people type it, half of the time: "I'm", "What's"."""
    if rng.random() < 0.5:
        for long, short in (("I am ", "I'm "), ("What is ", "What's "), ("Who is ", "Who's ")):
            form = form.replace(long, short)
    return form


def lowered(form: str) -> str:
    """``form`` as it stands after other words of its sentence."""
    first = form.split(" ")[0]
    if first in ("I", "{S}", "{S}'s", "{s}", "{s}'s", "Hi,", "Hello,") or first.startswith("I'"):
        return form
    return form[0].lower() + form[1:]


def opened(rng: random.Random, form: str) -> str:
    """``form`` after some words that mean nothing."""
    opening = rng.choice(SPOKEN_OPENINGS)
    return opening + (form if opening.endswith(("! ", ". ", ": ")) else lowered(form))


def answer_start(fact: Fact, form: str | None = None, *, value: str | None = None) -> str:
    """How the assistant says ``fact``, up to the value: "Clara's locker code is ", or, with a ``form`` of
    ``spoken``, "Clara lives in ". ``value`` is what comes then (default: the fact's own): "You work as an "
    before "actor"."""
    if form is None:
        return capital(phrase(fact, voice="assistant")) + " is "
    start = fill(form, fact, "", None, voice="assistant").text
    first = (fact.value if value is None else value).split()[0]
    vowel = first.startswith(tuple("aeiouAEIO")) and first != "one" and not first.startswith(("uni", "Eu"))
    return start.removesuffix(" ") + "n " if vowel and start.endswith(" a ") else start


def asks_for(fact: Fact) -> tuple[Ask, ...]:
    """The questions that people have for this fact, beside those with its noun phrase."""
    spoken = spoken_of(fact)
    if spoken is None:
        return ()
    return spoken.asks_mine if fact.subject == "user" else spoken.asks_theirs


def echo_of(fact: Fact) -> str | None:
    """How a fact that was told in such words is said back, up to the value, as a form."""
    spoken = spoken_of(fact)
    if spoken is None:
        return None
    return spoken.echo_mine if fact.subject == "user" else spoken.echo_theirs


def owner(fact: Fact, *, voice: Literal["user", "assistant"]) -> str:
    """Who has the fact, as the speaker says it: "my"/"your", "Clara", "my brother"."""
    mine = "my" if voice == "user" else "your"
    return {"user": mine, "person": fact.name, "kin": f"{mine} {fact.name}", "thing": "the"}[fact.subject]


def phrase(fact: Fact, *, voice: Literal["user", "assistant"], rng: random.Random | None = None) -> str:
    """The noun phrase: "my locker code", "Clara's locker code"; with ``rng`` sometimes "the locker code of
    Clara"."""
    who, noun = owner(fact, voice=voice), fact.noun
    if rng is not None and rng.random() < AMERICAN:
        noun = noun.replace("favourite", "favorite").replace("colour", "color")
    if rng is not None and fact.subject == "user" and fact.kind in SHARED and rng.random() < OUR:
        who = "our"
    if fact.subject in ("user", "thing"):
        return f"{who} {noun}"
    if rng is not None and rng.random() < 0.15:
        return f"the {noun} of {who}"
    return f"{who}'s {noun}"


def fill(
    form: str,
    fact: Fact,
    noun_phrase: str,
    old: Fact | None,
    who: str | None = None,
    *,
    voice: Literal["user", "assistant"] = "user",
) -> Sentence:
    """``form`` with its fields filled in (``phrasings.py``, ``spoken.py``); ``old`` is the fact that this one
    corrects, ``who`` somebody in place of the one whom it is about."""
    who = owner(fact, voice=voice) if who is None else who
    noun = fact.noun.removesuffix("'s name") if fact.kind == "pet" else fact.noun
    for field, text in (("{v}", fact.value), ("{n}", noun)):
        if text[:1] in "aeioAEIO":
            form = form.replace(f" a {field}", f" an {field}")
    fields = {
        "{p}": noun_phrase,
        "{P}": capital(noun_phrase),
        "{s}": who,
        "{S}": capital(who),
        "{n}": noun,
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
