"""``facts``: N facts told in one conversation, then filler, then a question about each.

An answer is right when it holds the value that was told, as whole words. ``seen`` are people and values never
trained on with attributes and phrasings that were; ``held_out`` are attributes and phrasings never trained
on. Most of what is measured at length L was told somewhat further back than L: the distance counts from the
last fact."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from infinichat.corpus.facts import Fact, FactMaker, Side
from infinichat.evals.asking import Asked, Script, plan, play
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText
from infinichat.evals.judging import says
from infinichat.evals.task import Options, Report, Tally, per_conversation
from infinichat.evals.telling import as_messages, distinct_facts


def script(rng: random.Random, *, side: Side, count: int, questions: int) -> Script:
    """``count`` facts in messages, and ``questions`` of them asked for in random order."""
    maker = FactMaker(side)
    facts = distinct_facts(maker, count, rng)
    told = as_messages([maker.tell(rng, fact) for fact in facts], rng)
    asked = questions_about(maker, rng.sample(facts, min(questions, count)), rng)
    return Script(told, asked, facts=count)


def questions_about(maker: FactMaker, facts: Sequence[Fact], rng: random.Random) -> tuple[Asked, ...]:
    """A question about each of ``facts``, in the order given."""
    return tuple(Asked(maker.ask(rng, fact).ask, says(fact.value), fact.value) for fact in facts)


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by number of facts, length, memory, side and kind of filler."""
    filler, tally = FillerText(options.filler), Tally()
    for count in options.facts:
        # More questions than this in one conversation add little: they share its luck.
        questions = min(count, options.samples, 64)
        for side in options.sides:
            for kind in options.kinds:
                seed = f"{options.seed}/facts/{count}/{side}/{kind}"

                def make(
                    rng: random.Random, side: Side = side, count: int = count, n: int = questions
                ) -> Script:
                    return script(rng, side=side, count=count, questions=n)

                wanted = plan(
                    bench,
                    options,
                    filler,
                    make,
                    kind=kind,
                    conversations=per_conversation(options.samples, questions),
                    seed=seed,
                    label={"side": side, "filler": kind},
                )
                play(bench, wanted, tally, transcript)
    return Report("facts", bench.engine.info.name, options.seed, tally.cells(), list(filler.notes))
