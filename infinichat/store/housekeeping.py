"""What is counted and what is cleared away: disk use, and sessions that were deleted long ago.

Nodes and states are shared, so a session's removal takes only what no other session knows. Files go after
the transaction that forgot them; what a killed process left behind is taken along the next time.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from infinichat.errors import SessionLockedError
from infinichat.paths import Paths
from infinichat.store import snapshots
from infinichat.store.database import Database
from infinichat.store.files import PARTIAL_LIFETIME_S
from infinichat.store.locks import SessionLock
from infinichat.store.records import DiskUsage
from infinichat.store.search import unindex_message
from infinichat.store.snapshot_file import remove_file


def purge_due(database: Database, paths: Paths, *, older_than_s: float) -> int:
    """``purge_deleted`` for every start: one question and nothing more while no session is due."""
    return (
        purge_deleted(database, paths, older_than_s=older_than_s)
        if _due(database, time.time() - older_than_s)
        else 0
    )


def _due(database: Database, latest: float) -> list[sqlite3.Row]:
    with database.read() as connection:
        return connection.execute(
            "SELECT id, name FROM sessions WHERE deleted_at IS NOT NULL AND deleted_at <= ?", (latest,)
        ).fetchall()


def purge_deleted(database: Database, paths: Paths, *, older_than_s: float) -> int:
    """Remove sessions that were deleted longer ago than ``older_than_s`` seconds; returns how many."""
    latest = time.time() - older_than_s
    purged = 0
    for row in _due(database, latest):
        try:
            lock = SessionLock(paths.locks, row["id"], name=row["name"])
        except SessionLockedError:
            continue  # deleted in one window, still open in another
        with lock:
            purged += _purge(database, paths, row["id"], latest=latest)
        with contextlib.suppress(OSError):
            (paths.locks / f"{row['id']}.lock").unlink(missing_ok=True)
    remove_orphans(database, paths)
    return purged


def _purge(database: Database, paths: Paths, session_id: str, *, latest: float) -> int:
    with database.write() as connection:
        # Asked again inside the transaction: it may have been undeleted a moment ago.
        gone = connection.execute(
            "DELETE FROM sessions WHERE id = ? AND deleted_at IS NOT NULL AND deleted_at <= ?",
            (session_id, latest),
        ).rowcount
        if not gone:
            return 0
        keys = [
            row["key"]
            for row in connection.execute(
                "SELECT key FROM messages "
                "WHERE NOT EXISTS (SELECT 1 FROM members WHERE message = messages.key)"
            )
        ]
        for key in keys:
            unindex_message(connection, key)
        # Sessions know a message only together with all above it, so what nobody knows has nothing known
        # below it. Children were made after their parents: from the highest key down, no parent goes first.
        connection.executemany("DELETE FROM messages WHERE key = ?", [(key,) for key in reversed(keys)])
        unused = snapshots.drop_unused(connection)
    for chain in unused:
        remove_file(snapshots.snapshot_path(paths.snapshots, chain))
    return 1


def orphans(
    connection: sqlite3.Connection, folder: Path, *, min_age_s: float = PARTIAL_LIFETIME_S
) -> list[Path]:
    """Snapshot files without a row that are too old to belong to a write that is still going on."""
    known = {row["chain"] for row in connection.execute("SELECT chain FROM snapshots")}
    latest = time.time() - min_age_s
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(OSError):
            if path.stem not in known and path.stat().st_mtime <= latest:
                found.append(path)
    return found


def remove_orphans(database: Database, paths: Paths) -> None:
    """Remove snapshot files that a killed process left without a row."""
    with database.read() as connection:
        files = orphans(connection, paths.snapshots)
    for path in files:
        remove_file(path)


def total_usage(connection: sqlite3.Connection, paths: Paths) -> DiskUsage:
    """The database with its log, and all saved states."""
    database = 0
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            database += paths.database.with_name(paths.database.name + suffix).stat().st_size
    row = connection.execute("SELECT COALESCE(sum(bytes), 0), count(*) FROM snapshots").fetchone()
    return DiskUsage(transcript=database, snapshots=row[0], snapshot_count=row[1])


def session_usage(connection: sqlite3.Connection, session: int) -> DiskUsage:
    """The words that the session knows and the states that it uses, shared ones in full."""
    words = connection.execute(
        "SELECT COALESCE(sum(m.size), 0) FROM members JOIN messages m ON m.key = members.message "
        "WHERE members.session = ?",
        (session,),
    ).fetchone()[0]
    row = connection.execute(
        "SELECT COALESCE(sum(s.bytes), 0), count(*) FROM snapshot_links JOIN snapshots s "
        "ON s.chain = snapshot_links.chain WHERE snapshot_links.session = ?",
        (session,),
    ).fetchone()
    return DiskUsage(transcript=words, snapshots=row[0], snapshot_count=row[1])
