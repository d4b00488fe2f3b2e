"""``needle``: one sentence that tells a fact, in the middle of a held-out book that is read as a document."""

from __future__ import annotations

import random
from typing import Any

from infinichat.corpus.facts import FactMaker, Side
from infinichat.evals.asking import Asked, Script, plan, play
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText
from infinichat.evals.judging import says_fact
from infinichat.evals.task import Options, Report, Tally

BEGINNING = 64
"""Tokens of the book before a needle at depth 0: it is in the book, not in front of it."""


def script(rng: random.Random, *, side: Side) -> Script:
    """One fact as a sentence between two paragraphs."""
    maker = FactMaker(side)
    fact = maker.fact(rng)
    sentence = maker.tell(rng, fact).text
    return Script(
        (), (Asked(maker.ask(rng, fact).ask, says_fact(fact), fact.value),), 1, f"\n\n{sentence}\n\n"
    )


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by length, depth, memory and side; one needle for each conversation."""
    filler, tally = FillerText(options.filler), Tally()
    for depth in options.depths:
        for side in options.sides:

            def make(rng: random.Random, side: Side = side) -> Script:
                return script(rng, side=side)

            wanted = plan(
                bench,
                options,
                filler,
                make,
                kind="books",
                conversations=options.samples,
                seed=f"{options.seed}/needle/{side}/{depth}",
                label={"side": side, "filler": "books"},
                depth=depth,
                begin=BEGINNING,
            )
            play(bench, wanted, tally, transcript)
    return Report("needle", bench.engine.info.name, options.seed, tally.cells(), list(filler.notes))
