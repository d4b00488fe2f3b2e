"""``bench train``: speed and peak memory of one training step, by length of the text.

    sdpa        transformers' Llama with scaled dot-product attention over everything
    type1       our model, every segment inside one forward: the whole graph is kept
    type2       streamed segment by segment, gradients through ``truncate`` segments
    type2-full  streamed, exact gradients through all of them, each segment run twice

All have the same size and random weights, and each step runs in a process of its own, so that its peak memory
is its own (``train_worker.py``). Speed is tokens by second of processor time, which others on the machine
hardly change. What would take longer than the limit is left out, and the table says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infinichat.bench.report import Report, Row, machine_now
from infinichat.errors import UsageError

WAYS = ("sdpa", "type1", "type2", "type2-full")
LENGTHS = (2048, 8192, 32768, 131072)
SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
"""What all sizes of the model share."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One step: which way, over how many tokens, of how large a model."""

    way: str
    tokens: int
    hidden: int
    layers: int
    vocabulary: int
    segment: int
    truncate: int
    threads: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The model, and the seconds that one step may take."""

    hidden: int = 64
    layers: int = 2
    vocabulary: int = 512
    segment: int = 2048
    truncate: int = 2
    limit: float = 300.0


def train(
    *, lengths: Sequence[int], ways: Sequence[str], sizes: Sizes, threads: int | None, say: Say
) -> Report:
    """One row for each way and length that stays within the limit; a note for each that does not."""
    from infinichat.engine.threads import available_cores

    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise UsageError(f"--ways has {unknown[0]!r}; expected some of {', '.join(WAYS)}")
    machine, threads = machine_now(), threads or available_cores()
    rows: list[Row] = []
    notes: list[str] = []
    for way in ways:
        taken: tuple[int, float] | None = None
        for tokens in sorted(lengths):
            say(f"{way}, {tokens:,} tokens")
            # At least linear in the length, whatever it is.
            least = 0.0 if taken is None else taken[1] * tokens / taken[0]
            job = Job(
                way,
                tokens,
                sizes.hidden,
                sizes.layers,
                sizes.vocabulary,
                sizes.segment,
                sizes.truncate,
                threads,
            )
            found = measured(job, sizes.limit) if least <= sizes.limit else f"at least {least:,.0f} s"
            if isinstance(found, str):
                notes.append(f"{way} at {tokens:,} tokens and more left out: {found}; --limit is its limit")
                break
            taken = (tokens, found["seconds"])
            rows.append(_row(job, found))
    return Report(
        task="train",
        device="cpu",
        threads=threads,
        rows=tuple(rows),
        machine={**machine, "load_after": machine_now()["load"], "model": asdict(sizes)},
        notes=tuple(notes),
    )


def measured(job: Job, limit: float) -> dict[str, Any] | str:
    """What the job's process answers, or why it did not."""
    command = [sys.executable, "-m", "infinichat.bench.train_worker", json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit + 30, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {limit:,.0f} s"
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode}, most likely for want of memory"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return f"it failed: {last[0]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(job: Job, found: dict[str, Any]) -> Row:
    extra = {name: found[name] for name in ("seconds", "cpu_seconds", "step_mb", "loss")}
    return Row(
        engine=job.way,
        weights="float32",
        history=job.tokens,
        tokens_per_s=job.tokens / found["cpu_seconds"],
        rss_mb=found["peak_mb"],
        extra=extra,
    )


def table(report: Report) -> str:
    """Markdown: a row for each length; for each way peak memory, of that the step's share, and speed."""
    ways = list(dict.fromkeys(row.engine for row in report.rows))
    by_place = {(row.engine, row.history): row for row in report.rows}
    model = report.machine["model"]
    lines = [
        f"train on {report.machine['cpu']}, {report.threads} thread(s); hidden {model['hidden']}, "
        f"{model['layers']} layers, segments of {model['segment']:,}, type2 through {model['truncate']}",
        "",
        "| tokens | " + " | ".join(f"{way}: peak (step) | tokens/cpu s" for way in ways) + " |",
        "|" + "---|" * (1 + 2 * len(ways)),
    ]
    for tokens in sorted({row.history for row in report.rows if row.history is not None}):
        cells = [cell for way in ways for cell in _cells(by_place.get((way, tokens)))]
        lines.append(f"| {tokens:,} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _cells(row: Row | None) -> tuple[str, str]:
    if row is None or row.tokens_per_s is None:
        return "left out", ""
    return f"{row.rss_mb:,.0f} MB ({row.extra['step_mb']:,.0f})", f"{row.tokens_per_s:,.0f}"
