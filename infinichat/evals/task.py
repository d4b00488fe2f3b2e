"""What every measure shares: the options, the cells of a result, and the interval around a share.

A cell counts questions of one kind at one length under one memory condition. A report is a list of cells plus
what a reader needs to judge them: model, seed, and notes about anything that was not as it should be.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from infinichat.corpus.facts import Side

Memory = Literal["on", "off", "wiped", "swapped"]
MEMORIES: tuple[Memory, ...] = ("on", "off", "wiped", "swapped")

FillerKind = Literal["dialogues", "books"]
FILLER_KINDS: tuple[FillerKind, ...] = ("dialogues", "books")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. ``samples`` is the least number of questions in a cell; ``filler`` a folder of text,
    ``None`` for generated small talk; ``tail`` the tokens before a question that run through all layers (at
    least window + segment; ``None``: two windows; ignored where nothing is skipped)."""

    lengths: tuple[int, ...] = (2048, 16384)
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    facts: tuple[int, ...] = (16,)
    samples: int = 48
    memory: tuple[Memory, ...] = ("on", "off")
    sides: tuple[Side, ...] = ("seen", "held_out")
    kinds: tuple[FillerKind, ...] = ("dialogues",)
    filler: Path | None = None
    seed: int = 0
    tail: int | None = None
    max_tokens: int = 32


@dataclass(slots=True)
class Cell:
    """``correct`` of ``n`` questions. Keys that do not apply are ``None``; ``extra`` holds a measure's
    own."""

    length: int | None
    depth: float | None
    facts: int | None
    memory: Memory
    n: int = 0
    correct: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Share of correct answers; ``None`` where nothing is right or wrong (perplexity)."""
        return self.correct / self.n if self.n and "loss" not in self.extra else None

    def as_json(self) -> dict[str, Any]:
        """The cell as ``infinichat eval --json`` prints it, with its 95 % interval."""
        row = {key: value for key, value in asdict(self).items() if key != "extra"}
        row["accuracy"] = rounded(self.accuracy)
        if self.accuracy is not None:
            row["interval"] = [rounded(bound) for bound in wilson(self.correct, self.n)]
        return {**row, **{key: rounded(value) for key, value in self.extra.items()}}


@dataclass(slots=True)
class Report:
    """A finished measurement. ``data`` is what a plot needs and no cell holds."""

    task: str
    model: str
    seed: int
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Over all cells with the memory on; ``None`` when there is none."""
        counted = [cell for cell in self.cells if cell.memory == "on" and cell.accuracy is not None]
        total = sum(cell.n for cell in counted)
        return sum(cell.correct for cell in counted) / total if total else None

    def as_json(self) -> dict[str, Any]:
        """One JSON document."""
        return {
            "task": self.task,
            "model": self.model,
            "seed": self.seed,
            "cells": [cell.as_json() for cell in self.cells],
            "accuracy": rounded(self.accuracy),
            "notes": self.notes,
            "settings": self.settings,
            **({"data": self.data} if self.data else {}),
        }


class Tally:
    """Cells by what they count, in the order in which they were first met."""

    def __init__(self) -> None:
        self._cells: dict[tuple[Any, ...], Cell] = {}

    def add(
        self,
        correct: bool,
        *,
        memory: Memory,
        length: int | None = None,
        depth: float | None = None,
        facts: int | None = None,
        **extra: Any,
    ) -> None:
        """Count one question."""
        cell = self.cell(memory=memory, length=length, depth=depth, facts=facts, **extra)
        cell.n += 1
        cell.correct += correct

    def cell(
        self,
        *,
        memory: Memory,
        length: int | None = None,
        depth: float | None = None,
        facts: int | None = None,
        **extra: Any,
    ) -> Cell:
        """The cell of these keys, empty when it is new."""
        key = (length, depth, facts, memory, tuple(sorted(extra.items())))
        return self._cells.setdefault(key, Cell(length, depth, facts, memory, extra=dict(extra)))

    def cells(self) -> list[Cell]:
        """All cells."""
        return list(self._cells.values())


def wilson(correct: int, n: int, *, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share (E. B. Wilson, 1927); (0, 1) where nothing was asked."""
    if n == 0:
        return 0.0, 1.0
    share, spread = correct / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def rounded(value: Any) -> Any:
    """Six significant digits: enough for any figure here, and short in a file."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def table(report: Report) -> str:
    """The cells as a Markdown table, one line each, then the notes."""
    extra = list(dict.fromkeys(key for cell in report.cells for key in cell.extra))
    fixed = [k for k in ("length", "depth", "facts") if any(getattr(c, k) is not None for c in report.cells)]
    counted = any(cell.accuracy is not None for cell in report.cells)
    head = [*fixed, "memory", *extra, "n", *(["correct", "95 %"] if counted else [])]
    rows = [head, ["---"] * len(head)]
    for cell in report.cells:
        row = [_shown(getattr(cell, key)) for key in fixed]
        row += [cell.memory, *(_shown(cell.extra.get(key)) for key in extra), str(cell.n)]
        if counted:
            low, high = wilson(cell.correct, cell.n)
            share = cell.accuracy
            row += ["", ""] if share is None else [f"{share:.1%}", f"{low:.0%} to {high:.0%}"]
        rows.append(row)
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), *(f"note: {n}" for n in report.notes)])


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def per_conversation(samples: int, questions: int) -> int:
    """How many conversations give at least ``samples`` questions."""
    return max(1, math.ceil(samples / max(1, questions)))
