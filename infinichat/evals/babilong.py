"""``babilong``: stories in the manner of bAbI's tasks 1 to 5, their sentences spread over a held-out book.

The generator is this project's own and uses none of the published questions; the kinds of reasoning are those
of the first five tasks (arXiv 1502.05698), hidden in long books as in BABILong (arXiv 2406.10149):

    1  where somebody is, after several moves          2  where a thing is that was carried
    3  where a thing was before it came somewhere      4  what lies in which direction of what
    5  who gave what to whom
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from infinichat.evals.asking import Asked, Script, plan, play
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText
from infinichat.evals.judging import says
from infinichat.evals.task import Options, Report, Tally

PEOPLE = ("Mary", "John", "Sandra", "Daniel", "Fred", "Julie")
ROOMS = ("kitchen", "garden", "office", "bedroom", "hallway", "bathroom", "cellar")
THINGS = ("apple", "football", "milk", "lantern", "letter")
MOVES = (
    "{p} went to the {r}.",
    "{p} moved to the {r}.",
    "{p} walked to the {r}.",
    "{p} travelled to the {r}.",
)
Story = tuple[list[str], str, str]
"""Sentences, question, answer."""


def moved(rng: random.Random, person: str, room: str) -> str:
    """A sentence that takes somebody somewhere."""
    return rng.choice(MOVES).format(p=person, r=room)


def one_fact(rng: random.Random) -> Story:
    """The last move of the person counts."""
    people = rng.sample(PEOPLE, 3)
    told: list[str] = []
    places: dict[str, str] = {}
    for person in [*people, *rng.sample(people, 2)]:
        places[person] = rng.choice([room for room in ROOMS if room != places.get(person)])
        told.append(moved(rng, person, places[person]))
    asked = rng.choice(people)
    return told, f"Where is {asked}?", places[asked]


def two_facts(rng: random.Random) -> Story:
    """A thing is where its carrier went."""
    carrier, other = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    start, end, elsewhere = rng.sample(ROOMS, 3)
    told = [
        moved(rng, carrier, start),
        f"{carrier} picked up the {thing}.",
        moved(rng, other, elsewhere),
        moved(rng, carrier, end),
    ]
    return told, f"Where is the {thing}?", end


def three_facts(rng: random.Random) -> Story:
    """Where a carried thing was before the last move."""
    told, _, last = two_facts(rng)
    thing = told[1].rsplit(" ", 1)[-1].rstrip(".")
    before = told[0].rsplit(" ", 1)[-1].rstrip(".")
    return told, f"Where was the {thing} before the {last}?", before


def two_arguments(rng: random.Random) -> Story:
    """What lies where."""
    a, b, c = rng.sample(ROOMS, 3)
    first, second = rng.sample(("north", "south", "east", "west"), 2)
    told = [f"The {a} is {first} of the {b}.", f"The {c} is {second} of the {b}."]
    asked, answer = rng.choice(((first, a), (second, c)))
    return told, f"What is {asked} of the {b}?", answer


def three_arguments(rng: random.Random) -> Story:
    """Who gave what to whom."""
    giver, taker, other = rng.sample(PEOPLE, 3)
    first, second = rng.sample(THINGS, 2)
    told = [f"{giver} gave the {first} to {taker}.", f"{other} gave the {second} to {giver}."]
    question, answer = rng.choice(
        (
            (f"Who gave the {first} to {taker}?", giver),
            (f"What did {giver} give to {taker}?", first),
            (f"Who received the {first}?", taker),
        )
    )
    return told, question, answer


STORIES: tuple[Callable[[random.Random], Story], ...] = (
    one_fact,
    two_facts,
    three_facts,
    two_arguments,
    three_arguments,
)


def script(rng: random.Random, number: int) -> Script:
    """A story of task ``number`` (1 to 5) for the middle of a book."""
    told, question, answer = STORIES[number - 1](rng)
    return Script((), (Asked(question, says(answer), answer),), len(told), spread=tuple(told))


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by task, length and memory; one story for each conversation."""
    filler, tally = FillerText(options.filler), Tally()
    for number in range(1, len(STORIES) + 1):

        def make(rng: random.Random, number: int = number) -> Script:
            return script(rng, number)

        wanted = plan(
            bench,
            options,
            filler,
            make,
            kind="books",
            conversations=options.samples,
            seed=f"{options.seed}/babilong/{number}",
            label={"qa": number},
            begin=64,
        )
        play(bench, wanted, tally, transcript)
    return Report("babilong", bench.engine.info.name, options.seed, tally.cells(), list(filler.notes))
