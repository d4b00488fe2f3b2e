"""Is everything that was written still what was written? Every hash is derived again from what is read back.

SQLite's own checks find a damaged page, but not a word that was changed in a valid row, nor a state file
that was exchanged: only hashing again does. Findings are sentences; an empty list means that all is well.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from infinichat.errors import DatabaseError, SnapshotError
from infinichat.paths import Paths
from infinichat.store import housekeeping, snapshots
from infinichat.store.answers import unpack_ids
from infinichat.store.database import Database
from infinichat.store.snapshot_file import read_snapshot, stored_header
from infinichat.store.transcripts import message_id

_MAX_REPORTED = 20


def verify(database: Database, paths: Paths) -> list[str]:
    """Sentences about what is wrong: database pages, message hashes, tree, search index, feeds, snapshots."""
    try:
        with database.read() as connection:
            found = _pages(connection)
            if not found:
                for check in (_messages, _sessions, _words, _feeds):
                    found += _first(check(connection))
                found += _first(_snapshots(connection, paths))
    except DatabaseError as exc:
        return [str(exc)]
    return found


def _first(sentences: Iterator[str]) -> list[str]:
    """At most twenty sentences of one kind: a damaged disk would fill the screen with them."""
    found: list[str] = []
    for sentence in sentences:
        if len(found) == _MAX_REPORTED:
            return [*found, "There is more of this kind."]
        found.append(sentence)
    return found


def _pages(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(f"PRAGMA integrity_check({_MAX_REPORTED})").fetchall()
    damaged = [f"The database is damaged: {row[0]}." for row in rows if row[0] != "ok"]
    links = connection.execute("PRAGMA foreign_key_check").fetchmany(_MAX_REPORTED)
    return damaged + [
        f"A row of {row['table']} refers to a row of {row['parent']} that is gone." for row in links
    ]


def _messages(connection: sqlite3.Connection) -> Iterator[str]:
    rows = connection.execute(
        "SELECT m.id, p.id AS parent, m.parent AS parent_key, m.role, m.content, m.title, m.chain, m.depth, "
        "p.depth AS above FROM messages m LEFT JOIN messages p ON p.key = m.parent ORDER BY m.key"
    )
    for row in rows:
        derived = message_id(
            parent=row["parent"],
            role=row["role"],
            content=row["content"],
            title=row["title"],
            chain=row["chain"],
        )
        if derived != row["id"]:
            yield (
                f"The message {row['id'][:12]} was altered on disk: its words give the id {derived[:12]}. "
                "Compare it with a backup."
            )
        if row["depth"] != (0 if row["parent_key"] is None else row["above"] + 1):
            yield f"The message {row['id'][:12]} has the depth {row['depth']}, not its parent's plus one."


def _sessions(connection: sqlite3.Connection) -> Iterator[str]:
    for row in connection.execute(
        "SELECT s.name, m.id FROM sessions s JOIN messages m ON m.key = s.tip WHERE NOT EXISTS "
        "(SELECT 1 FROM members WHERE session = s.key AND message = s.tip)"
    ):
        yield f"The session {row['name']!r} points to the message {row['id'][:12]}, which it does not know."
    for row in connection.execute(
        "SELECT s.name, m.id FROM members JOIN messages m ON m.key = members.message "
        "JOIN sessions s ON s.key = members.session WHERE m.parent IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM members above WHERE above.session = s.key AND above.message = m.parent)"
    ):
        yield f"The session {row['name']!r} knows the message {row['id'][:12]} but not the one before it."


def _words(connection: sqlite3.Connection) -> Iterator[str]:
    for row in connection.execute(
        "SELECT id FROM messages m WHERE role != 'system' AND NOT EXISTS "
        "(SELECT 1 FROM words WHERE rowid BETWEEN m.key << 20 AND (m.key << 20) + 1048575)"
    ):
        yield f"The message {row['id'][:12]} is missing from the search index."


def _feeds(connection: sqlite3.Connection) -> Iterator[str]:
    for row in connection.execute(
        "SELECT m.id, feeds.ids FROM feeds JOIN feed_sets ON feed_sets.key = feeds.feed_set "
        "JOIN messages m ON m.key = feed_sets.message"
    ):
        try:
            unpack_ids(row["ids"])
        except DatabaseError as exc:
            yield f"What was fed for the message {row['id'][:12]} is damaged: {exc}"


def _snapshots(connection: sqlite3.Connection, paths: Paths) -> Iterator[str]:
    for row in connection.execute("SELECT chain, fingerprint FROM snapshots ORDER BY chain"):
        path = snapshots.snapshot_path(paths.snapshots, row["chain"])
        try:
            read_snapshot(path, expected=None)
            header = stored_header(path)
        except SnapshotError as exc:
            yield str(exc)
            continue
        if (header.chain, header.fingerprint) != (row["chain"], row["fingerprint"]):
            yield f"The saved state {path.name} holds the state of another point or model than its name says."
    for path in housekeeping.orphans(connection, paths.snapshots):
        yield f"The file {path.name} is a saved state that no session uses; the next purge removes it."
