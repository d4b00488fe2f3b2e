"""Which saved states there are, who uses them, and which may go.

A state is keyed by its chain, the hash of exactly what was fed, so sessions and branches that share a
beginning share its file ``snapshots/<chain>.safetensors``. The file is on disk before the row that
announces it, and the row is gone before the file: a process that dies in between leaves a file that nobody
counts on.

Thinning, per session and model: on the way to the tip the newest four stay, then the oldest of each
distance 4^k ... 4^(k+1) tokens (a rewind replays at most about as much as it goes back); beside it the
newest state of each of the eight newest other branches. Everything that is removed can be rebuilt from the
transcript.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infinichat.errors import SnapshotError, UsageError
from infinichat.store.records import SnapshotHeader, SnapshotRow

KEEP_NEWEST = 4
KEEP_BRANCHES = 8
SPACING = 4

_CHAIN = re.compile(r"[0-9A-Za-z_-]{1,128}")


def snapshot_path(folder: Path, chain: str) -> Path:
    """The file for a chain. Raises ``UsageError`` for a chain that could be a path."""
    if _CHAIN.fullmatch(chain) is None:
        raise UsageError(f"{chain[:40]!r} is not a chain; expected up to 128 letters and digits.")
    return folder / f"{chain}.safetensors"


def record(connection: sqlite3.Connection, session: int, *, header: SnapshotHeader, size: int) -> None:
    """Announce a file that is on disk, and that this session uses it."""
    values = (header.chain, header.fingerprint, header.model, header.tokens_seen, size, time.time())
    connection.execute(
        "INSERT INTO snapshots (chain, fingerprint, model, tokens_seen, bytes, created) "
        "VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (chain) DO UPDATE SET bytes = excluded.bytes, created = excluded.created",
        values,
    )
    link(connection, session, header.chain)


def link(connection: sqlite3.Connection, session: int, chain: str) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO snapshot_links (session, chain) VALUES (?, ?)", (session, chain)
    )


def is_linked(connection: sqlite3.Connection, session: int, chain: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM snapshot_links WHERE session = ? AND chain = ?", (session, chain)
    )
    return found.fetchone() is not None


def known(connection: sqlite3.Connection, chain: str) -> bool:
    return connection.execute("SELECT 1 FROM snapshots WHERE chain = ?", (chain,)).fetchone() is not None


ROWS = """
    SELECT s.chain AS chain, s.fingerprint AS fingerprint, s.model AS model, s.tokens_seen AS tokens_seen,
        s.bytes AS bytes, s.created AS created, m.key AS message, m.id AS message_id, m.parent AS parent
    FROM snapshot_links JOIN snapshots s ON s.chain = snapshot_links.chain
    LEFT JOIN messages m ON m.key = (
        SELECT feed_sets.message FROM feeds JOIN feed_sets ON feed_sets.key = feeds.feed_set
        JOIN members ON members.session = snapshot_links.session AND members.message = feed_sets.message
        WHERE feeds.chain = s.chain LIMIT 1)
    WHERE snapshot_links.session = ? ORDER BY s.created DESC, s.tokens_seen DESC"""


def rows(connection: sqlite3.Connection, session: int) -> list[SnapshotRow]:
    """The saved states of one session, newest first."""
    return [
        SnapshotRow(
            chain=row["chain"],
            fingerprint=row["fingerprint"],
            model=row["model"],
            tokens_seen=row["tokens_seen"],
            bytes=row["bytes"],
            created=row["created"],
            message_id=row["message_id"],
        )
        for row in connection.execute(ROWS, (session,))
    ]


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved state as thinning sees it. ``message`` is a key, or ``None`` when no feed has its chain yet."""

    chain: str
    tokens_seen: int
    created: float
    message: int | None


