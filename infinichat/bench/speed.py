"""``bench decode``, ``bench prefill`` and ``bench resume``: one engine beside the other, round by round.

decode    tokens/s of an answer after so many tokens of history (greedy)
prefill   tokens/s of reading so many tokens, from nothing to the choice of the first id
read      the same, as ``infinichat read`` reads a document (``model.reading``)
resume    a conversation comes back from disk: seconds to the next id. Engines that keep no state on disk
          read the whole conversation again
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from infinichat.bench.peers import Options, Running, Say, prompt_ids, started
from infinichat.bench.report import Report, Row, machine_now, median_ratio, roof_cells, speeds
from infinichat.bench.wire import Task

Reading = Literal["prefill", "read"]

OURS = "infinichat"
"""The engine that has a roof and reads documents in a way of its own."""

WARM_UP = 4
"""Ids generated before the first round: threads start, buffers and caches are filled."""


def decode(options: Options, *, histories: Sequence[int], tokens: int, rounds: int, say: Say) -> Report:
    """Each history is read once by each engine; then ``rounds`` rounds share ``tokens`` ids."""
    share = max(1, tokens // rounds)

    def measure(engines: list[Running], history: int) -> list[Row]:
        first = [_read(engine, prompt_ids(history)) for engine in engines]
        for engine in engines:
            engine.child.ask("decode", count=WARM_UP)
        taken: list[list[list[float]]] = [[] for _ in engines]
        for number in range(rounds):
            say(f"history {history:,}: round {number + 1} of {rounds}")
            for engine, mine in zip(engines, taken, strict=True):
                mine.append(engine.child.ask("decode", count=share)["seconds"])
        rates = [speeds(mine) for mine in taken]
        return [
            _row(engine, history, rate, rates[0], first_token_s=seconds, task="decode")
            for engine, rate, seconds in zip(engines, rates, first, strict=True)
        ]

    return _measured("decode", options, histories, measure, say)


def prefill(
    options: Options, *, histories: Sequence[int], rounds: int, say: Say, task: Reading = "prefill"
) -> Report:
    """Each engine reads each history ``rounds`` times, other ids each time; "read": as a document."""

    def measure(engines: list[Running], history: int) -> list[Row]:
        for engine in engines:
            _read(engine, prompt_ids(min(history, 64)))
        taken: list[list[float]] = [[] for _ in engines]
        for number in range(rounds):
            say(f"{history:,} tokens: round {number + 1} of {rounds}")
            ids = prompt_ids(history, seed=number + 1)
            for engine, mine in zip(engines, taken, strict=True):
                mine.append(_read(engine, ids, task))
        rates = [[history / seconds for seconds in mine] for mine in taken]
        return [
            _row(engine, history, rate, rates[0], first_token_s=statistics.median(mine), task=task)
            for engine, rate, mine in zip(engines, rates, taken, strict=True)
        ]

    return _measured(task, options, histories, measure, say)


def resume(options: Options, *, histories: Sequence[int], rounds: int, say: Say) -> Report:
    """Time to the next id after the conversation was put away. Peers without a state on disk read it
    again."""

    def measure(engines: list[Running], history: int) -> list[Row]:
        taken: list[list[float]] = [[] for _ in engines]
        written: list[float | None] = [None for _ in engines]
        for number in range(rounds):
            say(f"history {history:,}: round {number + 1} of {rounds}")
            for place, (engine, mine) in enumerate(zip(engines, taken, strict=True)):
                if engine.engine == "infinichat":
                    if number == 0:
                        _read(engine, prompt_ids(history))
                    written[place] = engine.child.ask("suspend")["bytes"] / 1e6
                    mine.append(engine.child.ask("resume")["seconds"])
                else:
                    mine.append(_read(engine, prompt_ids(history)))
        return [
            _row(engine, history, None, None, first_token_s=statistics.median(mine), file_mb=size)
            for engine, mine, size in zip(engines, taken, written, strict=True)
        ]

    return _measured("resume", options, histories, measure, say)


def _measured(task: str, options: Options, histories: Sequence[int], measure: object, say: Say) -> Report:
    assert callable(measure)
    machine = machine_now()
    with started(options, say=say) as (engines, notes):
        rows = [row for history in histories for row in measure(engines, history)]
        about = engines[0].about
        if not about["trained"]:
            notes.append(f"the memory of {about['model']} is not trained; it runs as a sliding window.")
    return Report(
        task=task,
        device=about["device"],
        threads=about["threads"],
        rows=tuple(rows),
        machine={**machine, "load_after": machine_now()["load"]},
        notes=tuple(notes),
    )


def _read(engine: Running, ids: list[int], task: Reading = "prefill") -> float:
    # Only ours has two ways.
    call = "document" if task == "read" and engine.engine == OURS else "read"
    return float(engine.child.ask(call, ids=ids)["seconds"])


def _row(
    engine: Running,
    history: int,
    rates: Sequence[float] | None,
    ours: Sequence[float] | None,
    *,
    first_token_s: float,
    file_mb: float | None = None,
    task: Task | None = None,
) -> Row:
    memory = engine.child.ask("memory")
    extra: dict[str, float] = {} if file_mb is None else {"file_mb": file_mb}
    if task is not None and rates is not None and engine.engine == OURS:
        extra |= roof_cells(engine.child.ask("roof", task=task, history=history), statistics.median(rates))
    return Row(
        engine=engine.engine,
        weights=engine.weights,
        history=history,
        tokens_per_s=None if rates is None else statistics.median(rates),
        first_token_s=first_token_s,
        rss_mb=memory["rss_mb"],
        state_mb=memory["state_mb"],
        low=None if rates is None else min(rates),
        high=None if rates is None else max(rates),
        ratio=None if rates is None or ours is None else median_ratio(ours, rates),
        extra=extra,
    )
