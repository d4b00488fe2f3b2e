"""The shape of the database, as the steps that made it; ``PRAGMA user_version`` counts those taken.

Each step runs in one transaction together with its number, so a process that dies in the middle leaves the
old shape. Before a step changes an existing database, a whole copy is put into the backups folder. A
database made by a newer infinichat is refused and not touched.

    sessions ──tip──> messages <──parent── messages        the tree: nodes are shared and never rewritten
    members   which session knows which message, in the order in which it came to know them
    feed_sets, feeds       the ids that were fed for a message, per model fingerprint
    drafts                 the answer that is streaming, one per session
    snapshots, snapshot_links      saved states by chain, and the sessions that use them
    words                  full-text index over what was said and read
    memory_marks           what the memory held after a message, per model fingerprint
    waiting                messages that were sent and not answered yet
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from infinichat.errors import DatabaseError
from infinichat.store.database import Database, connect, sentences
from infinichat.store.files import disk_errors, fsync_folder, private_file, private_folder
from infinichat.store.search import index_message

APPLICATION_ID = 0x1F171C4A  # marks the file as infinichat's in its header


def m001_transcripts(connection: sqlite3.Connection) -> None:
    """Sessions, the message tree, feeds, drafts and snapshots.

    Rows refer to each other by integer key: a walk from a tip to its root is then one b-tree look-up per
    message.
    """
    for statement in (
        """CREATE TABLE messages (
            key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, parent INTEGER REFERENCES messages(key),
            depth INTEGER NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL, size INTEGER NOT NULL,
            reason TEXT NOT NULL, title TEXT, model TEXT, chain TEXT NOT NULL, created REAL NOT NULL)""",
        "CREATE INDEX messages_parent ON messages(parent)",
        """CREATE TABLE sessions (
            key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, title TEXT, system TEXT,
            model TEXT, tip INTEGER REFERENCES messages(key), created REAL NOT NULL, updated REAL NOT NULL,
            pinned INTEGER NOT NULL DEFAULT 0, deleted_at REAL, tokens_seen INTEGER NOT NULL DEFAULT 0)""",
        "CREATE UNIQUE INDEX sessions_name ON sessions(name) WHERE deleted_at IS NULL",
        "CREATE INDEX sessions_listed ON sessions(pinned, updated) WHERE deleted_at IS NULL",
        "CREATE INDEX sessions_recent ON sessions(updated) WHERE deleted_at IS NULL",
        "CREATE INDEX sessions_tip ON sessions(tip)",
        """CREATE TABLE members (
            position INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions(key) ON DELETE CASCADE,
            message INTEGER NOT NULL REFERENCES messages(key), added REAL NOT NULL,
            UNIQUE (session, message))""",
        "CREATE INDEX members_message ON members(message)",
        """CREATE TABLE feed_sets (
            key INTEGER PRIMARY KEY, message INTEGER NOT NULL REFERENCES messages(key) ON DELETE CASCADE,
            fingerprint TEXT NOT NULL, UNIQUE (message, fingerprint))""",
        """CREATE TABLE feeds (
            feed_set INTEGER NOT NULL REFERENCES feed_sets(key) ON DELETE CASCADE, position INTEGER NOT NULL,
            mode TEXT NOT NULL, chain TEXT NOT NULL, ids BLOB NOT NULL, UNIQUE (feed_set, position))""",
        "CREATE INDEX feeds_chain ON feeds(chain)",
        """CREATE TABLE drafts (
            session INTEGER PRIMARY KEY REFERENCES sessions(key) ON DELETE CASCADE,
            parent INTEGER REFERENCES messages(key) ON DELETE CASCADE, content TEXT NOT NULL,
            ids BLOB NOT NULL, prompt_ids BLOB NOT NULL, model TEXT NOT NULL, fingerprint TEXT NOT NULL,
            updated REAL NOT NULL)""",
        "CREATE INDEX drafts_parent ON drafts(parent)",
        """CREATE TABLE snapshots (
            chain TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, model TEXT NOT NULL,
            tokens_seen INTEGER NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL)""",
        """CREATE TABLE snapshot_links (
            session INTEGER NOT NULL REFERENCES sessions(key) ON DELETE CASCADE,
            chain TEXT NOT NULL REFERENCES snapshots(chain) ON DELETE CASCADE, UNIQUE (session, chain))""",
        "CREATE INDEX snapshot_links_chain ON snapshot_links(chain)",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ):
        connection.execute(statement)


def m002_search(connection: sqlite3.Connection) -> None:
    """Full-text search over every word that was ever said; what is already there is indexed on the way."""
    connection.execute(
        "CREATE VIRTUAL TABLE words USING "
        "fts5(text, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3')"
    )
    for row in connection.execute("SELECT key, role, title, content FROM messages ORDER BY key"):
        index_message(connection, row["key"], role=row["role"], title=row["title"], content=row["content"])


def m003_memory_marks(connection: sqlite3.Connection) -> None:
    """What the memory of a model held at the end of each turn. Earlier turns have none, and need none."""
    connection.execute(
        """CREATE TABLE memory_marks (
            message INTEGER NOT NULL REFERENCES messages(key) ON DELETE CASCADE, fingerprint TEXT NOT NULL,
            tokens_seen INTEGER NOT NULL, layers TEXT NOT NULL, UNIQUE (message, fingerprint))"""
    )


def m004_waiting(connection: sqlite3.Connection) -> None:
    """Messages that wait for a model or for the answer before them."""
    connection.execute(
        """CREATE TABLE waiting (
            key INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions(key) ON DELETE CASCADE,
            text TEXT NOT NULL, instead_of INTEGER REFERENCES messages(key) ON DELETE SET NULL,
            message INTEGER REFERENCES messages(key) ON DELETE CASCADE, sender TEXT NOT NULL,
            created REAL NOT NULL)"""
    )
    connection.execute("CREATE INDEX waiting_session ON waiting(session)")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    m001_transcripts,
    m002_search,
    m003_memory_marks,
    m004_waiting,
)


def migrate(database: Database, *, backups: Path) -> list[Path]:
    """Bring the database to the newest shape; returns the copies that were made on the way.

    Raises ``DatabaseError`` for a file that a newer infinichat or another program made, ``DiskError`` when
    there is no room for the copy. In both cases the file is as it was.
    """
    copies = []
    # Asked on a bare connection: a file that is refused must not even get a write-ahead log.
    version = checked_version(database.path)
    is_new = version == 0
    while version < len(MIGRATIONS):
        if not is_new:
            copies.append(_copy_before(database, version, backups=backups))
        with database.write() as connection:
            # Another process may have taken this step while we waited for the lock.
            if _user_version(connection) == version:
                MIGRATIONS[version](connection)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            version = _user_version(connection)
    return copies


def _user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def checked_version(path: Path) -> int:
    """The number of steps that the file has taken, after a look at whose it is and whether it can be read."""
    with sentences(path), contextlib.closing(connect(path)) as connection:
        version = _user_version(connection)
        owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
        tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if owner != APPLICATION_ID and (tables or version):
        raise DatabaseError(
            f"{path} is a database of another program (mark {owner:#x}, expected {APPLICATION_ID:#x}). "
            "Move it away or set INFINICHAT_HOME to another folder."
        )
    if version > len(MIGRATIONS):
        raise DatabaseError(
            f"{path} was made by a newer infinichat: format {version}, this one knows formats up to "
            f"{len(MIGRATIONS)}. Update infinichat, or set INFINICHAT_HOME to another folder. "
            "Nothing was changed."
        )
    return version


def _copy_before(database: Database, version: int, *, backups: Path) -> Path:
    """A whole, readable copy of the database as it is now, on disk before the step begins."""
    private_folder(backups)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    copy = backups / f"infinichat-format{version}-{stamp}-{secrets.token_hex(3)}.db"
    copy_database(database, copy)
    return copy


def copy_database(database: Database, target: Path) -> None:
    """Write a compact copy of the database (``VACUUM INTO``) to ``target``, mode 0600, fsynced.

    ``target`` must not exist. Raises ``DiskError``; nothing is left of a copy that did not finish.
    """
    private_file(
        target, new=True
    )  # VACUUM INTO accepts an empty file, and so the mode is right from the start
    try:
        with database.connection() as connection:
            connection.execute("VACUUM INTO ?", (str(target),))
        with disk_errors(target, doing="writing"):
            descriptor = os.open(target, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fsync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        raise
