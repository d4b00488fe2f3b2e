"""Session rows: names, titles, tips, pins, deletion with a way back.

A session is found by its exact name, its id, or the first six or more characters of its id. Names are
unique among sessions that are not deleted; a deleted session keeps its name and gets a free one if it comes
back to find it taken. Functions here take an open connection and leave transactions to their caller.
"""

from __future__ import annotations

import difflib
import re
import secrets
import sqlite3
import time

from infinichat.errors import SessionNotFoundError, UsageError
from infinichat.store.records import SessionRecord
from infinichat.store.search import match_expression
from infinichat.store.transcripts import join, storable

MAX_NAME = 200
_MIN_PREFIX = 6
_HEX = re.compile(r"[0-9a-f]+")

_SELECT = """
    SELECT s.key AS key, s.id AS id, s.name AS name, s.title AS title, s.system AS system, s.model AS model,
        t.id AS tip, s.created AS created, s.updated AS updated, s.pinned AS pinned,
        s.deleted_at AS deleted_at, s.tokens_seen AS tokens_seen, COALESCE(t.depth + 1, 0) AS messages
    FROM sessions s LEFT JOIN messages t ON t.key = s.tip"""

LISTED = (
    f"{_SELECT} WHERE s.deleted_at IS NULL ORDER BY s.pinned DESC, s.updated DESC, s.key DESC LIMIT :limit"
)
DELETED = f"{_SELECT} WHERE s.deleted_at IS NOT NULL ORDER BY s.deleted_at DESC, s.key DESC LIMIT :limit"
RECENT = f"{_SELECT} WHERE s.deleted_at IS NULL ORDER BY s.updated DESC, s.key DESC LIMIT 1"

# A session is found by its own words and by the words of its messages.
FOUND = f"""{_SELECT} WHERE (s.deleted_at IS NOT NULL) = :deleted AND (
        instr(folded(s.name), :text) OR instr(folded(s.title), :text) OR s.key IN (
            SELECT members.session FROM words CROSS JOIN members ON members.message = words.rowid >> 20
            WHERE words MATCH :match))
    ORDER BY s.pinned DESC, s.updated DESC, s.key DESC LIMIT :limit"""


def to_record(row: sqlite3.Row) -> SessionRecord:
    return SessionRecord(
        id=row["id"],
        name=row["name"],
        title=row["title"],
        system=row["system"],
        model=row["model"],
        tip=row["tip"],
        created=row["created"],
        updated=row["updated"],
        pinned=bool(row["pinned"]),
        deleted_at=row["deleted_at"],
        tokens_seen=row["tokens_seen"],
        messages=row["messages"],
    )


def checked_name(name: str) -> str:
    """``name`` without blanks around it. Raises ``UsageError`` for one that no list could show."""
    name = storable(name).strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(
            f"{name[:40]!r} cannot be a session's name; "
            f"expected 1 to {MAX_NAME} printable characters in one line."
        )
    return name


def free_name(connection: sqlite3.Connection, wanted: str) -> str:
    """``wanted``, or with the first number that makes it free: ``notes``, ``notes-2``, ``notes-3``."""
    taken = {row["name"] for row in connection.execute("SELECT name FROM sessions WHERE deleted_at IS NULL")}
    if wanted not in taken:
        return wanted
    number = 2
    while f"{wanted[: MAX_NAME - 8]}-{number}" in taken:
        number += 1
    return f"{wanted[: MAX_NAME - 8]}-{number}"


def next_name(connection: sqlite3.Connection) -> str:
    """``chat-N`` with the number after the highest one ever given, so that a deleted name does not return."""
    rows = connection.execute("SELECT name FROM sessions WHERE name GLOB 'chat-[0-9]*'")
    numbers = [int(row["name"][5:]) for row in rows if row["name"][5:].isdecimal() and len(row["name"]) < 20]
    return f"chat-{max(numbers, default=0) + 1}"


def create(
    connection: sqlite3.Connection,
    name: str | None,
    *,
    title: str | None = None,
    system: str | None = None,
    model: str | None = None,
    created: float | None = None,
) -> int:
    """Insert a session and return its key. Raises ``UsageError`` when the name is taken or cannot be one."""
    name = next_name(connection) if name is None else checked_name(name)
    _check_free(connection, name)
    now = time.time()
    inserted = connection.execute(
        "INSERT INTO sessions (id, name, title, system, model, created, updated) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            secrets.token_hex(16),
            name,
            None if title is None else storable(title),
            None if system is None else storable(system),
            model,
            now if created is None else created,
            now,
        ),
    ).lastrowid
    assert inserted is not None
    return inserted


def key_of(connection: sqlite3.Connection, session_id: str) -> int:
    """The key of the session with exactly this id, deleted or not. Raises ``SessionNotFoundError``."""
    row = connection.execute("SELECT key FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise SessionNotFoundError(
            f"There is no session with the id {session_id[:40]!r}; it may have been purged. "
            "`infinichat sessions list` shows those there are."
        )
    return int(row["key"])


def by_key(connection: sqlite3.Connection, key: int) -> SessionRecord:
    return to_record(connection.execute(f"{_SELECT} WHERE s.key = ?", (key,)).fetchone())


