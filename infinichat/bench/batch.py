"""``bench batch``: what many users at once cost, through the engine: one forward a step for all of them.

Each session has a state of its own: a copy of one that has read ``history`` tokens, which goes on with other
tokens than the rest. Then, in rounds, each number of sessions answers for some tokens, greedily: all of them
together, a token each in every step. Reported are the tokens/s of all sessions in sum, the milliseconds that
one session waits for its next token, the bytes of a session's state, and the resident memory while so many
sessions are open. All are in this one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil

from infinichat.bench.peers import Say, prompt_ids
from infinichat.bench.report import Report, Row, machine_now
from infinichat.config import load_settings
from infinichat.engine.batch import Request, generate_many
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.load import load_engine
from infinichat.messages import SamplingOptions
from infinichat.paths import default_paths
from infinichat.protocols import StateDump

SESSIONS = (1, 4, 16, 64)
HISTORY = 1024
"""A full window: the most that a token of the default model costs."""

TOKENS = 16
"""Ids of each session in one round."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many sessions at once, tokens each has read before, tokens each says in a round, rounds."""

    sessions: Sequence[int] = SESSIONS
    history: int = HISTORY
    tokens: int = TOKENS
    rounds: int = 5


def batch(model: str | None, *, sizes: Sizes, threads: int | None, weights: str = "auto", say: Say) -> Report:
    """One row for each number of sessions, fewest first."""
    settings = load_settings(default_paths())
    changes: dict[str, Any] = {"dtype": weights} | ({} if threads is None else {"threads": threads})
    engine = load_engine(model, replace(settings, engine=replace(settings.engine, **changes)))
    numbers = sorted(set(sizes.sessions))
    machine = machine_now()
    say(f"a session reads {sizes.history:,} tokens")
    read = engine.dump_state(_read(engine, sizes.history))
    states: list[Any] = []
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    resident: dict[int, float] = {}
    for turn in range(sizes.rounds):
        for number in numbers:
            while len(states) < number:
                states.append(_another(engine, read, len(states)))
            say(f"{number} session(s): round {turn + 1} of {sizes.rounds}")
            rates[number].append(_rate(engine, states[:number], sizes.tokens))
            resident.setdefault(number, psutil.Process().memory_info().rss / 1e6)
    rows = tuple(_row(engine, number, rates, resident, sizes.history, states) for number in numbers)
    info = engine.info
    return Report("batch", info.device, info.threads, rows, {**machine, "load_after": machine_now()["load"]})


def _read(engine: InfiniEngine, history: int) -> Any:
    state = engine.new_state()
    size = engine.model.config.vocab_size
    for _ in engine.feed(state, [token_id % size for token_id in prompt_ids(history)]):
        pass
    return state


def _another(engine: InfiniEngine, read: StateDump, number: int) -> Any:
    state = engine.load_state(read)
    for _ in engine.feed(state, (number % engine.model.config.vocab_size,), mode="decode"):
        pass
    return state


def _rate(engine: InfiniEngine, states: Sequence[Any], tokens: int) -> float:
    """Tokens/s of all ``states`` in sum. Nothing ends an answer early."""
    options = SamplingOptions(temperature=0, max_tokens=tokens)
    start = time.perf_counter()
    said = sum(1 for _ in generate_many(engine, [Request(state, options) for state in states]))
    return said / (time.perf_counter() - start)


def _row(
    engine: InfiniEngine,
    number: int,
    rates: dict[int, list[float]],
    resident: dict[int, float],
    history: int,
    states: Sequence[Any],
) -> Row:
    mine, fewest = rates[number], rates[min(rates)]
    total = statistics.median(mine)
    gains = [rate / first for rate, first in zip(mine, fewest, strict=True)]
    return Row(
        engine="infinichat",
        weights=engine.step.weights,
        history=history,
        tokens_per_s=total,
        rss_mb=resident[number],
        state_mb=max(engine.state_bytes(state) for state in states[:number]) / 1e6,
        low=min(mine),
        high=max(mine),
        extra={
            "sessions": number,
            "session_ms": 1e3 * number / total,
            "gain": statistics.median(gains),
            "fewest": min(rates),
        },
    )


def table(report: Report) -> str:
    """Markdown: a row for each number of sessions."""
    machine, rows = report.machine, report.rows
    lines = [
        f"batch on {machine['cpu']}, {report.threads} thread(s), {rows[0].weights} weights; each session "
        f"after {rows[0].history or 0:,} tokens",
        "",
        f"| sessions | tokens/s in sum | spread | times that of {rows[0].extra['fewest']} | ms a token of "
        "each | state of each | RAM of the process |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.extra['sessions']} | {row.tokens_per_s or 0:,.0f} | {row.low or 0:,.0f} to "
            f"{row.high or 0:,.0f} | {row.extra['gain']:.2f} | {row.extra['session_ms']:.1f} | "
            f"{row.state_mb or 0:.1f} MB | {row.rss_mb or 0:,.0f} MB |"
            for row in rows
        ),
    ]
    return "\n".join(lines)
