"""The measures that tell facts and ask for them later: one conversation after another, for every number of
facts, side of the corpus and kind of filler. What is told, asked and right is the measure's own script."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from infinichat.corpus.facts import Side
from infinichat.evals.asking import Script, plan, play
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText
from infinichat.evals.task import Options, Report, Tally, per_conversation


class MakeScript(Protocol):
    """What one conversation with ``count`` facts tells and asks."""

    def __call__(self, rng: random.Random, *, side: Side, count: int) -> Script: ...


def measure_told(
    task: str,
    script: MakeScript,
    bench: Bench,
    options: Options,
    transcript: list[dict[str, Any]] | None,
    *,
    counts: Sequence[int] | None = None,
    questions: Callable[[int], int] = lambda count: count,
    sides: Sequence[Side] | None = None,
) -> Report:
    """Cells by number of facts, length, memory, side and kind of filler. ``counts`` are the numbers of facts
    and ``sides`` of the corpus which (default: those of the options), ``questions`` how many a conversation
    with so many facts is counted for."""
    filler, tally = FillerText(options.filler), Tally()
    for count in options.facts if counts is None else counts:
        for side in options.sides if sides is None else sides:
            for kind in options.kinds:

                def make(rng: random.Random, side: Side = side, count: int = count) -> Script:
                    return script(rng, side=side, count=count)

                wanted = plan(
                    bench,
                    options,
                    filler,
                    make,
                    kind=kind,
                    conversations=per_conversation(options.samples, questions(count)),
                    seed=f"{options.seed}/{task}/{count}/{side}/{kind}",
                    label={"side": side, "filler": kind},
                )
                play(bench, wanted, tally, transcript)
    return Report(task, bench.engine.info.name, options.seed, tally.cells(), list(filler.notes))
