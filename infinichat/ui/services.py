"""What the screens work with, in one value that the app makes and tests replace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from infinichat.config import Settings
from infinichat.paths import Paths
from infinichat.store import Store
from infinichat.ui.catalog import ModelCatalog
from infinichat.ui.history import PromptHistory
from infinichat.ui.worker import SessionWorker


def resident_bytes() -> int | None:
    """Memory that this process holds in RAM."""
    # 12 ms, and nobody looks at it during the first paint.
    import psutil

    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True, slots=True)
class Services:
    """``now`` and ``rss`` are here so that a test's screen is always the same."""

    paths: Paths
    settings: Settings
    store: Store
    worker: SessionWorker
    catalog: ModelCatalog
    history: PromptHistory = field(default_factory=lambda: PromptHistory(None))
    now: Callable[[], float] = time.time
    rss: Callable[[], int | None] = resident_bytes
