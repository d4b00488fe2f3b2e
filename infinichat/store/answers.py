"""What was fed to a model for each message, and the answer that is still streaming.

Text does not determine the ids that a model saw (decoding an answer and encoding it again may give other
ids), so the exact ids are kept beside the words, per model fingerprint: from them a state can be rebuilt to
the last bit. The draft is overwritten about once a second while an answer streams; after a crash it becomes
the answer.
"""

from __future__ import annotations

import sqlite3
import struct
import time
from collections.abc import Sequence
from typing import get_args

from infinichat.errors import DatabaseError, UsageError
from infinichat.protocols import FeedMode
from infinichat.store.records import Draft, Feed
from infinichat.store.transcripts import storable

MODES: frozenset[str] = frozenset(get_args(FeedMode))


def pack_ids(ids: Sequence[int]) -> bytes:
    """Ids as little-endian 32-bit integers. Raises ``UsageError`` for one that is not in 0 ... 2^31 - 1."""
    try:
        if ids and min(ids) < 0:
            raise ValueError(f"{min(ids)} is negative")
        return struct.pack(f"<{len(ids)}i", *ids)
    except (struct.error, ValueError) as exc:
        raise UsageError(f"Token ids must be integers from 0 to 2147483647: {exc}.") from exc


def unpack_ids(data: bytes) -> tuple[int, ...]:
    if len(data) % 4:
        raise DatabaseError(
            f"A list of token ids has {len(data)} bytes, expected a multiple of 4: the database is damaged. "
            "`infinichat verify` says where."
        )
    return struct.unpack(f"<{len(data) // 4}i", data)


def write_feeds(
    connection: sqlite3.Connection, message: int, fingerprint: str, feeds: Sequence[Feed]
) -> None:
    """Make ``feeds`` what was fed for this message under this model.

    A beginning that is there already stays: the feeds of a book grow piece by piece, and each chain is a hash
    over all before it, so equal chains mean equal beginnings.
    """
    values = (message, fingerprint)
    connection.execute("INSERT OR IGNORE INTO feed_sets (message, fingerprint) VALUES (?, ?)", values)
    key = connection.execute(
        "SELECT key FROM feed_sets WHERE message = ? AND fingerprint = ?", values
    ).fetchone()["key"]
    old = connection.execute(
        "SELECT mode, chain, length(ids) FROM feeds WHERE feed_set = ? ORDER BY position", (key,)
    ).fetchall()
    same = 0
    for row, feed in zip(old, feeds, strict=False):
        if tuple(row) != (feed.mode, feed.chain, 4 * len(feed.ids)):
            break
        same += 1
    connection.execute("DELETE FROM feeds WHERE feed_set = ? AND position >= ?", (key, same))
    for position, feed in enumerate(feeds[same:], start=same):
        if feed.mode not in MODES:
            raise UsageError(
                f"A feed has the mode {feed.mode!r}; expected one of {', '.join(sorted(MODES))}."
            )
        connection.execute(
            "INSERT INTO feeds (feed_set, position, mode, chain, ids) VALUES (?, ?, ?, ?, ?)",
            (key, position, feed.mode, feed.chain, pack_ids(feed.ids)),
        )


def feeds(connection: sqlite3.Connection, message: int, fingerprint: str) -> list[Feed] | None:
    """What was fed for this message under this model, in order; ``None`` when that is not known."""
    known = connection.execute(
        "SELECT key FROM feed_sets WHERE message = ? AND fingerprint = ?", (message, fingerprint)
    ).fetchone()
    if known is None:
        return None
    rows = connection.execute(
        "SELECT mode, chain, ids FROM feeds WHERE feed_set = ? ORDER BY position", (known["key"],)
    )
    return [Feed(mode=row["mode"], ids=unpack_ids(row["ids"]), chain=row["chain"]) for row in rows]


def write_draft(
    connection: sqlite3.Connection,
    session: int,
    *,
    parent: int | None,
    content: str,
    ids: Sequence[int],
    prompt_ids: Sequence[int],
    model: str,
    fingerprint: str,
) -> None:
    values = {
        "session": session,
        "parent": parent,
        "content": storable(content),
        "ids": pack_ids(ids),
        "prompt_ids": pack_ids(prompt_ids),
        "model": model,
        "fingerprint": fingerprint,
        "updated": time.time(),
    }
    connection.execute(
        "INSERT OR REPLACE INTO drafts "
        "(session, parent, content, ids, prompt_ids, model, fingerprint, updated) "
        "VALUES (:session, :parent, :content, :ids, :prompt_ids, :model, :fingerprint, :updated)",
        values,
    )


def draft(connection: sqlite3.Connection, session: int) -> Draft | None:
    row = connection.execute(
        "SELECT s.id AS session_id, m.id AS parent_id, d.* FROM drafts d "
        "JOIN sessions s ON s.key = d.session LEFT JOIN messages m ON m.key = d.parent WHERE d.session = ?",
        (session,),
    ).fetchone()
    if row is None:
        return None
    return Draft(
        session_id=row["session_id"],
        parent=row["parent_id"],
        content=row["content"],
        ids=unpack_ids(row["ids"]),
        prompt_ids=unpack_ids(row["prompt_ids"]),
        model=row["model"],
        fingerprint=row["fingerprint"],
        updated=row["updated"],
    )


def clear_draft(connection: sqlite3.Connection, session: int) -> None:
    connection.execute("DELETE FROM drafts WHERE session = ?", (session,))
