"""How people say it in sentences of their own, without the attribute's noun phrase: "Clara lives in Toronto",
"Where does Clara live?".

{S} is the one who has it at a sentence's start, {s} elsewhere, {v} the value, {n} an animal, a relative or an
event. Each question has an answer of its own, which turns it around in its own words: what a model of this
size is to say next must follow from what it has just read. An answer that always says it in the same words,
however it is asked for, has to be guessed, and what is guessed wrong is not found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

UNKNOWN = "something you have not told me"


@dataclass(frozen=True, slots=True)
class Ask:
    """A question, and how its answer begins, up to the value."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """Tellings by the user (``mine``) and about others (``theirs``, empty for what only the user tells), the
    questions by the user about themselves and about others, how each is said back, up to the value, and what
    stands in an answer when it was never told."""

    mine: tuple[str, ...]
    theirs: tuple[str, ...]
    asks_mine: tuple[Ask, ...]
    asks_theirs: tuple[Ask, ...]
    echo_mine: str
    echo_theirs: str
    unknown: str = UNKNOWN


def asks_of(pairs: list[list[str]]) -> tuple[Ask, ...]:
    """Questions as the files have them, with how the answer begins."""
    return tuple(Ask(text, begun(answer)) for text, answer in pairs)


def begun(text: str) -> str:
    """``text`` up to the value, with the blank that the files leave out; nothing where there is none."""
    return f"{text} " if text else ""


def _read() -> dict[str, Spoken]:
    text = files("infinichat.corpus").joinpath("spoken.json").read_text(encoding="utf-8")
    return {
        noun: Spoken(
            tuple(one["mine"]),
            tuple(one["theirs"]),
            asks_of(one["asks_mine"]),
            asks_of(one["asks_theirs"]),
            begun(one["echo_mine"]),
            begun(one["echo_theirs"]),
            one.get("unknown", UNKNOWN),
        )
        for noun, one in json.loads(text).items()
    }


SPOKEN: dict[str, Spoken] = _read()
"""By the attribute (``spoken.json``)."""

PET_SPOKEN, KIN_SPOKEN = SPOKEN.pop("(pet)"), SPOKEN.pop("(relative)")
"""Of any pet and any relative."""

EVENT_SPOKEN = {kind: SPOKEN.pop(f"({kind})") for kind in ("date", "weekday", "time")}
"""How one says when an event is, by the kind of the value."""
