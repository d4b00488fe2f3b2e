"""Pictures of a report: a heat map of length by depth or number of facts, curves of loss, bars of gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infinichat.evals.task import Cell, Report


def draw(report: Report, file: Path) -> None:
    """Write a PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if report.data.get("bars"):
        figure = _bars(pyplot, report.data["bars"])
    elif any("loss" in cell.extra for cell in report.cells):
        figure = _losses(pyplot, report.cells)
    else:
        figure = _heat(pyplot, report.cells)
    figure.suptitle(f"{report.task}: {report.model}")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def groups(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Cells by everything that is on no axis: one panel each."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        words = [f"memory {cell.memory}", *(str(value) for value in cell.extra.values())]
        found.setdefault("\n".join(words), []).append(cell)
    return found


def _heat(pyplot: Any, cells: list[Cell]) -> Any:
    rows = "depth" if any(cell.depth is not None for cell in cells) else "facts"
    panels = groups(cells)
    lengths = sorted({cell.length or 0 for cell in cells})
    levels = sorted({getattr(cell, rows) or 0 for cell in cells})
    wide = 1.6 + 0.8 * len(lengths)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(max(4.0, wide * len(panels)), 2.4 + 0.5 * len(levels)), squeeze=False
    )
    for axis, (title, members) in zip(axes[0], panels.items(), strict=True):
        grid = [[float("nan")] * len(lengths) for _ in levels]
        for cell in members:
            if cell.accuracy is not None:
                grid[levels.index(getattr(cell, rows) or 0)][lengths.index(cell.length or 0)] = cell.accuracy
        axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for y, row in enumerate(grid):
            for x, share in enumerate(row):
                if share == share:
                    axis.text(x, y, f"{share:.0%}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(lengths)), [short(length) for length in lengths], fontsize=8)
        axis.set_yticks(range(len(levels)), [f"{level:g}" for level in levels], fontsize=8)
        axis.set_xlabel("tokens")
        axis.set_ylabel(rows)
        axis.set_title(title, fontsize=8)
    return figure


def _losses(pyplot: Any, cells: list[Cell]) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4))
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        lines.setdefault(str(cell.extra.get("model", f"memory {cell.memory}")), []).append(cell)
    for name, members in lines.items():
        axis.plot(
            [c.length or 0 for c in members], [c.extra["loss"] for c in members], marker="o", label=name
        )
    axis.set_xscale("log", base=2)
    axis.set_xlabel("tokens")
    axis.set_ylabel("loss, nats a token")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _bars(pyplot: Any, bars: dict[str, dict[str, float]]) -> Any:
    figure, axes = pyplot.subplots(1, len(bars), figsize=(5 * len(bars), 4), squeeze=False)
    for axis, (title, values) in zip(axes[0], bars.items(), strict=True):
        axis.barh(list(values), list(values.values()))
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.invert_yaxis()
    return figure


def short(tokens: int) -> str:
    """1024 as 1K, 1048576 as 1M."""
    if tokens >= 1024 * 1024:
        return f"{tokens / 1024 / 1024:g}M"
    return f"{tokens / 1024:.3g}K" if tokens >= 1024 else str(tokens)
