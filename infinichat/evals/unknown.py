"""``unknown``: what was never told must be admitted, and what was told must not be refused.

A third of the questions are about things nobody mentioned, every second of them about a person of whom
something else was told; a third about neighbours of what was told, "Otto's dog" where only Clara's was named,
or Clara's cat. The last third ask for facts that were told: there, right means "did not refuse" (whether the
value is right is what ``facts`` counts).
"""

from __future__ import annotations

import random
from typing import Any

from infinichat.corpus.facts import FactMaker, Side
from infinichat.corpus.sentences import NOT_TOLD
from infinichat.evals.asking import Asked, Script
from infinichat.evals.bench import Bench
from infinichat.evals.judging import admits
from infinichat.evals.task import Options, Report
from infinichat.evals.telling import as_messages, distinct_facts, neighbours, strangers
from infinichat.evals.told import measure_told


def script(rng: random.Random, *, side: Side, count: int) -> Script:
    """``count`` facts told; as many questions about others and about neighbours, and one about each."""
    maker = FactMaker(side)
    facts = distinct_facts(maker, count, rng)
    told = as_messages([maker.tell(rng, fact) for fact in facts], rng)
    asked = [
        Asked(maker.ask(rng, fact).ask, admits, NOT_TOLD, "never told")
        for fact in strangers(maker, facts, count, rng)
    ]
    asked += [Asked(maker.ask(rng, fact).ask, speaks, fact.value, "told, not refused") for fact in facts]
    asked += [
        Asked(maker.ask(rng, fact).ask, admits, NOT_TOLD, "never told, a neighbour was")
        for fact in neighbours(maker, facts, count, rng)
    ]
    return Script(told, tuple(asked), facts=count)


def speaks(answer: str) -> bool:
    """Whether an answer does not refuse."""
    return not admits(answer)


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by number of facts, length, memory, side, and whether the thing was told."""
    return measure_told("unknown", script, bench, options, transcript)
