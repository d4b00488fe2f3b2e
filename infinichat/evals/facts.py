"""``facts``: N facts told in one conversation, then filler, then a question about each.

An answer is right when it says the value that was told and nothing beside it (``judging.py``). ``seen`` are
people and values never trained on with attributes and phrasings that were; ``held_out`` are attributes and
phrasings never trained on. Most of what is measured at length L was told somewhat further back than L: the
distance counts from the last fact."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from infinichat.corpus.facts import FactMaker, Side
from infinichat.corpus.sentences import Fact
from infinichat.evals.asking import Asked, Script
from infinichat.evals.bench import Bench
from infinichat.evals.judging import says_fact
from infinichat.evals.task import Options, Report
from infinichat.evals.telling import as_messages, distinct_facts
from infinichat.evals.told import measure_told


def script(rng: random.Random, *, side: Side, count: int, questions: int) -> Script:
    """``count`` facts in messages, and ``questions`` of them asked for in random order."""
    maker = FactMaker(side)
    facts = distinct_facts(maker, count, rng)
    told = as_messages([maker.tell(rng, fact) for fact in facts], rng)
    asked = questions_about(maker, rng.sample(facts, min(questions, count)), rng)
    return Script(told, asked, facts=count)


def questions_about(maker: FactMaker, facts: Sequence[Fact], rng: random.Random) -> tuple[Asked, ...]:
    """A question about each of ``facts``, in the order given."""
    return tuple(Asked(maker.ask(rng, fact).ask, says_fact(fact), fact.value) for fact in facts)


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by number of facts, length, memory, side and kind of filler."""

    def questions(count: int) -> int:
        # More questions than this in one conversation add little: they share its luck.
        return min(count, options.samples, 64)

    def asked(rng: random.Random, *, side: Side, count: int) -> Script:
        return script(rng, side=side, count=count, questions=questions(count))

    return measure_told("facts", asked, bench, options, transcript, questions=questions)
