"""How people say it with a verb, without the attribute's noun: "Clara lives in Toronto", "Where does Clara
live?".

{S} is the one who has it at a sentence's start, {s} elsewhere, {v} the value, {n} an animal. Answers keep the
verb, because a memory read works best where the last words before the value are those of the telling.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spoken:
    """Tellings by the user (``mine``) and about others (``theirs``), questions (``ask_mine``,
    ``ask_theirs``), how answers to those begin, up to the value, and what stands there when it was never
    told."""

    mine: tuple[str, ...]
    theirs: tuple[str, ...]
    ask_mine: tuple[str, ...]
    ask_theirs: tuple[str, ...]
    answer_mine: str
    answer_theirs: str
    unknown: str = "something you have not told me"


_PLACE = "a place you have not told me"

SPOKEN: dict[str, Spoken] = {
    "home town": Spoken(
        ("I live in {v}.", "I come from {v}."),
        ("{S} lives in {v}.",),
        ("Where do I live?",),
        ("Where does {s} live?",),
        "You live in ",
        "{S} lives in ",
        _PLACE,
    ),
    "birthplace": Spoken(
        ("I was born in {v}.",),
        ("{S} was born in {v}.",),
        ("Where was I born?",),
        ("Where was {s} born?",),
        "You were born in ",
        "{S} was born in ",
        _PLACE,
    ),
    "job": Spoken(
        ("I work as a {v}.", "I am a {v}."),
        ("{S} works as a {v}.", "{S} is a {v}."),
        ("What do I do for a living?", "What is my job?"),
        ("What does {s} do for a living?",),
        "You work as a ",
        "{S} works as a ",
    ),
    "instrument": Spoken(
        ("I play the {v}.",),
        ("{S} plays the {v}.",),
        ("Which instrument do I play?",),
        ("Which instrument does {s} play?",),
        "You play the ",
        "{S} plays the ",
        "instrument you have not told me",
    ),
    "car": Spoken(
        ("I drive a {v}.",),
        ("{S} drives a {v}.",),
        ("Which car do I drive?",),
        ("Which car does {s} drive?",),
        "You drive a ",
        "{S} drives a ",
        "car you have not told me",
    ),
    "age": Spoken(
        ("I am {v} years old.",),
        ("{S} is {v} years old.",),
        ("How old am I?",),
        ("How old is {s}?",),
        "You are ",
        "{S} is ",
        "as old as you have not told me",
    ),
    "birthday": Spoken(
        ("I was born on {v}.", "My birthday is on {v}."),
        ("{S} was born on {v}.",),
        ("When is my birthday?",),
        ("When is {s}'s birthday?",),
        "Your birthday is on ",
        "{S}'s birthday is on ",
        "a day you have not told me",
    ),
    "hobby": Spoken(
        ("I enjoy {v}.", "In my free time I like {v}."),
        ("{S} enjoys {v}.",),
        ("What do I do in my free time?",),
        ("What does {s} do in their free time?",),
        "You enjoy ",
        "{S} enjoys ",
    ),
    "native language": Spoken(
        ("I grew up speaking {v}.",),
        ("{S} grew up speaking {v}.",),
        ("Which language did I grow up with?",),
        ("Which language did {s} grow up with?",),
        "You grew up speaking ",
        "{S} grew up speaking ",
        "a language you have not told me",
    ),
    "wake-up time": Spoken(
        ("I get up at {v}.",),
        ("{S} gets up at {v}.",),
        ("When do I get up?",),
        ("When does {s} get up?",),
        "You get up at ",
        "{S} gets up at ",
        "a time you have not told me",
    ),
    "allergy": Spoken(
        ("I am allergic to {v}.",),
        ("{S} is allergic to {v}.",),
        ("What am I allergic to?",),
        ("What is {s} allergic to?",),
        "You are allergic to ",
        "{S} is allergic to ",
    ),
    "room number": Spoken(
        ("I am staying in room {v}.",),
        ("{S} is staying in room {v}.",),
        ("Which room am I in?",),
        ("Which room is {s} in?",),
        "You are staying in room ",
        "{S} is staying in room ",
        "number you have not told me",
    ),
    "bus number": Spoken(
        ("I take bus {v}.",),
        ("{S} takes bus {v}.",),
        ("Which bus do I take?",),
        ("Which bus does {s} take?",),
        "You take bus ",
        "{S} takes bus ",
        "number you have not told me",
    ),
    "surname": Spoken(
        ("My last name is {v}.",),
        ("{S}'s last name is {v}.",),
        ("What is my last name?",),
        ("What is {s}'s last name?",),
        "Your last name is ",
        "{S}'s last name is ",
    ),
    "nickname": Spoken(
        ("People call me {v}.", "Everybody calls me {v}."),
        ("People call {s} {v}.",),
        ("What do people call me?",),
        ("What do people call {s}?",),
        "People call you ",
        "People call {s} ",
    ),
    "company": Spoken(
        ("I work for {v}.",),
        ("{S} works for {v}.",),
        ("Who do I work for?",),
        ("Who does {s} work for?",),
        "You work for ",
        "{S} works for ",
    ),
    "holiday destination": Spoken(
        ("I am going to {v} on holiday.",),
        ("{S} is going to {v} on holiday.",),
        ("Where am I going on holiday?",),
        ("Where is {s} going on holiday?",),
        "You are going to ",
        "{S} is going to ",
        _PLACE,
    ),
    "star sign": Spoken(
        ("I am a {v}.",),
        ("{S} is a {v}.",),
        ("What is my sign?",),
        ("What is {s}'s sign?",),
        "Your sign is ",
        "{S}'s sign is ",
    ),
}
PET_SPOKEN = Spoken(
    ("I have a {n} called {v}.", "My {n} is called {v}.", "I have a {n} named {v}.", "I named my {n} {v}."),
    ("{S} has a {n} called {v}.", "{S}'s {n} is called {v}.", "{S} has a {n} named {v}."),
    ("What is my {n} called?", "What is the name of my {n}?"),
    ("What is {s}'s {n} called?", "What is the name of {s}'s {n}?"),
    "Your {n} is called ",
    "{S}'s {n} is called ",
)
