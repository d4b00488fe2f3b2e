"""Some 1,700 kinds of facts as people put them, each with ways of telling it and of asking for it that
follow no pattern: "It takes me 40 minutes to get to work.", "How long is my commute?".

They were written one by one (``ways.json``); nothing else in the corpus has their variety, and without it a
memory learns the corpus's few patterns instead of what it is to be told something. Words before a value say
what it is about, as keys are made of what comes before; answers turn their questions around, and what is said
back, or asked for on a page, begins as the commonest telling does.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from infinichat.corpus.spoken import Spoken, asks_of, begun
from infinichat.corpus.vocabulary import MAKERS, choose, is_held_out

KIND = "way:"
"""What the ``kind`` of such a fact begins with; the rest is its key."""


@dataclass(frozen=True, slots=True)
class Way:
    """``spoken`` as for other facts; the value is by ``maker`` or, where that is None, one of ``values``.
    ``other``: about somebody whose name it says, and not about the user."""

    key: str
    spoken: Spoken
    maker: str | None
    values: tuple[str, ...]
    other: bool

    def value(self, rng: random.Random, held_out: bool) -> str:
        """A value from the words of training or of validation."""
        if self.maker is not None:
            return MAKERS[self.maker](rng, held_out)
        return choose(rng, self.values, held_out)


@cache
def ways() -> dict[str, Way]:
    """All by the kind of their facts."""
    found: dict[str, Way] = {}
    for one in json.loads(files("infinichat.corpus").joinpath("ways.json").read_text(encoding="utf-8")):
        tell, echo = tuple(map(_of_them, one["tell"])), begun(_of_them(one["echo"]))
        asks = asks_of([[_of_them(ask), _of_them(answer)] for ask, answer in one["ask"]])
        spoken, other = Spoken(tell, tell, asks, asks, echo, echo), "{s}" in tell[0]
        found[KIND + one["key"]] = Way(
            one["key"], spoken, one.get("maker"), tuple(one.get("values", ())), other
        )
    return found


def _of_them(text: str) -> str:
    return text.replace("{who}", "{s}")


@cache
def ways_of(held_out: bool) -> tuple[Way, ...]:
    """Those of training, or those that are kept for validation."""
    return tuple(way for way in ways().values() if is_held_out(way.key) == held_out)
