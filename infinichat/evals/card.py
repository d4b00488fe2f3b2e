"""``infinichat eval card``: everything a checkpoint's card says, from one command, in one folder.

The work is cut into parts that know nothing of each other: a ``Route`` with all its conversations, or one of
the measures that are no conversations (perplexity, chat, gates, the paper's own memory, the base with its
full attention). ``workers`` processes take them one after the other. A part writes into the
folder as it goes, so a run that was stopped, or that was given less time, is started again with the same
words and goes on; whatever is there is in the tables (``sheet.py``), with the number of questions so far.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from infinichat.errors import UsageError
from infinichat.evals import chat, gates, peers, perplexity
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText
from infinichat.evals.routes import MOST_ASKED, K, Route, all_routes
from infinichat.evals.task import Options, Report
from infinichat.evals.travel import Journey, Log

if TYPE_CHECKING:
    from infinichat.config import Settings
    from infinichat.engine.generate import InfiniEngine

Measure = Callable[[Bench, Options, list[dict[str, Any]]], Report]

MEASURES: dict[str, tuple[Measure, dict[str, Any], int]] = {
    "perplexity": (perplexity.measure, {"lengths": (16 * K,), "samples": 3, "memory": ("on", "off")}, 250),
    "chat": (chat.measure, {"facts": (16,), "samples": 170}, 200),
    "gates": (gates.measure, {"lengths": (8 * K,), "samples": 64}, 60),
    "paper": (peers.paper, {"lengths": (16 * K,), "facts": (16,), "samples": 48}, 150),
    "base": (peers.base, {"lengths": (6 * K,), "facts": (16,), "samples": 48}, 60),
}
"""What is measured beside the routes: how, with which options, and about how many seconds one core takes."""

READING = 1100
"""Tokens a second of one core below the memory, for the estimate only."""

ARRIVING, ANSWERING = 3.0, 0.1
"""Seconds to tell and arrive once, and for one answer among many, for the estimate only."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of work: ``name`` is also its file's. ``seconds`` is an estimate for one core."""

    name: str
    seconds: float
    route: Route | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for. ``only``: parts whose names begin with one of these."""

    out: Path
    filler: Path | None
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 1
    only: tuple[str, ...] = ()


FIRST = ("books", "dialogues", "perplexity", "chat", "base", "depths")
"""What is begun first, so that a run that is cut short has the headline."""


def parts(order: Order) -> list[Part]:
    """All parts of an order, in the order in which they are begun."""
    routes = all_routes(order.seeds)
    found = [Part(route.name, _estimate(route), route) for route in routes]
    found += [Part(name, seconds) for name, (_, _, seconds) in MEASURES.items()]
    longest = found[0]

    def rank(part: Part) -> int:
        # The way to a million tokens first; a route of books of another seed is not urgent.
        kind = part.name.partition("-")[0]
        urgent = part is longest or kind != "books"
        return FIRST.index(kind) if urgent and kind in FIRST else len(FIRST)

    return [part for part in sorted(found, key=rank) if not order.only or part.name.startswith(order.only)]


def _estimate(route: Route) -> float:
    answers = sum(
        group.conversations * len(group.lengths) * (min(group.facts, MOST_ASKED) + 3 * min(group.facts, 16))
        for group in route.groups
    )
    return route.length / READING + ARRIVING * _arrivals(route) + ANSWERING * answers


def _arrivals(route: Route) -> int:
    return sum(group.conversations * len(group.lengths) for group in route.groups)


def budget(order: Order) -> str:
    """The parts and how long they will take, as a table."""
    rows = [
        f"| {part.name} | {part.route.length if part.route else 0:,} | "
        f"{_arrivals(part.route) if part.route else 0} | "
        f"{part.seconds / 60:.1f} |"
        for part in parts(order)
    ]
    total = sum(part.seconds for part in parts(order)) / 60
    end = f"| all, {order.workers} at a time | | | {total / order.workers:.0f} |"
    return "\n".join(["| part | filler | asked | minutes |", "| --- | --- | --- | --- |", *rows, end])


def about(order: Order) -> dict[str, Any]:
    """What ``recall.json`` says about how it came to be; the model's part was left by the first process."""
    file = order.out / "model.json"
    model = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    seeds = ",".join(map(str, order.seeds))
    only = f" --only {','.join(order.only)}" if order.only else ""
    command = f"infinichat eval card --seeds {seeds} --workers {order.workers}{only} --filler DIR --out DIR"
    return {**model, "command": command, "seeds": list(order.seeds), "date": time.strftime("%Y-%m-%d")}