def find(connection: sqlite3.Connection, name_or_id: str, *, deleted: bool = False) -> SessionRecord | None:
    """The session with this name, id or beginning of an id. Raises ``UsageError`` when two ids begin so."""
    wanted = storable(name_or_id).strip()
    state = "s.deleted_at IS NOT NULL" if deleted else "s.deleted_at IS NULL"
    row = connection.execute(
        f"{_SELECT} WHERE {state} AND s.name = ? ORDER BY s.deleted_at DESC LIMIT 1", (wanted,)
    ).fetchone()
    if row is not None:
        return to_record(row)
    if len(wanted) < _MIN_PREFIX or _HEX.fullmatch(wanted) is None:
        return None
    rows = connection.execute(
        f"{_SELECT} WHERE {state} AND s.id >= ? AND s.id < ? LIMIT 2", (wanted, wanted + "g")
    ).fetchall()
    if len(rows) > 1:
        raise UsageError(
            f"{wanted!r} is the beginning of more than one session id: {rows[0]['id']}, {rows[1]['id']}. "
            "Give more of it, or the session's name."
        )
    return to_record(rows[0]) if rows else None


def not_found(
    connection: sqlite3.Connection, name_or_id: str, *, deleted: bool = False
) -> SessionNotFoundError:
    """The error for a name that no session has, with the names that are near it."""
    state = "IS NOT NULL" if deleted else "IS NULL"
    names = [row["name"] for row in connection.execute(f"SELECT name FROM sessions WHERE deleted_at {state}")]
    lowered = {name.casefold(): name for name in names}
    near = [
        lowered[name] for name in difflib.get_close_matches(name_or_id.casefold(), lowered, n=3, cutoff=0.5)
    ]
    hint = f"Near it: {', '.join(near)}." if near else "`infinichat sessions list` shows those there are."
    kind = "deleted session" if deleted else "session"
    return SessionNotFoundError(f"There is no {kind} named {name_or_id[:80]!r}. {hint}")


def folded(text: str | None) -> str:
    """``text`` for comparing without case; SQLite's own comparison knows only the letters a to z."""
    return (text or "").casefold()


def listed(
    connection: sqlite3.Connection,
    *,
    query: str | None = None,
    deleted: bool = False,
    limit: int | None = None,
) -> list[SessionRecord]:
    """Sessions, pinned first, then newest used; with ``query`` those whose name, title or words hold it."""
    connection.create_function("folded", 1, folded, deterministic=True)
    values: dict[str, object] = {"limit": -1 if limit is None else max(0, limit)}
    if query is None or not query.strip():
        statement = DELETED if deleted else LISTED
    else:
        statement = FOUND
        text = storable(query)
        values |= {
            "deleted": deleted,
            "text": folded(text.strip()),
            # Without a letter or digit there is no word to look for; this phrase holds none and finds
            # nothing.
            "match": match_expression(text) or '""',
        }
    return [to_record(row) for row in connection.execute(statement, values)]


def last(connection: sqlite3.Connection) -> SessionRecord | None:
    row = connection.execute(RECENT).fetchone()
    return None if row is None else to_record(row)


def rename(connection: sqlite3.Connection, key: int, name: str) -> None:
    """Raises ``UsageError`` when another session has the name."""
    name = checked_name(name)
    _check_free(connection, name, but=key)
    connection.execute("UPDATE sessions SET name = ? WHERE key = ?", (name, key))


def undelete(connection: sqlite3.Connection, key: int) -> None:
    """Bring a deleted session back, under a numbered name when its own was given away meanwhile."""
    row = connection.execute("SELECT name, deleted_at FROM sessions WHERE key = ?", (key,)).fetchone()
    if row["deleted_at"] is not None:
        connection.execute(
            "UPDATE sessions SET deleted_at = NULL, name = ?, updated = ? WHERE key = ?",
            (free_name(connection, row["name"]), time.time(), key),
        )


def branch(connection: sqlite3.Connection, session: int, message: int, *, name: str | None) -> int:
    """A new session whose tip is ``message``: it knows the way there, and shares its nodes and snapshots."""
    parent = by_key(connection, session)
    new_name = free_name(connection, parent.name) if name is None else name
    new = create(connection, new_name, title=parent.title, system=parent.system, model=parent.model)
    way = connection.execute(
        """
        WITH RECURSIVE way(key, parent, depth) AS (
            SELECT key, parent, depth FROM messages WHERE key = :message
            UNION ALL
            SELECT m.key, m.parent, m.depth FROM way JOIN messages m ON m.key = way.parent)
        SELECT way.key AS key, members.added AS added FROM way
        JOIN members ON members.session = :session AND members.message = way.key ORDER BY way.depth""",
        {"message": message, "session": session},
    ).fetchall()
    for row in way:
        join(connection, new, row["key"], added=row["added"])
    connection.execute("UPDATE sessions SET tip = ? WHERE key = ?", (message, new))
    connection.execute(
        """
        INSERT OR IGNORE INTO snapshot_links (session, chain)
        SELECT :new, link.chain FROM snapshot_links link
        WHERE link.session = :session AND EXISTS (
            SELECT 1 FROM feeds JOIN feed_sets ON feed_sets.key = feeds.feed_set
            JOIN members ON members.session = :new AND members.message = feed_sets.message
            WHERE feeds.chain = link.chain)""",
        {"new": new, "session": session},
    )
    return new


def _check_free(connection: sqlite3.Connection, name: str, *, but: int | None = None) -> None:
    row = connection.execute(
        "SELECT key FROM sessions WHERE deleted_at IS NULL AND name = ?", (name,)
    ).fetchone()
    if row is not None and row["key"] != but:
        raise UsageError(
            f"There is a session named {name!r} already; "
            f"choose another name, or open it with --session {name}."
        )
