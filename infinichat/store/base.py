"""What the parts of the store share: the folders, the database, and a transaction about one session."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from infinichat.paths import Paths
from infinichat.store import sessions
from infinichat.store.database import Database


class StoreBase:
    """Paths and database; a context manager that closes the database."""

    def __init__(self, paths: Paths, database: Database) -> None:
        self.paths = paths
        self._database = database

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _session_read(self, session_id: str) -> Iterator[tuple[sqlite3.Connection, int]]:
        with self._database.read() as connection:
            yield connection, sessions.key_of(connection, session_id)

    @contextlib.contextmanager
    def _session_write(self, session_id: str) -> Iterator[tuple[sqlite3.Connection, int]]:
        with self._database.write() as connection:
            yield connection, sessions.key_of(connection, session_id)

    def _set(self, session_id: str, column: str, value: str | int | float | None) -> None:
        with self._session_write(session_id) as (connection, key):
            connection.execute(f"UPDATE sessions SET {column} = ? WHERE key = ?", (value, key))
