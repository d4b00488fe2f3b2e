"""The checkpoints that can be chosen, as the screens see them, and the real list behind it.

The screens know ``ModelCatalog`` only. ``RegistryCatalog`` asks ``infinichat.model.registry``, imported when
it is first used, because that part of the package may import torch; tests put a list in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from infinichat.paths import Paths
from infinichat.protocols import CancelFlag
from infinichat.text import figures

if TYPE_CHECKING:
    from infinichat.model.card import RecallPoint
    from infinichat.model.pull import PullProgress
    from infinichat.model.registry import Registry


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One checkpoint. ``size`` is what its files take, in bytes; ``recall`` what was measured, by name of the
    measure (0..1), empty when nothing was, ``by_distance`` the same point by point where the card says how
    far from the telling it was asked; ``problem`` a sentence when it is there and cannot be used."""

    name: str
    installed: bool
    trained: bool
    description: str = ""
    size: int | None = None
    path: Path | None = None
    default: bool = False
    recall: Mapping[str, float] = field(default_factory=dict)
    by_distance: tuple[RecallPoint, ...] = ()
    problem: str | None = None


PullReport = Callable[[str, int, int | None], None]
"""``report(what, done, total)`` in bytes; ``total`` is ``None`` where nobody knows it."""


class ModelCatalog(Protocol):
    """Both calls may take long and are made on a worker thread."""

    def entries(self) -> list[CatalogEntry]: ...

    def pull(self, name: str, *, report: PullReport, cancel: CancelFlag) -> None:
        """Fetch a checkpoint; raises ``InfiniChatError``, ``CancelledError`` when it was stopped."""
        ...


class RegistryCatalog:
    """The checkpoints that are shipped, made or pulled on this machine. ``default`` is the user's chosen
    one."""

    def __init__(self, paths: Paths, *, default: str | None = None) -> None:
        self._paths = paths
        self._default = default

    def __repr__(self) -> str:
        return f"RegistryCatalog({str(self._paths.models)!r})"

    def _registry(self) -> Registry:
        from infinichat.model.registry import Registry

        return Registry(self._paths, default=self._default)

    def entries(self) -> list[CatalogEntry]:
        from infinichat.model.card import recall_points

        return [
            CatalogEntry(
                name=entry.name,
                installed=entry.installed,
                trained=entry.trained,
                description=entry.description,
                size=entry.size_bytes,
                path=entry.path,
                default=entry.default,
                recall=flat_recall(entry.recall or {}) | headline(recall_points(entry.recall)),
                by_distance=recall_points(entry.recall),
                problem=entry.problem,
            )
            for entry in self._registry().entries()
        ]

    def pull(self, name: str, *, report: PullReport, cancel: CancelFlag) -> None:
        def tell(progress: PullProgress) -> None:
            report(f"{_STAGES[progress.stage]} {progress.file}", progress.done, progress.total)

        self._registry().pull(name, on_progress=tell, cancel=cancel)


_STAGES = {
    "wait": "waiting for another infinichat to fetch",
    "download": "fetching",
    "extract": "unpacking",
    "copy": "copying",
    "check": "checking",
}


HEADLINE = ("16 facts", "64 facts", "corrected facts, newest wins", "never told, admitted")
HEADLINE_TOKENS = 1 << 16
"""What a line of the list has room for: these at 64K tokens, or at the next shorter distance."""


def headline(points: Sequence[RecallPoint]) -> dict[str, float]:
    """The few figures for one line, by name and distance."""
    found: dict[str, float] = {}
    for name in HEADLINE:
        near = [p for p in points if p.name == name and p.tokens <= HEADLINE_TOKENS and p.filler != "books"]
        if near:
            best = max(near, key=lambda point: point.tokens)
            found[f"{name.partition(',')[0]} {best.distance}"] = best.share
    return found


def distance_table(points: Sequence[RecallPoint]) -> str:
    """What was measured by distance: a line for each kind of question, a column for each distance."""
    distances = {p.tokens: p.distance for p in sorted(points, key=lambda p: p.tokens)}
    by = {(point.name, point.filler, point.tokens): point for point in points}
    names = list(dict.fromkeys((point.name, point.filler) for point in points))
    width = max((len(f"{name} ({filler})") for name, filler in names), default=0)
    lines = [" " * width + "".join(f"{far:>8}" for far in distances.values())]
    for name, filler in names:
        shares = (by.get((name, filler, far)) for far in distances)
        cells = "".join(f"{figures.percent(p.share) if p else '':>8}" for p in shares)
        lines.append(f"{f'{name} ({filler})':<{width}}{cells}")
    return "\n".join(lines)


def flat_recall(recall: Mapping[str, object], before: str = "") -> dict[str, float]:
    """The measured fractions of a card, whatever its shape: nested names are joined by blanks, and what is
    not a fraction (dates, counts, intervals) is left out.

    >>> flat_recall({"facts": {"8": 0.9, "n": 100}, "date": "2026"})
    {'facts 8': 0.9}
    """
    found: dict[str, float] = {}
    for name, value in recall.items():
        path = f"{before} {name}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            found.update(flat_recall(value, path))
        elif isinstance(value, float) and 0 <= value <= 1:
            found[path] = value
    return found
