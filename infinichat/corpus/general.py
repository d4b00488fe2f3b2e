"""Questions that have nothing to do with what a user told: knowledge, small talk, requests.

A memory that is trained on questions about the user alone starts to refuse all others. What the base model
answers to these is what a model with a full memory must go on answering.
"""

from __future__ import annotations

import json
import random
from importlib.resources import files

from infinichat.corpus.filler import Filler
from infinichat.corpus.vocabulary import ANIMALS, FLOWERS, FRUITS, JOBS, SPORTS, words

LANDS = words(
    "Italy, Spain, Japan, China, India, Brazil, Russia, Egypt, Kenya, Norway, Sweden, Turkey, Poland, Chile, "
    "Cuba, Iran, Thailand, Vietnam, Portugal, Belgium, Ireland, Denmark, Finland, Mexico, Peru, Argentina"
)
THINGS = words(
    "photosynthesis, gravity, democracy, inflation, an atom, DNA, evolution, a volcano, the water cycle, an "
    "earthquake, electricity, a metaphor, an algorithm, a computer virus, the internet, a vitamin, a mammal, "
    "jazz, the Renaissance, the stock market, a budget, yoga, a marathon, chess, sushi, a password, a PIN, a "
    "library, a hobby, a birthday, an anniversary, a surname, a postcode, a locker, an allergy, a nickname, "
    "a passport, a star sign, a neighbour, a landlord, a dentist, a favourite, a home town, an address"
)
WELL_KNOWN = words(
    "the largest planet, the longest river, the highest mountain, the speed of light, the boiling point of "
    "water, the square root of 81, the chemical symbol for gold, the largest ocean, the fastest animal, the "
    "first month of the year, the last letter of the alphabet, the opposite of hot, the plural of mouse, the "
    "past tense of go, the number of days in a week, the number of continents, the colour of the sky, the "
    "colour of grass, the meaning of life, the best way to learn a language, the age of the Earth, the name "
    "of the largest desert, the currency of Japan, the currency of India, the author of Hamlet"
)
WHO = words(
    "wrote Hamlet, painted the Mona Lisa, invented the telephone, discovered penicillin, wrote The Odyssey, "
    "composed the Moonlight Sonata, was the first man on the Moon, was Albert Einstein, was Cleopatra, built "
    "the pyramids, was Napoleon, wrote Romeo and Juliet, was Marie Curie, invented the light bulb"
)
REQUESTS: tuple[str, ...] = tuple(
    json.loads(files("infinichat.corpus").joinpath("requests.json").read_text(encoding="utf-8"))
)
"""Requests and small talk, many of them about the speaker's own dog, boss or flight without asking for what
was told: those a memory is most easily mistaken about."""
ASK_WHAT = (
    "What is {x}?",
    "What is {x}?",
    "What's {x}?",
    "Can you tell me {x}?",
    "Do you know {x}?",
    "Remind me, what is {x}?",
    "Tell me {x}, please.",
    "Quick question: what is {x}?",
)
EXPLAIN = (
    "What is {x}?",
    "Explain {x}.",
    "Tell me about {x}.",
    "What do you know about {x}?",
    "Describe {x}.",
)
LONGEST = 200


def general_questions(rng: random.Random, filler: Filler, count: int) -> list[str]:
    """``count`` different ones, half of them made from the lists above and half of them first messages of the
    filler's dialogues of two, which are instructions."""
    made = [rng.choice(ASK_WHAT).format(x=f"the capital of {land}") for land in LANDS]
    for known in WELL_KNOWN:
        made += [form.format(x=known) for form in rng.sample(ASK_WHAT[1:], 2)]
    for thing in THINGS:
        made += [form.format(x=thing) for form in rng.sample(EXPLAIN, 2)]
    made += [f"Who {who}?" for who in WHO]
    for kinds, forms in (
        (ANIMALS, ("What does a {x} eat?", "Where does a {x} live?", "How big is a {x}?")),
        (JOBS, ("What does a {x} do?", "How do I become a {x}?")),
        (FRUITS, ("What colour is a {x}?", "Is {x} healthy?")),
        (SPORTS, ("What are the rules of {x}?", "Who plays {x}?")),
        (FLOWERS, ("How do I grow a {x}?",)),
    ):
        made += [rng.choice(forms).format(x=kind) for kind in rng.sample(kinds, 8)]
    made += [*REQUESTS]
    made = list(dict.fromkeys(made))
    rng.shuffle(made)
    asked = [
        dialogue.messages[0][1]
        for dialogue in filler.dialogues
        if len(dialogue.messages) == 2 and not dialogue.tells and len(dialogue.messages[0][1]) <= LONGEST
    ]
    asked = rng.sample(asked, min(len(asked), count // 2))
    return asked + made[: count - len(asked)]
