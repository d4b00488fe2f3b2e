"""``two-step``: the question names no one; who is meant is one fact, what is asked is another.

"My dentist is Clara." … "Clara's locker code is 4821." … "What is my dentist's locker code?" The two
halves of a pair are told in different messages, with other facts between.
"""

from __future__ import annotations

import random
from typing import Any

from infinichat.corpus.facts import FactMaker, Side
from infinichat.corpus.sentences import Fact, Sentence, is_bound
from infinichat.corpus.vocabulary import NAMES, choose
from infinichat.evals.asking import Asked, Script
from infinichat.evals.bench import Bench
from infinichat.evals.judging import says_fact
from infinichat.evals.task import Options, Report
from infinichat.evals.telling import as_messages
from infinichat.evals.told import measure_told

ROLES = (
    *("brother", "sister", "mother", "father", "uncle", "aunt", "cousin", "boss", "neighbour", "best friend"),
    *("grandmother", "grandfather", "landlord", "roommate", "teacher", "colleague", "niece", "nephew"),
    *("dentist", "doctor", "manager"),
)
LARGEST = 40
"""Facts in a conversation: two for each name, and names must not repeat."""


def script(rng: random.Random, *, side: Side, count: int) -> Script:
    """``count`` facts: half of them say who somebody is, half something about that person."""
    maker = FactMaker(side)
    people: dict[str, str] = {}
    roles = list(ROLES)
    rng.shuffle(roles)
    while len(people) < max(1, count // 2):
        people.setdefault(choose(rng, NAMES, True), roles[len(people)])
    first: list[Sentence] = []
    second: list[Sentence] = []
    asked: list[Asked] = []
    for name, role in people.items():
        first.append(maker.tell(rng, Fact("user", "", role, "person", name)))
        fact = personal(maker, name, rng)
        second.append(maker.tell(rng, fact))
        question = maker.ask(rng, Fact("kin", role, fact.noun, fact.kind, fact.value))
        asked.append(Asked(question.ask, says_fact(fact), fact.value))
    rng.shuffle(second)
    rng.shuffle(asked)
    return Script(as_messages(first, rng) + as_messages(second, rng), tuple(asked), facts=2 * len(people))


def personal(maker: FactMaker, name: str, rng: random.Random) -> Fact:
    """A fact about a person of this name that is not itself a person."""
    while True:
        fact = maker.fact(rng)
        if fact.subject != "thing" and fact.kind != "person" and not is_bound(fact):
            return Fact("person", name, fact.noun, fact.kind, fact.value)


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by number of facts, length, memory and side."""
    counts = sorted({min(count, LARGEST) for count in options.facts})
    return measure_told(
        "two-step", script, bench, options, transcript, counts=counts, questions=lambda count: count // 2
    )