def remember(order: Order, engine: InfiniEngine) -> None:
    """Note which model this folder is about. Raises ``UsageError`` when it is about another one."""
    info, file = engine.info, order.out / "model.json"
    capability = torch.backends.cpu.get_cpu_capability().replace("AVX", "AVX-")
    model = {
        "model": info.name,
        "fingerprint": info.fingerprint,
        "window": info.window,
        "segment": info.segment,
        "machine": f"{os.cpu_count()} CPU cores ({capability}, {info.dtype})",
    }
    if not file.exists():
        file.write_text(json.dumps(model, indent=1), encoding="utf-8")
    known = json.loads(file.read_text(encoding="utf-8"))["fingerprint"]
    if known != info.fingerprint:
        raise UsageError(
            f"{order.out} has results of the model {known[:12]}, and this is {info.fingerprint[:12]}. Next: "
            "another folder for --out."
        )


def run_part(engine: InfiniEngine, order: Order, name: str, say: Callable[[str], None]) -> float:
    """Do one part, or what is missing of it; seconds."""
    begun = time.perf_counter()
    remember(order, engine)
    part = next(part for part in parts(replace(order, only=())) if part.name == name)
    bench = Bench.of(engine, say)
    if part.route is not None:
        log = Log(order.out / f"{name}.jsonl")
        Journey(bench, part.route, FillerText(order.filler), log).run()
    else:
        file = order.out / f"{name}.json"
        if not file.exists():
            measure, options, _ = MEASURES[name]
            answers: list[dict[str, Any]] = []
            report = measure(bench, Options(filler=order.filler, **options), answers)
            document = {**report.as_json(), "answers": answers}
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
            partial.replace(file)
    seconds = time.perf_counter() - begun
    with (order.out / "times.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"part": name, "seconds": round(seconds, 1)}) + "\n")
    return seconds


def run_all(
    order: Order, load: Callable[[], InfiniEngine], remote: tuple[str | None, Settings] | None
) -> None:
    """Do every part: here with the engine of ``load``, or, with more than one worker, in processes that load
    ``remote``'s checkpoint themselves."""
    order.out.mkdir(parents=True, exist_ok=True)
    names = [part.name for part in parts(order)]
    if order.workers == 1 or remote is None:
        engine = load()
        for name in names:
            _say(f"{name}: {run_part(engine, order, name, _say):.0f} s")
        return
    # One thread each: several processes that share cores gain nothing from more.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(order.workers, mp_context=context, initializer=_start, initargs=remote) as pool:
        waiting = {pool.submit(_work, order, name): name for name in names}
        failed = None
        for done in as_completed(waiting):
            # One part that fails takes none of the others with it.
            error = done.exception()
            failed = error or failed
            _say(f"{waiting[done]}: {error if error else f'{done.result():.0f} s'}")
    if failed is not None:
        raise failed


_engine: InfiniEngine | None = None


def _start(model: str | None, settings: Settings) -> None:
    """What every worker does once."""
    from infinichat.engine.load import load_engine

    global _engine
    one = replace(settings, engine=replace(settings.engine, threads=1))
    _engine = load_engine(model, one)


def _work(order: Order, name: str) -> float:
    assert _engine is not None
    return run_part(_engine, order, name, _say)


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def lines_of(out: Path, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Every line that the routes have written."""
    files = sorted(out.glob("*-*.jsonl"))
    return [line for file in files if names is None or file.stem in names for line in Log(file).lines]
