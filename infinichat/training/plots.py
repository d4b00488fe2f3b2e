"""Pictures of a training run, from its logs: loss and parts of it by step, and what is recalled of held-out
streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SKIPPED = ("stage", "step", "seconds", "check")


def draw(out: Path) -> list[Path]:
    """Write ``<stage>.png`` beside each ``<stage>.jsonl`` in ``out``; returns the pictures, none without
    matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for log in sorted(out.glob("*.jsonl")):
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if lines:
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
            _curves(left, series(lines, None))
            left.set_title(f"{log.stem}: loss")
            left.set_yscale("symlog", linthresh=0.01)
            held_out = series(lines, "check")
            _curves(right, held_out)
            right.set_title("held-out streams")
            if all(value <= 1 for points in held_out.values() for _, value in points):
                right.set_ylim(0, 1)
            figure.tight_layout()
            written.append(log.with_suffix(".png"))
            figure.savefig(written[-1], dpi=100)
            pyplot.close(figure)
    return written


def series(lines: list[dict[str, Any]], inside: str | None) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name: of the lines' own numbers, or of those in their entry ``inside``."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if inside is None and "check" in line:
            continue
        numbers = line if inside is None else line.get(inside, {})
        for name, value in numbers.items():
            if name not in SKIPPED:
                found.setdefault(name, []).append((line["step"], value))
    return found


def _curves(axis: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
    for name, points in curves.items():
        axis.plot([step for step, _ in points], [value for _, value in points], label=name)
    axis.set_xlabel("step")
    if curves:
        axis.legend(fontsize=7)
