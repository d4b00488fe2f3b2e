"""How people tell a fact, correct it and ask for it.

{p} is the noun phrase ("my locker code"), {P} the same at a sentence's start, {v} the value, {o} the old
value, {s} and {S} the one who has it, {n} the bare noun. The ``HELD_OUT`` forms are never trained on.
"""

from __future__ import annotations

TELL = (
    "{P} is {v}.",
    "{P} is {v}.",
    "{P} is {v}, by the way.",
    "Please remember that {p} is {v}.",
    "Remember that {p} is {v}.",
    "Just so you know, {p} is {v}.",
    "Note that {p} is {v}.",
    "I should mention that {p} is {v}.",
    "For later: {p} is {v}.",
    "By the way, {p} is {v}.",
    "Keep in mind that {p} is {v}.",
    "It turns out that {p} is {v}.",
    "If anyone asks, {p} is {v}.",
    "I just found out that {p} is {v}.",
    "As you may know, {p} is {v}.",
    "{P} happens to be {v}.",
    "As for {p}, it is {v}.",
    "I wrote down {p}, which is {v}.",
    "So {p} is {v}, please do not forget it.",
    "{P}: {v}.",
    "I was told that {p} is {v}.",
    "Write this down: {p} is {v}.",
    "{P} is {v}. Remember it.",
    "{P} is going to be {v}.",
    "We agreed that {p} is {v}.",
)
TELL_HELD_OUT = (
    "Let me tell you something: {p} is {v}.",
    "I always forget that {p} is {v}.",
    "You should know that {p} is {v}.",
    "One more thing, {p} is {v}.",
    "Would you believe it, {p} is {v}!",
    "Here is a fact about me and my world. {P} is {v}.",
)
CORRECT = (
    "Actually, {p} is now {v}.",
    "Correction: {p} is {v}.",
    "{P} has changed. It is {v} now.",
    "I changed {p} to {v}.",
    "Sorry, I was wrong: {p} is {v}.",
    "{P} is not {o} any more, it is {v}.",
    "{P} is now {v}, not {o}.",
    "Update: {p} is {v}.",
    "From today on, {p} is {v}.",
    "I made a mistake earlier. {P} is {v}.",
)
CORRECT_HELD_OUT = (
    "Things have changed: {p} is {v} these days.",
    "Forget what I said before, {p} is {v}.",
    "As of this week {p} is {v}.",
)
ASK = (
    "What is {p}?",
    "What is {p}?",
    "What's {p}?",
    "Can you tell me {p}?",
    "Do you remember {p}?",
    "Remind me, what is {p}?",
    "I forgot {p}. What is it?",
    "Tell me {p}, please.",
    "Could you remind me of {p}?",
    "What did I say {p} was?",
    "{P}?",
    "Do you know {p}?",
    "Quick question: what is {p}?",
    "I need {p}.",
)
ASK_HELD_OUT = (
    "Hey, what was {p} again?",
    "I can't recall {p}, can you help?",
    "Earlier I mentioned {p}. What was it?",
    "Please look up {p} for me.",
)
# how people say it without the noun: (noun or kind, told by the user, told about others, asked, asked about
# others)
SPOKEN: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "home town": (
        ("I live in {v}.", "I come from {v}."),
        ("{S} lives in {v}.",),
        ("Where do I live?",),
        ("Where does {s} live?",),
    ),
    "birthplace": (
        ("I was born in {v}.",),
        ("{S} was born in {v}.",),
        ("Where was I born?",),
        ("Where was {s} born?",),
    ),
    "job": (
        ("I work as a {v}.", "I am a {v}."),
        ("{S} works as a {v}.", "{S} is a {v}."),
        ("What do I do for a living?", "What is my job?"),
        ("What does {s} do for a living?",),
    ),
    "instrument": (
        ("I play the {v}.",),
        ("{S} plays the {v}.",),
        ("Which instrument do I play?",),
        ("Which instrument does {s} play?",),
    ),
    "car": (
        ("I drive a {v}.",),
        ("{S} drives a {v}.",),
        ("Which car do I drive?",),
        ("Which car does {s} drive?",),
    ),
    "age": (("I am {v} years old.",), ("{S} is {v} years old.",), ("How old am I?",), ("How old is {s}?",)),
    "birthday": (
        ("I was born on {v}.", "My birthday is on {v}."),
        ("{S} was born on {v}.",),
        ("When is my birthday?",),
        ("When is {s}'s birthday?",),
    ),
    "hobby": (
        ("I enjoy {v}.", "In my free time I like {v}."),
        ("{S} enjoys {v}.",),
        ("What do I do in my free time?",),
        ("What does {s} do in their free time?",),
    ),
    "native language": (
        ("I grew up speaking {v}.",),
        ("{S} grew up speaking {v}.",),
        ("Which language did I grow up with?",),
        ("Which language did {s} grow up with?",),
    ),
    "wake-up time": (
        ("I get up at {v}.",),
        ("{S} gets up at {v}.",),
        ("When do I get up?",),
        ("When does {s} get up?",),
    ),
    "allergy": (
        ("I am allergic to {v}.",),
        ("{S} is allergic to {v}.",),
        ("What am I allergic to?",),
        ("What is {s} allergic to?",),
    ),
    "room number": (
        ("I am staying in room {v}.",),
        ("{S} is staying in room {v}.",),
        ("Which room am I in?",),
        ("Which room is {s} in?",),
    ),
    "bus number": (
        ("I take bus {v}.",),
        ("{S} takes bus {v}.",),
        ("Which bus do I take?",),
        ("Which bus does {s} take?",),
    ),
    "surname": (
        ("My last name is {v}.",),
        ("{S}'s last name is {v}.",),
        ("What is my last name?",),
        ("What is {s}'s last name?",),
    ),
    "nickname": (
        ("People call me {v}.", "Everybody calls me {v}."),
        ("People call {s} {v}.",),
        ("What do people call me?",),
        ("What do people call {s}?",),
    ),
    "company": (
        ("I work for {v}.",),
        ("{S} works for {v}.",),
        ("Who do I work for?",),
        ("Who does {s} work for?",),
    ),
    "holiday destination": (
        ("I am going to {v} on holiday.",),
        ("{S} is going to {v} on holiday.",),
        ("Where am I going on holiday?",),
        ("Where is {s} going on holiday?",),
    ),
    "star sign": (("I am a {v}.",), ("{S} is a {v}.",), ("What is my sign?",), ("What is {s}'s sign?",)),
}
PET_SPOKEN = (
    ("I have a {n} called {v}.", "My {n} is called {v}.", "I have a {n} named {v}.", "I named my {n} {v}."),
    ("{S} has a {n} called {v}.", "{S}'s {n} is called {v}.", "{S} has a {n} named {v}."),
    ("What is my {n} called?", "What is the name of my {n}?"),
    ("What is {s}'s {n} called?", "What is the name of {s}'s {n}?"),
)
PASSKEY = ("The {n} is {v}. Remember it. {v} is the {n}.", "The {n} is {v}. Remember it.")
