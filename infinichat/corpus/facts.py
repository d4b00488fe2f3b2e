"""Generated facts: how people tell them, ask for them, correct them, and what the right answer says.

A ``Fact`` is (subject, attribute, value). ``FactMaker`` draws facts, and renders them as sentences
(``sentences.py``) with the place of the value marked, so that a trainer knows which tokens a memory should
write:

    tell      "By the way, Clara's locker code is 4821."          value at (34, 38)
    ask       "Do you remember Clara's locker code?"
    answer    "Clara's locker code is 4821."                      the value follows a restatement of the fact
    unknown   "Clara's locker code is something you have not told me."

Answers restate what is asked for, because a memory read works best where the words before the value say what
it is; who asks with a verb is answered with it ("Clara lives in Toronto."). Whether there is anything to say
is decided at the value's place, where the read is. Everything is drawn from the ``random.Random``
that is passed in. Three sides are kept apart: ``train``; ``seen`` (people and values never trained on,
attributes and phrasings trained on); ``held_out`` (attributes and phrasings never trained on as well).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

from infinichat.corpus.attributes import (
    BARE_THINGS,
    EVENTS,
    EVERYDAY,
    FAVOURITES,
    MINE_ONLY,
    PERSONAL,
    PLACE_THINGS,
    PLACES,
)
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
    SPOKEN_CORRECT,
    TELL,
    TELL_HELD_OUT,
    TELL_MORE,
)
from infinichat.corpus.sentences import (
    NOT_TOLD,
    Fact,
    Question,
    Sentence,
    SubjectKind,
    answer_start,
    asks_for,
    capital,
    contracted,
    echo_of,
    fill,
    is_bound,
    join,
    lowered,
    opened,
    phrase,
    spoken_forms,
    spoken_of,
)
from infinichat.corpus.spoken import EVENT_SPOKEN
from infinichat.corpus.vocabulary import KIN, MAKERS, NAMES, choose, is_held_out, words
from infinichat.corpus.ways import KIND, Way, ways, ways_of

PRONOUNS = (("She", "her"), ("He", "his"), ("They", "their"))
Side = Literal["train", "seen", "held_out"]
BARE = 0.35
"""Share of the things that belong to no place."""

DAILY, IN_OWN_WORDS = 0.45, 0.5
"""Shares of the facts that are of the everyday kinds, and of those that ``ways`` has sentences for."""

COMBINED = 0.4
"""Share of the questions in training that are put together of parts."""


def _nouns() -> list[tuple[bool, str, str]]:
    """All attributes as (is about a thing, noun, kind of value)."""
    found: dict[tuple[bool, str], str] = {}
    for kind, nouns in PERSONAL.items():
        for noun in nouns:
            found[False, f"{noun}'s name" if kind == "pet" else noun] = kind
    for kind, nouns in FAVOURITES.items():
        for rank, noun in enumerate(nouns):
            found.setdefault((False, f"favourite {noun}"), kind)
            if rank < 2:
                found.setdefault((False, f"least favourite {noun}"), kind)
    for place in PLACES:
        for kind, nouns in PLACE_THINGS.items():
            for noun in nouns:
                found.setdefault((True, f"{place} {noun}"), kind)
    events = {(False, event): "weekday" for event in EVENTS}
    return [(thing, noun, kind) for (thing, noun), kind in (events | found).items()]


# attributes whose last word is never trained on, beside one composed attribute in eight
HELD_OUT_WORDS = words(
    "ticket number, parrot's name, cheese, flower, booking reference, badge number, bike colour, closing "
    "time, codeword, coach, boat's name"
)


def is_held_out_noun(noun: str) -> bool:
    """Whether an attribute is kept for validation."""
    if noun in EVERYDAY:
        return False
    return is_held_out(noun) or any(noun == word or noun.endswith(" " + word) for word in HELD_OUT_WORDS)


class FactMaker:
    """Draws facts and sentences of one ``side``. Holds no random state: the caller passes
    ``random.Random``."""

    def __init__(self, side: Side = "train", *, own_words: float | None = None) -> None:
        """``own_words`` is the share of facts that ``ways`` has sentences for; by default some in training
        and none in what is measured, where they have a row of their own."""
        self.side: Side = side
        self.own_words = own_words if own_words is not None else IN_OWN_WORDS if side == "train" else 0.0
        held_out = side == "held_out"
        attributes = [a for a in _nouns() if is_held_out_noun(a[1]) == held_out]
        self.personal = [(noun, kind) for thing, noun, kind in attributes if not thing]
        daily = EVERYDAY + EVENTS if not held_out else ()
        self.daily = [(noun, kind) for noun, kind in self.personal if noun in daily]
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
        if rng.random() < self.own_words:
            return self._in_own_words(rng)
        if self.daily and rng.random() < DAILY:
            subject = self.subject(rng) if rng.random() < 0.5 else ("user", "")
            return self._fact_of(rng, *subject, *rng.choice(self.daily))
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
        return self._fact_of(rng, subject, name, rng.choice(by_kind[kind]), kind)

    def _in_own_words(self, rng: random.Random, name: str | None = None) -> Fact:
        """A fact that ``ways`` has sentences for, about somebody of this ``name`` where it is about
        somebody."""
        way = rng.choice(ways_of(self.side == "held_out"))
        return self._by_way(rng, way, name or choose(rng, NAMES, self.side != "train"))

    def _by_way(self, rng: random.Random, way: Way, name: str) -> Fact:
        value = way.value(rng, self.side != "train")
        who: tuple[SubjectKind, str] = ("person", name) if way.other else ("user", "")
        return Fact(*who, way.key, KIND + way.key, value)

    def _fact_of(self, rng: random.Random, subject: SubjectKind, name: str, noun: str, kind: str) -> Fact:
        if noun in MINE_ONLY:
            subject, name = "user", ""
        if noun in EVENTS:
            kind = rng.choice(list(EVENT_SPOKEN))
        return Fact(subject, name, noun, kind, self.value(rng, kind))

    def value(self, rng: random.Random, kind: str) -> str:
        """A value of ``kind`` from this side's words."""
        if kind.startswith(KIND):
            return ways()[kind].value(rng, self.side != "train")
        return MAKERS[kind](rng, self.side != "train")

    def sibling(self, rng: random.Random, fact: Fact) -> Fact:
        """Another fact about the same one, of the same kind where there is such: the cat's name beside the
        dog's."""
        if fact.kind.startswith(KIND):
            way, other = ways()[fact.kind], fact
            while other.key == fact.key:
                if way.other and rng.random() < 0.5:
                    other = self._by_way(rng, way, choose(rng, NAMES, self.side != "train"))
                else:
                    other = self._in_own_words(rng, fact.name or None)
            return other
        nouns = self.things + self.bare if fact.subject == "thing" else self.personal
        alike = [noun for noun, kind in nouns if kind == fact.kind and noun != fact.noun]
        noun = rng.choice(alike) if alike else rng.choice(nouns)[0]
        kind = next(kind for name, kind in nouns if name == noun)
        return self._fact_of(rng, fact.subject, fact.name, noun, kind)

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
            form = self._correct_form(rng, fact)
        spoken = spoken_of(fact)
        verbs = spoken is not None and "{p}" not in form and "{P}" not in form and form not in PASSKEY
        echo = answer_start(fact, echo_of(fact) if verbs else None)
        if self.side == "train" and fact.subject == "person" and not is_bound(fact) and rng.random() < 0.1:
            who = f"my {rng.choice(KIN)} {fact.name}"
            return replace(fill(form, fact, f"{who}'s {fact.noun}", old, who), echo=echo)
        return replace(fill(form, fact, phrase(fact, voice="user", rng=rng), old), echo=echo)

    def tell_both(self, rng: random.Random, first: Fact, second: Fact) -> Sentence:
        """Two facts about the same one, the second with a pronoun: "Clara lives in Toronto and her PIN is
        12"."""
        one = self.tell(rng, first)
        pronoun, possessive = rng.choice(PRONOUNS)
        if second.subject == "user":
            pronoun, possessive = "I", "my"
        form = rng.choice(self.tell_forms[:2])
        continuing = _continuing(second)
        if continuing and rng.random() < 0.5:
            form = contracted(rng, rng.choice(continuing))
            form = form.replace("{S}'s", possessive.capitalize())
            if pronoun == "They":
                pronoun, possessive = "He", "his"
        two = fill(form, second, f"{possessive} {second.noun}", None, pronoun)
        if one.text.endswith(".") and rng.random() < 0.6:
            glue = rng.choice((", and ", " and ", ", "))
            start = (
                two.text
                if pronoun == "I" and two.text.startswith(("I ", "I'"))
                else two.text[0].lower() + two.text[1:]
            )
            return join((Sentence(one.text[:-1], one.spans), Sentence(start, two.spans)), glue)
        return join((one, two))

    def _tell_form(self, rng: random.Random, fact: Fact) -> str:
        if self._speaks(fact) and rng.random() < self._spoken_share(fact, 0.75):
            form = contracted(rng, rng.choice(spoken_forms(fact)))
            return opened(rng, form) if self.side == "train" and rng.random() < 0.3 else form
        if fact.kind == "code" and fact.subject in ("user", "thing") and rng.random() < 0.12:
            return rng.choice(PASSKEY)
        return rng.choice(self.tell_forms)

    def _correct_form(self, rng: random.Random, fact: Fact) -> str:
        if self._speaks(fact) and rng.random() < self._spoken_share(fact, 0.3):
            form = contracted(rng, rng.choice(spoken_forms(fact)))
            return rng.choice(SPOKEN_CORRECT).replace("{form}", lowered(form))
        return rng.choice(self.correct_forms)

    def _speaks(self, fact: Fact) -> bool:
        """Whether this side has sentences of their own for ``fact``."""
        return (self.side != "held_out" or fact.kind.startswith(KIND)) and bool(spoken_forms(fact))

    @staticmethod
    def _spoken_share(fact: Fact, usual: float) -> float:
        """How often those are used: always where there is no other way to say it."""
        if fact.kind.startswith(KIND):
            return 1.0
        return max(usual, 0.9 if fact.noun in EVENTS else 0.0)

    def ask(self, rng: random.Random, fact: Fact, *, told: bool = True) -> Question:
        """One way of asking for ``fact``, and the right answer; ``told=False``: it was never said."""
        spoken, unknown, answer = spoken_of(fact), NOT_TOLD, None
        form = rng.choice(self.ask_forms)
        if self.side == "train" and rng.random() < COMBINED:
            form = combined(rng)
        if self.side == "train" and fact.kind in ASK_KIND and rng.random() < 0.2:
            form = rng.choice(ASK_KIND[fact.kind])
        if spoken is not None and self._speaks(fact) and rng.random() < self._spoken_share(fact, 0.7):
            chosen, unknown = rng.choice(asks_for(fact)), spoken.unknown
            form, answer = contracted(rng, chosen.text), chosen.answer
            if self.side == "train" and rng.random() < 0.2:
                form = opened(rng, form)
        value = fact.value if told else unknown
        start = answer_start(fact, answer, value=value)
        ask = fill(form, fact, phrase(fact, voice="user", rng=rng), None).text
        return Question(ask, f"{start}{value}.", (len(start), len(start) + len(value)), fact)

    def ask_on_page(self, rng: random.Random, fact: Fact) -> Question:
        """Text that is no conversation up to the value of ``fact`` and with it; ``ask`` is empty."""
        spoken = spoken_of(fact)
        if spoken is not None and fact.kind.startswith(KIND):
            # No noun phrase names it: the sentence that a listener would say.
            start = " " + answer_start(fact, echo_of(fact)).removesuffix(" ")
            return Question(
                "", f"{start} {fact.value}", (len(start) + 1, len(start) + 1 + len(fact.value)), fact
            )
        noun_phrase, form = phrase(fact, voice="user", rng=rng), rng.choice(PAGE_ASK)
        start = fill(form.replace("{q}", rng.choice(self.ask_forms)), fact, noun_phrase, None).text
        return Question("", f"{start} {fact.value}", (len(start) + 1, len(start) + 1 + len(fact.value)), fact)


def _continuing(fact: Fact) -> list[str]:
    """The sentences of ``spoken_forms`` that can follow another one with a pronoun."""
    starts = ("I ", "I'", "My ") if fact.subject == "user" else ("{S} ", "{S}'")
    return [form for form in spoken_forms(fact) if form.startswith(starts) and "{s}" not in form]


def combined(rng: random.Random) -> str:
    """A way of asking that is put together of an opening, a core and an ending, and is not held out."""
    while True:
        opening, core, ending = (rng.choice(part) for part in (ASK_OPENINGS, ASK_CORES, ASK_ENDINGS))
        form = opening + core + ending
        if not opening or opening.rstrip().endswith((".", "!")):
            form = opening + capital(core) + ending
        if form not in ASK_HELD_OUT:
            return form
