"""How people say it in sentences of their own, without the attribute's noun phrase: "Clara lives in Toronto",
"Where does Clara live?".

{S} is the one who has it at a sentence's start, {s} elsewhere, {v} the value, {n} an animal, a relative or an
event. Answers keep the verb, because a memory read works best where the last words before the value are those
of the telling; no article stands right before the value, as nobody knows yet whether it is "a" or "an".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

UNKNOWN = "something you have not told me"


@dataclass(frozen=True, slots=True)
class Asks:
    """Questions by the user about themselves (``mine``) and about others (``theirs``), and how the answers to
    those begin, up to the value."""

    mine: tuple[str, ...]
    theirs: tuple[str, ...]
    answer_mine: str
    answer_theirs: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """Tellings by the user (``mine``) and about others (``theirs``, empty for what only the user tells), the
    groups of questions, and what stands in an answer when it was never told. What is told in these words is
    said back as the answers of the first group begin."""

    mine: tuple[str, ...]
    theirs: tuple[str, ...]
    asks: tuple[Asks, ...]
    unknown: str = UNKNOWN


def _read() -> dict[str, Spoken]:
    text = files("infinichat.corpus").joinpath("spoken.json").read_text(encoding="utf-8")
    found: dict[str, Spoken] = {}
    for noun, one in json.loads(text).items():
        asks = tuple(
            Asks(tuple(a["mine"]), tuple(a["theirs"]), a["answer_mine"], a["answer_theirs"])
            for a in one["asks"]
        )
        found[noun] = Spoken(tuple(one["mine"]), tuple(one["theirs"]), asks, one.get("unknown", UNKNOWN))
    return found


SPOKEN: dict[str, Spoken] = _read()
"""By the attribute (``spoken.json``)."""

PET_SPOKEN, KIN_SPOKEN = SPOKEN.pop("(pet)"), SPOKEN.pop("(relative)")
"""Of any pet and any relative."""

EVENT_SPOKEN = {kind: SPOKEN.pop(f"({kind})") for kind in ("date", "weekday", "time")}
"""How one says when an event is, by the kind of the value."""
