"""The message tree: content-addressed nodes that are shared and never rewritten.

A message's id is a hash over its parent's id and its own content, so two sessions that share a beginning
share the rows that store it, an edit or a regenerated answer is a sibling, and a damaged row is found by
hashing it again. A session knows the messages in ``members`` and points to one of them, its tip; its
transcript is the way from the root to the tip. Only ``reason`` may change, because it says how the text
came to an end and is no part of it.

Functions here take an open connection and leave transactions to their caller.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time

from infinichat.errors import UsageError
from infinichat.messages import FinishReason, Message, Role
from infinichat.store.search import index_message

ID_VERSION = "infinichat-message-1"
ROLES: frozenset[str] = frozenset(("system", "user", "assistant", "document"))
REASONS: frozenset[str] = frozenset(("complete", "stop", "length", "stopped", "interrupted", "error"))

_SURROGATE = re.compile("[\ud800-\udfff]")


def message_id(*, parent: str | None, role: str, content: str, title: str | None, chain: str) -> str:
    """SHA-256 (hex) over the canonical JSON list [version, parent, role, content, title, chain].

    Canonical: no blanks, UTF-8, nothing escaped that JSON lets stand. This is part of the format on disk.
    """
    fields = [ID_VERSION, parent, role, content, title, chain]
    canonical = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def check_reason(reason: str) -> None:
    """Raises ``UsageError`` for a reason that is none of ``FinishReason``."""
    if reason not in REASONS:
        raise UsageError(
            f"A message ends for the reason {reason!r}; expected one of {', '.join(sorted(REASONS))}."
        )


def storable(text: str) -> str:
    """``text`` with lone surrogates, which no encoding can store, as U+FFFD; all else is kept."""
    return _SURROGATE.sub("\ufffd", text)


def add_message(
    connection: sqlite3.Connection,
    *,
    parent: int | None,
    role: Role,
    content: str,
    reason: FinishReason,
    chain: str,
    title: str | None,
    model: str | None,
    created: float | None = None,
) -> int:
    """Store one node below ``parent`` (a key) and return its key; an identical node is used again.

    The newest ``reason`` wins: an answer that was stopped and, continued, turned out to be complete, is
    complete.
    """
    if role not in ROLES:
        raise UsageError(f"A message has the role {role!r}; expected one of {', '.join(sorted(ROLES))}.")
    check_reason(reason)
    content = storable(content)
    title = None if title is None else storable(title)
    above = None
    if parent is not None:
        above = connection.execute("SELECT id, depth FROM messages WHERE key = ?", (parent,)).fetchone()
    identity = message_id(
        parent=above["id"] if above else None, role=role, content=content, title=title, chain=chain
    )
    known = connection.execute("SELECT key FROM messages WHERE id = ?", (identity,)).fetchone()
    if known is not None:
        connection.execute("UPDATE messages SET reason = ? WHERE key = ?", (reason, known["key"]))
        return int(known["key"])
    values = {
        "id": identity,
        "parent": parent,
        "depth": above["depth"] + 1 if above else 0,
        "role": role,
        "content": content,
        "size": len(content.encode("utf-8")),
        "reason": reason,
        "title": title,
        "model": model,
        "chain": chain,
        "created": time.time() if created is None else created,
    }
    inserted = connection.execute(_INSERT, values).lastrowid
    assert inserted is not None
    index_message(connection, inserted, role=role, title=title, content=content)
    return inserted


_INSERT = """
    INSERT INTO messages (id, parent, depth, role, content, size, reason, title, model, chain, created)
    VALUES (:id, :parent, :depth, :role, :content, :size, :reason, :title, :model, :chain, :created)"""


def join(connection: sqlite3.Connection, session: int, message: int, *, added: float | None = None) -> None:
    """Let the session know the message. Knowing it already is fine."""
    connection.execute(
        "INSERT OR IGNORE INTO members (session, message, added) VALUES (?, ?, ?)",
        (session, message, time.time() if added is None else added),
    )


def move_tip(connection: sqlite3.Connection, session: int, message: int | None) -> None:
    connection.execute(
        "UPDATE sessions SET tip = ?, updated = ? WHERE key = ?", (message, time.time(), session)
    )


def message_key(connection: sqlite3.Connection, identity: str, *, session: int | None = None) -> int:
    """The key of the message with this id, which the session must know. Raises ``UsageError``."""
    row = connection.execute(
        "SELECT key FROM messages WHERE id = :id AND (:session IS NULL OR EXISTS "
        "(SELECT 1 FROM members WHERE session = :session AND message = messages.key))",
        {"id": identity, "session": session},
    ).fetchone()
    if row is None:
        where = "in the store" if session is None else "in this session"
        raise UsageError(
            f"There is no message {identity[:12]} {where}; "
            "expected the id of one, as `infinichat sessions show` prints them."
        )
    return int(row["key"])


# A shared message was said in each of its sessions at a time of its own; outside them its first time counts.
_COLUMNS = """m.id AS id, p.id AS parent, m.role AS role, m.content AS content, m.reason AS reason,
    COALESCE(k.added, m.created) AS created, m.title AS title, m.model AS model, m.depth AS depth"""


def message(connection: sqlite3.Connection, key: int, *, session: int | None = None) -> Message:
    """The message with this key, which must exist."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM messages m LEFT JOIN messages p ON p.key = m.parent "
        "LEFT JOIN members k ON k.session = :session AND k.message = m.key WHERE m.key = :key",
        {"session": session, "key": key},
    ).fetchone()
    return to_message(row)


