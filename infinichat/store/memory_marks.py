"""What the memory held at the end of each turn, kept beside the message that ended it.

A state says what there is now; these rows say what was written when. They are per model fingerprint, like
feeds, and shared by every branch and session through the message. Nothing depends on them: a session whose
marks are missing answers all the same.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from infinichat.messages import LayerMemory, MemoryMark

WORDS = 200  # characters of a turn's beginning


def write(
    connection: sqlite3.Connection,
    message: int,
    *,
    fingerprint: str,
    tokens_seen: int,
    layers: Sequence[LayerMemory],
) -> None:
    """Keep what the memory of this model held after this message; replaces what was kept before."""
    rows = [[row.layer, row.written, row.norm, row.saturation, row.gate] for row in layers]
    connection.execute(
        "INSERT OR REPLACE INTO memory_marks (message, fingerprint, tokens_seen, layers) VALUES (?, ?, ?, ?)",
        (message, fingerprint, tokens_seen, json.dumps(rows)),
    )


# The newest messages of the way to the tip that have a mark, and the message before each for its words.
_MARKS = f"""
    WITH RECURSIVE way(key, parent, depth) AS (
        SELECT m.key, m.parent, m.depth FROM sessions s JOIN messages m ON m.key = s.tip
        WHERE s.key = :session
        UNION ALL
        SELECT m.key, m.parent, m.depth FROM way JOIN messages m ON m.key = way.parent
        LIMIT :limit)
    SELECT m.id AS id, m.role AS role, COALESCE(k.added, m.created) AS created,
        marks.tokens_seen AS tokens_seen, marks.layers AS layers,
        substr(CASE m.role WHEN 'document' THEN COALESCE(m.title, m.content)
               WHEN 'assistant' THEN COALESCE(p.content, m.content) ELSE m.content END, 1, {WORDS}) AS words
    FROM way CROSS JOIN memory_marks marks ON marks.message = way.key AND marks.fingerprint = :fingerprint
    JOIN messages m ON m.key = way.key
    LEFT JOIN messages p ON p.key = m.parent
    LEFT JOIN members k ON k.session = :session AND k.message = m.key
    ORDER BY way.depth"""


def marks(
    connection: sqlite3.Connection, session: int, *, fingerprint: str, limit: int
) -> tuple[MemoryMark, ...]:
    """The marks among the newest ``limit`` messages of the selected branch, oldest first."""
    rows = connection.execute(
        _MARKS, {"session": session, "fingerprint": fingerprint, "limit": limit}
    ).fetchall()
    found = []
    before = 0
    for row in rows:
        layers = tuple(LayerMemory(*layer) for layer in json.loads(row["layers"]))
        written = sum(layer.written for layer in layers)
        found.append(
            MemoryMark(
                message=row["id"],
                role=row["role"],
                words=row["words"],
                created=row["created"],
                tokens_seen=row["tokens_seen"],
                added=max(0, written - before),
                layers=layers,
            )
        )
        before = written
    # What the first one of a part of the conversation added cannot be told.
    is_part = connection.execute(_DEPTH, (session,)).fetchone()
    return tuple(found[1:] if is_part is not None and is_part["depth"] >= limit else found)


_DEPTH = "SELECT m.depth AS depth FROM sessions s JOIN messages m ON m.key = s.tip WHERE s.key = ?"
