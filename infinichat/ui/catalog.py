"""The checkpoints that can be chosen, as the screens see them, and the real list behind it.

The screens know ``ModelCatalog`` only. ``RegistryCatalog`` asks ``infinichat.model.registry``, imported when
it is first used, because that part of the package may import torch; tests put a list in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from infinichat.paths import Paths
from infinichat.protocols import CancelFlag

if TYPE_CHECKING:
    from infinichat.model.pull import PullProgress
    from infinichat.model.registry import Registry


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One checkpoint. ``size`` is what its files take, in bytes; ``recall`` what was measured, by name of the
    measure (0..1), empty when nothing was; ``problem`` a sentence when it is there and cannot be used."""

    name: str
    installed: bool
    trained: bool
    description: str = ""
    size: int | None = None
    path: Path | None = None
    default: bool = False
    recall: Mapping[str, float] = field(default_factory=dict)
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
        return [
            CatalogEntry(
                name=entry.name,
                installed=entry.installed,
                trained=entry.trained,
                description=entry.description,
                size=entry.size_bytes,
                path=entry.path,
                default=entry.default,
                recall=flat_recall(entry.recall or {}),
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
