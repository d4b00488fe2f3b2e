"""Rows of a measurement: as a table, as JSON, as a plot. And the machine they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One engine at one length of history in tokens (``None``: a measurement of the app, whose times are in
    ``extra``). ``low`` and ``high`` are the slowest and fastest round's tokens/s; ``ratio`` is infinichat's
    speed over this engine's in the same rounds (median)."""

    engine: str
    weights: str
    history: int | None
    tokens_per_s: float | None = None
    first_token_s: float | None = None
    rss_mb: float | None = None
    state_mb: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        row = {key: _rounded(value) for key, value in asdict(self).items() if key != "extra"}
        return {**row, **{key: _rounded(value) for key, value in self.extra.items()}}


@dataclass(frozen=True, slots=True)
class Report:
    """A finished measurement. ``notes`` are sentences about what was left out and why."""

    task: str
    device: str
    threads: int
    rows: tuple[Row, ...]
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "device": self.device,
            "threads": self.threads,
            "machine": self.machine,
            "notes": list(self.notes),
            "rows": [row.as_json() for row in self.rows],
        }


def machine_now() -> dict[str, Any]:
    """Processor, cores and how busy they are: a measurement without that says nothing."""
    from infinichat.engine.compiler import processor_name
    from infinichat.engine.threads import available_cores

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": processor_name(), "cores": available_cores(), "system": platform.system(), "load": load}


def speeds(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Tokens/s of each round, from the seconds of its tokens."""
    return [len(seconds) / sum(seconds) for seconds in rounds]


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of ours / theirs, round by round: what both met in that round cancels."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def roof_cells(roof: Mapping[str, float], tokens_per_s: float) -> dict[str, float]:
    """For a row's ``extra``: what a token needs, what the machine does, and the share of the lower of its two
    limits that ``tokens_per_s`` reaches (``roofs``)."""
    by_bytes = roof["bytes"] / roof["bytes_per_s"]
    by_operations = roof["operations"] / roof["operations_per_s"]
    return {
        "token_mb": roof["bytes"] / 1e6,
        "token_mflop": roof["operations"] / 1e6,
        "gb_per_s": roof["bytes_per_s"] / 1e9,
        "gflop_per_s": roof["operations_per_s"] / 1e9,
        "reached": tokens_per_s * max(by_bytes, by_operations),
    }


def table(report: Report) -> str:
    """The report as text."""
    machine = report.machine
    lines = [
        f"{report.task} on {report.device}, {report.threads} thread(s); {machine['cpu']}, "
        f"{machine['cores']} cores, load {machine['load']:.1f}"
        if machine.get("load") is not None
        else f"{report.task} on {report.device}, {report.threads} thread(s); {machine['cpu']}",
        "",
    ]
    timed = any(row.history is None for row in report.rows)
    head = _TIMES_HEAD if timed else _HEAD
    body = [head, *(_times(row) if timed else _cells(row) for row in report.rows)]
    widths = [max(len(cells[i]) for cells in body) for i in range(len(head))]
    for cells in body:
        aligned = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    roofs = next((row.extra for row in report.rows if "reached" in row.extra), None)
    if roofs is not None:
        lines.append(
            f"this machine: {roofs['gb_per_s']:.1f} GB/s from memory, {roofs['gflop_per_s']:.0f} GFLOP/s; "
            "reached: of the lower of the two limits that these set to a token"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def plot(report: Report, file: Path) -> None:
    """Draw against history what was measured: speed, times, memory, disk; each figure from zero, so that what
    does not grow is seen as a flat line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (name, label) for name, label in _PANELS if any(_figure(row, name) is not None for row in report.rows)
    ]
    lines = -(-len(panels) // _PANELS_A_LINE)
    columns = -(-len(panels) // lines)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.5 * columns, 4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for (name, label), axis in zip(panels, axes.flat, strict=False):
        for engine in dict.fromkeys((row.engine, row.weights) for row in report.rows):
            rows = [row for row in report.rows if (row.engine, row.weights) == engine]
            points = [(row.history, _figure(row, name)) for row in rows if _figure(row, name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=" ".join(engine))
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("tokens" if report.task == "train" else "tokens of history")
        axis.set_title(label)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(f"{report.task}: {report.machine['cpu']}, {report.threads} thread(s)")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


_PANELS = (
    ("tokens_per_s", "tokens/s"),
    ("cpu_ms", "reading, ms of processor a token"),
    ("decode_ms", "answering, ms a token"),
    ("first_token_s", "seconds to the first token"),
    ("rss_mb", "resident memory, MB"),
    ("state_mb", "state, MB"),
    ("disk_mb", "written to disk at the end of a turn, MB"),
)
_PANELS_A_LINE = 4


def _figure(row: Row, name: str) -> float | None:
    figure: float | None = row.extra.get(name) if name not in Row.__slots__ else getattr(row, name)
    return figure


_HEAD = (
    "engine",
    "weights",
    "history",
    "tokens/s",
    "spread",
    "first token",
    "RAM",
    "state",
    "we are",
    "a token",
    "reached",
)
_TIMES_HEAD = ("engine", "what", "messages", "median", "95 %", "longest", "times")


def _times(row: Row) -> tuple[str, ...]:
    about = row.extra
    times = (_number(about[name], "{:.1f} ms") for name in ("p50_ms", "p95_ms", "max_ms"))
    return (row.engine, about["phase"], f"{about['messages']:,}", *times, str(about["n"]))


def _cells(row: Row) -> tuple[str, ...]:
    spread = "" if row.low is None or row.high is None else f"{row.low:.1f}-{row.high:.1f}"
    return (
        row.engine,
        row.weights,
        _number(row.history, "{:,}"),
        _number(row.tokens_per_s, "{:.1f}"),
        spread,
        _number(row.first_token_s, "{:.3f} s"),
        _number(row.rss_mb, "{:.0f} MB"),
        _number(row.state_mb, "{:.1f} MB"),
        _number(row.ratio, "{:.2f} x"),
        _needs(row.extra),
        _number(row.extra.get("reached"), "{:.0%}"),
    )


def _needs(extra: Mapping[str, Any]) -> str:
    return f"{extra['token_mb']:.1f} MB {extra['token_mflop']:.0f} MFLOP" if "reached" in extra else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