def to_message(row: sqlite3.Row) -> Message:
    return Message(
        id=row["id"],
        parent=row["parent"],
        role=row["role"],
        content=row["content"],
        reason=row["reason"],
        created=row["created"],
        title=row["title"],
        model=row["model"],
    )


# From a message to its root: one look-up by primary key per step, and as many steps as were asked for.
PATH = f"""
    WITH RECURSIVE way(key, parent, depth) AS (
        SELECT key, parent, depth FROM messages WHERE key = :start
        UNION ALL
        SELECT m.key, m.parent, m.depth FROM way JOIN messages m ON m.key = way.parent
        LIMIT :limit)
    SELECT {_COLUMNS} FROM way CROSS JOIN messages m ON m.key = way.key
    LEFT JOIN messages p ON p.key = m.parent
    LEFT JOIN members k ON k.session = :session AND k.message = m.key"""


def path(
    connection: sqlite3.Connection, session: int, start: int | None, *, limit: int | None = None
) -> list[Message]:
    """Messages from the root to ``start``; with ``limit`` only the newest so many of them."""
    if start is None:
        return []
    values = {"session": session, "start": start, "limit": -1 if limit is None else max(0, limit)}
    rows = connection.execute(PATH, values).fetchall()
    # Sorted here and not in SQL, which would carry the words of a whole book through its sorter.
    return [to_message(row) for row in sorted(rows, key=lambda row: int(row["depth"]))]


def parent_key(connection: sqlite3.Connection, key: int) -> int | None:
    parent: int | None = connection.execute("SELECT parent FROM messages WHERE key = ?", (key,)).fetchone()[0]
    return parent


SIBLINGS = """
    SELECT s.id FROM messages m JOIN messages s ON s.parent IS m.parent AND s.role = m.role
    JOIN members ON members.session = :session AND members.message = s.key
    WHERE m.key = :message ORDER BY members.position"""


def siblings(connection: sqlite3.Connection, session: int, key: int) -> list[str]:
    """Ids of the messages with the same parent and role that the session knows, oldest first."""
    return [row["id"] for row in connection.execute(SIBLINGS, {"session": session, "message": key})]


VERSIONS = """
    SELECT s.id FROM messages m JOIN messages s ON s.parent IS m.parent AND s.role = m.role
    JOIN members ON members.session = :session AND members.message = s.key
    WHERE m.key = :message AND (s.key = m.key OR m.role != 'document') AND (
        s.reason IN ('stop', 'complete') OR NOT EXISTS (
            SELECT 1 FROM messages l JOIN members n ON n.session = :session AND n.message = l.key
            WHERE l.parent IS m.parent AND l.role = m.role AND n.position > members.position
            AND substr(l.content, 1, length(rtrim(s.content, char(65533)))) = rtrim(s.content, char(65533))))
    ORDER BY members.position"""


def versions(connection: sqlite3.Connection, session: int, key: int) -> list[str]:
    """``siblings`` that say something else: without answers that were stopped and then gone on with, and of a
    document only itself, as the part of it that was read and the whole are not alternatives."""
    return [row["id"] for row in connection.execute(VERSIONS, {"session": session, "message": key})]


def newest_descendant(connection: sqlite3.Connection, session: int, key: int) -> int:
    """The message below (or at) ``key`` that the session came to know last; always the end of a branch."""
    row = connection.execute(
        """
        WITH RECURSIVE below(key, position) AS (
            SELECT message, position FROM members WHERE session = :session AND message = :message
            UNION ALL
            SELECT members.message, members.position FROM below
            JOIN messages m ON m.parent = below.key
            JOIN members ON members.session = :session AND members.message = m.key)
        SELECT key FROM below ORDER BY position DESC LIMIT 1""",
        {"session": session, "message": key},
    ).fetchone()
    return key if row is None else int(row["key"])
