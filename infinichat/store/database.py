"""The SQLite file: connections, transactions, and errors as sentences.

Write-ahead log, full synchronisation (a message that was committed survives a power cut), foreign keys, a
busy timeout of five seconds, and immediate transactions, so that a writer waits at its first statement and
never in the middle. Connections are lent from a pool, one per thread at a time: readers never wait for a
writer.

    with database.write() as connection:    # BEGIN IMMEDIATE ... COMMIT, or ROLLBACK on any exception
        connection.execute("UPDATE ...")
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from infinichat.errors import DatabaseError, DiskError, StoreError
from infinichat.store.files import private_file, private_folder

BUSY_TIMEOUT_S = 5.0

PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS: fsync alone does not reach the platter there
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA secure_delete = ON",  # what was purged is not left readable in free pages
    "PRAGMA journal_size_limit = 67108864",  # the log shrinks again after a big import
)


def sentence(exc: sqlite3.Error, path: Path) -> StoreError:
    """The error to raise for ``exc``: the disk's fault, or the file's, with the next step."""
    name = getattr(exc, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return DiskError(
            f"The disk is full: {path} could not be written. Free some space and try again; no word was lost."
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return DiskError(
            f"{path} cannot be opened for writing ({exc}). "
            "Make the file and its folder writable or set INFINICHAT_HOME to another folder."
        )
    if name.startswith("SQLITE_IOERR"):
        return DiskError(
            f"Reading or writing {path} failed ({exc}). "
            "Check that the disk is not full or damaged, then try again."
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return DatabaseError(
            f"{path} was in use by another process for more than {BUSY_TIMEOUT_S:.0f} s. "
            "Try again in a moment."
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return DatabaseError(
            f"{path} is damaged or not a database ({exc}). Nothing was changed. Move it away to start anew, "
            f"or put a copy from {path.parent / 'backups'} or from `infinichat backup` in its place."
        )
    return DatabaseError(f"{path} could not be used: {exc}. `infinichat doctor` says more.")


@contextlib.contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Raise ``DatabaseError`` or ``DiskError`` where ``sqlite3`` complains about the file or the disk.

    A violated constraint or a misused connection is a bug and passes unchanged.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.Error as exc:
        raise sentence(exc, path) from exc


def connect(path: Path) -> sqlite3.Connection:
    """Open ``path`` without changing anything in it; transactions begin only when told to."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


class Database:
    """A pool of connections to one file. Any method may be called from any thread.

    ``path`` is created (mode 0600) when it is missing. Raises ``DiskError`` or ``DatabaseError``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._writer = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        private_folder(path.parent)
        private_file(path)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection outside any transaction, for statements that refuse to run in one."""
        with sentences(self.path):
            connection = self._take()
            try:
                yield connection
            finally:
                self._give_back(connection)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one moment of the database, whatever is written meanwhile."""
        with self.connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _rollback(connection)

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on disk when the block ends, or did not happen."""
        # Threads of this process queue here, in order; SQLite's own waiting is a poll with growing sleeps.
        with self._writer, self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                _rollback(connection)

    def close(self) -> None:
        """Close idle connections now and lent ones when they come back. Closing twice is fine."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._guard:
            if self._closed:
                raise StoreError(
                    f"{self.path} has been closed by this process. Open the store again to use it."
                )
            if self._idle:
                return self._idle.pop()
        connection = connect(self.path)
        try:
            for pragma in PRAGMAS:
                connection.execute(pragma).fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._guard:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _rollback(connection: sqlite3.Connection) -> None:
    """End the transaction that is open; after COMMIT, or SQLite's own rollback, there is none."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
