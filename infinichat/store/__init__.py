"""Conversations on disk: the message tree, the search index, saved states, locks, backups. Knows no model.

from infinichat.store import Store
with Store.open(default_paths()) as store:
    print([session.name for session in store.sessions()])
"""

from __future__ import annotations

from infinichat.store.locks import SessionLock
from infinichat.store.records import (
    DiskUsage,
    Draft,
    Feed,
    SearchHit,
    SessionRecord,
    SnapshotHeader,
    SnapshotRow,
    Waiting,
)
from infinichat.store.store import Store

__all__ = [
    "DiskUsage",
    "Draft",
    "Feed",
    "SearchHit",
    "SessionLock",
    "SessionRecord",
    "SnapshotHeader",
    "SnapshotRow",
    "Store",
    "Waiting",
]
