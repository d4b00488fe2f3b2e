"""``updates``: facts told and later corrected, once or twice; the newest value must come back, no older
one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from infinichat.corpus.facts import FactMaker, Side
from infinichat.corpus.sentences import Fact
from infinichat.errors import UsageError
from infinichat.evals.asking import Asked, Script
from infinichat.evals.bench import Bench
from infinichat.evals.judging import says_fact
from infinichat.evals.task import Options, Report
from infinichat.evals.telling import as_messages, distinct_facts
from infinichat.evals.told import measure_told

TRIES = 50


def script(rng: random.Random, *, side: Side, count: int) -> Script:
    """``count`` facts; half of them corrected once, half twice, in later messages."""
    maker = FactMaker(side)
    versions = [[fact] for fact in distinct_facts(maker, count, rng)]
    told = as_messages([maker.tell(rng, known[0]) for known in versions], rng)
    for round_number in (1, 2):
        chosen = [known for at, known in enumerate(versions) if round_number == 1 or at % 2]
        rng.shuffle(chosen)
        sentences = []
        for known in chosen:
            old = known[-1]
            known.append(corrected(maker, known, rng))
            sentences.append(maker.tell(rng, known[-1], old=old))
        told += as_messages(sentences, rng)
    asked = [_asked(maker, known, rng) for known in versions]
    rng.shuffle(asked)
    return Script(told, tuple(asked), facts=count)


def corrected(maker: FactMaker, known: list[Fact], rng: random.Random) -> Fact:
    """A newer version whose value is none of the older ones, nor contained in them or the other way round.

    Some kinds have two values on a side (seasons); after some tries those that were trained on are allowed.
    """
    for draw in (maker, FactMaker("train")):
        for _ in range(TRIES):
            value = draw.value(rng, known[0].kind)
            if not any(value in old.value or old.value in value for old in known):
                return replace(known[0], value=value)
    raise UsageError(
        f"there are not enough different values of kind '{known[0].kind}' to correct a fact twice"
    )


def _asked(maker: FactMaker, known: list[Fact], rng: random.Random) -> Asked:
    newest = known[-1]
    older = [fact.value for fact in known[:-1]]
    kind = "corrected once" if len(known) == 2 else "corrected twice"
    return Asked(maker.ask(rng, newest).ask, says_fact(newest, never=older), newest.value, kind)


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by number of facts, length, memory, side, and how often a fact was corrected."""
    return measure_told("updates", script, bench, options, transcript)