def superfluous(
    states: Iterable[Saved], *, tip_path: frozenset[int], parents: Mapping[int, int | None]
) -> set[str]:
    """The chains among one model's ``states`` that thinning removes.

    ``tip_path`` holds the keys from the root to the tip, ``parents`` the parent of every message that the
    session knows. A state whose message is unknown counts as on the way to the tip: it was saved a moment
    ago.
    """
    on_path = [state for state in states if state.message is None or state.message in tip_path]
    beside = [state for state in states if state.message is not None and state.message not in tip_path]
    return (
        {state.chain for state in (*on_path, *beside)}
        - _kept_on_path(on_path)
        - _kept_beside(beside, parents)
    )


def _kept_on_path(states: list[Saved]) -> set[str]:
    ordered = sorted(states, key=lambda state: (state.tokens_seen, state.created), reverse=True)
    kept = {state.chain for state in ordered[:KEEP_NEWEST]}
    if not ordered:
        return kept
    newest = ordered[0].tokens_seen
    oldest_at: dict[int, str] = {}
    for state in ordered[KEEP_NEWEST:]:
        # Later states in this loop are older: the last one to claim a distance is the oldest there. It will
        # be the newest of the next distance when the conversation has gone on, so no gap ever opens.
        oldest_at[_distance(newest - state.tokens_seen)] = state.chain
    return kept | set(oldest_at.values())


def _distance(tokens: int) -> int:
    steps = 0
    while tokens >= SPACING:
        tokens //= SPACING
        steps += 1
    return steps


def _kept_beside(states: list[Saved], parents: Mapping[int, int | None]) -> set[str]:
    """The furthest state of each other branch: one that no other state goes on from."""
    continued: set[int] = set()
    for state in states:
        key = parents.get(state.message) if state.message is not None else None
        while key is not None and key not in continued:
            continued.add(key)
            key = parents.get(key)
    furthest: dict[int, Saved] = {}
    for state in sorted(states, key=lambda state: state.tokens_seen):
        if state.message is not None and state.message not in continued:
            furthest[state.message] = state
    newest = sorted(furthest.values(), key=lambda state: state.created, reverse=True)[:KEEP_BRANCHES]
    return {state.chain for state in newest}


def thin(connection: sqlite3.Connection, session: int) -> list[str]:
    """Take away the session's links to states that thinning removes; returns the chains that nobody uses now.

    Their rows are gone when the transaction commits; the caller then removes their files.
    """
    by_model: dict[str, list[Saved]] = {}
    for row in connection.execute(ROWS, (session,)):
        state = Saved(row["chain"], row["tokens_seen"], row["created"], row["message"])
        by_model.setdefault(row["fingerprint"], []).append(state)
    if all(len(states) <= KEEP_NEWEST for states in by_model.values()):
        return []
    parents: dict[int, int | None] = {
        row["key"]: row["parent"]
        for row in connection.execute(
            "SELECT m.key, m.parent FROM members JOIN messages m ON m.key = members.message "
            "WHERE members.session = ?",
            (session,),
        )
    }
    key: int | None = connection.execute("SELECT tip FROM sessions WHERE key = ?", (session,)).fetchone()[0]
    tip_path = set()
    while key is not None:
        tip_path.add(key)
        key = parents.get(key)
    for states in by_model.values():
        for chain in superfluous(states, tip_path=frozenset(tip_path), parents=parents):
            connection.execute("DELETE FROM snapshot_links WHERE session = ? AND chain = ?", (session, chain))
    return drop_unused(connection)


def drop_unused(connection: sqlite3.Connection) -> list[str]:
    """Delete the rows of states that no session uses; returns their chains."""
    chains = [
        row["chain"]
        for row in connection.execute(
            "SELECT chain FROM snapshots WHERE NOT EXISTS "
            "(SELECT 1 FROM snapshot_links WHERE snapshot_links.chain = snapshots.chain)"
        )
    ]
    connection.executemany("DELETE FROM snapshots WHERE chain = ?", [(chain,) for chain in chains])
    return chains


def missing(chain: str) -> SnapshotError:
    return SnapshotError(
        f"There is no saved state {chain[:12]} for this point of the conversation. "
        "The state will be rebuilt from the transcript."
    )
