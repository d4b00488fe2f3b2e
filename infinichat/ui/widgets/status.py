"""The status line: what runs and how, how much the session has seen, what the memory holds.

It is one line at every width. Fields are dropped from the right of ``_ORDER`` until the rest fits, and gauges
give way to percentages first. What is not known yet is not shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

from infinichat.text import figures
from infinichat.text.harmless import one_line
from infinichat.ui.palette import MUTED

SEPARATOR = "  "


@dataclass(frozen=True, slots=True)
class Status:
    """The fields. ``window`` is (tokens in it, its size); ``memory`` the mean saturation in 0..1 over layers;
    ``rss`` resident bytes; ``loading`` a sentence while a checkpoint loads."""

    model: str | None = None
    loading: str | None = None
    problem: str | None = None
    tokens_seen: int | None = None
    window: tuple[int, int] | None = None
    memory: float | None = None
    trained: bool = True
    tokens_per_s: float | None = None
    first_token_s: float | None = None
    rss: int | None = None


class StatusLine(Static):
    """Paints a ``Status``; ``set`` changes some of its fields."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(markup=False, id=id)
        self.status = Status()

    def set(self, **changes: Any) -> None:
        """Change fields; the line is painted again when one is different."""
        changed = replace(self.status, **changes)
        if changed != self.status:
            self.status = changed
            self._paint()

    def on_resize(self) -> None:
        self._paint()

    def _paint(self) -> None:
        self.update(line(self.status, self.size.width), layout=False)


def line(status: Status, width: int) -> Content:
    """The status in at most ``width`` cells."""
    fields = [fields_of(status, gauge) for gauge in (8, 4, 0)]
    for candidate in fields:
        if _width(candidate) <= width:
            return _joined(candidate)
    parts = fields[-1]
    for name in ("rss", "first", "speed", "tokens", "window", "memory"):
        parts = [part for part in parts if part[0] != name]
        if _width(parts) <= width:
            break
    return _joined(parts)


Part = tuple[str, str, str]
"""Name, text, style."""


def fields_of(status: Status, gauge: int) -> list[Part]:
    """Every field that is known, left to right; ``gauge`` is the number of cells of a gauge, 0 for none."""
    return [*_model(status), *_state(status, gauge), *_cost(status)]


def _model(status: Status) -> list[Part]:
    if status.problem:
        return [("model", f"✗ {status.problem}", "bold $text-error")]
    if status.loading:
        return [("model", f"◌ {status.loading}", "$text-warning")]
    if status.model:
        return [("model", f"● {one_line(status.model, 28)}", "$text-success")]
    return []


def _state(status: Status, gauge: int) -> list[Part]:
    parts: list[Part] = []
    if status.tokens_seen is not None:
        parts.append(("tokens", f"{figures.tokens(status.tokens_seen)} tokens", ""))
    if status.window is not None:
        held, whole = status.window
        shown = f"{figures.bar(held / whole, gauge)} " if gauge else ""
        parts.append(("window", f"window {shown}{figures.percent(held / whole)}", "$text-primary"))
    if not status.trained:
        parts.append(("memory", "memory off", MUTED))
    elif status.memory is not None:
        shown = f"{figures.bar(status.memory, gauge)} " if gauge else ""
        parts.append(("memory", f"memory {shown}{figures.percent(status.memory)}", "$text-accent"))
    return parts


def _cost(status: Status) -> list[Part]:
    parts: list[Part] = []
    if status.tokens_per_s is not None:
        parts.append(("speed", f"{status.tokens_per_s:.0f} tok/s", ""))
    if status.first_token_s is not None:
        parts.append(("first", f"first {figures.duration(status.first_token_s)}", ""))
    if status.rss is not None:
        parts.append(("rss", figures.size(status.rss), MUTED))
    return parts


def _width(parts: list[Part]) -> int:
    return cell_len(SEPARATOR.join(text for _, text, _ in parts))


def _joined(parts: list[Part]) -> Content:
    pieces: list[str | tuple[str, str]] = []
    for index, (_, text, style) in enumerate(parts):
        if index:
            pieces.append(SEPARATOR)
        pieces.append((text, style) if style else text)
    return Content.assemble(*pieces)
