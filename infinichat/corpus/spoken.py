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


_DAY = "a day you have not told me"
_TIME = "a time you have not told me"


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

PET_SPOKEN = Spoken(
    (
        *("I have a {n} called {v}.", "My {n} is called {v}.", "I have a {n} named {v}."),
        *("I named my {n} {v}.", "We have a {n} called {v}.", "I have a {n}, {v}.", "My {n} {v} is sweet."),
    ),
    ("{S} has a {n} called {v}.", "{S}'s {n} is called {v}.", "{S} has a {n} named {v}."),
    (
        Asks(
            ("What is my {n} called?", "Do you know what my {n} is called?", "How is my {n} called?"),
            ("What is {s}'s {n} called?", "Do you know what {s}'s {n} is called?"),
            "Your {n} is called ",
            "{S}'s {n} is called ",
        ),
        Asks(
            ("What is the name of my {n}?", "What is my {n}'s name?", "Do you remember my {n}'s name?"),
            ("What is the name of {s}'s {n}?", "What is {s}'s {n}'s name?"),
            "Your {n}'s name is ",
            "{S}'s {n}'s name is ",
        ),
    ),
)
KIN_SPOKEN = Spoken(
    (
        *("My {n} is called {v}.", "My {n}'s name is {v}.", "The name of my {n} is {v}."),
        *("I have a {n} called {v}.", "I have a {n} named {v}.", "My {n} is named {v}."),
    ),
    ("{S}'s {n} is called {v}.", "{S}'s {n}'s name is {v}.", "{S} has a {n} called {v}."),
    (
        Asks(
            ("What is my {n} called?", "How is my {n} called?", "Do you know what my {n} is called?"),
            ("What is {s}'s {n} called?",),
            "Your {n} is called ",
            "{S}'s {n} is called ",
        ),
        Asks(
            ("What is my {n}'s name?", "What is the name of my {n}?", "Do you remember my {n}'s name?"),
            ("What is {s}'s {n}'s name?", "What is the name of {s}'s {n}?"),
            "Your {n}'s name is ",
            "{S}'s {n}'s name is ",
        ),
        Asks(
            ("Who is my {n}?", "Do you know who my {n} is?"),
            ("Who is {s}'s {n}?",),
            "Your {n} is ",
            "{S}'s {n} is ",
        ),
    ),
)


def _event(word: str, unknown: str) -> Spoken:
    """How one says when an event is; ``word`` stands before the value."""
    return Spoken(
        (
            *(f"My {{n}} is {word} {{v}}.", f"I have a {{n}} {word} {{v}}.", f"The {{n}} is {word} {{v}}."),
            *(f"I will have my {{n}} {word} {{v}}.", f"My {{n}} starts {word} {{v}}."),
        ),
        (f"{{S}}'s {{n}} is {word} {{v}}.", f"{{S}} has a {{n}} {word} {{v}}."),
        (
            Asks(
                ("When is my {n}?", "When is the {n}?", "When do I have my {n}?", "When was my {n} again?"),
                ("When is {s}'s {n}?", "When does {s} have the {n}?"),
                f"Your {{n}} is {word} ",
                f"{{S}}'s {{n}} is {word} ",
            ),
        ),
        unknown,
    )


EVENT_SPOKEN = {
    "date": _event("on", _DAY),
    "weekday": _event("on", _DAY),
    "time": _event("at", _TIME),
}
