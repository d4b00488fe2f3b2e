"""``Store``: everything that infinichat keeps on disk about conversations, behind one object.

It knows no model and no screen. Each method is one transaction: when it returns, what it wrote is on disk;
when it raises, nothing was. Methods may be called from any thread. The order of writes is the promise: a
user's message first, then the answer as a draft, then the answer, then the snapshot. A crash costs time,
never words.

    with Store.open(default_paths()) as store:
        session = store.create_session("notes")
        with store.lock(session.id):
            store.append(session.id, role="user", content="Hello", reason="complete", chain=chain)
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

from infinichat.errors import StoreError, UsageError
from infinichat.paths import Paths
from infinichat.protocols import StateDump
from infinichat.store import housekeeping, sessions, snapshots
from infinichat.store.database import Database
from infinichat.store.files import private_folder, sweep_partial
from infinichat.store.locks import SessionLock
from infinichat.store.message_store import MessageStore
from infinichat.store.migrations import migrate
from infinichat.store.records import DiskUsage, SessionRecord, SnapshotHeader, SnapshotRow
from infinichat.store.session_store import SessionStore
from infinichat.store.snapshot_file import read_snapshot, remove_file, write_snapshot


class Store(SessionStore, MessageStore):
    """Made by ``Store.open``; a context manager. Methods about sessions and messages are inherited."""

    @classmethod
    def open(cls, paths: Paths, *, keep_deleted_days: float | None = None) -> Store:
        """Create what is missing (folders 0700, files 0600) and bring the database to the newest format.

        With ``keep_deleted_days`` sessions that were deleted longer ago are removed for good; a disk that
        does not let that happen is no reason not to open. Raises ``DatabaseError`` (damaged, another
        program's, a newer infinichat's) or ``DiskError``.
        """
        database = Database(paths.database)
        try:
            migrate(database, backups=paths.backups)
            for folder in (paths.snapshots, paths.locks):
                private_folder(folder)
            sweep_partial(paths.snapshots)
            if keep_deleted_days is not None:
                with contextlib.suppress(StoreError):
                    housekeeping.purge_due(database, paths, older_than_s=keep_deleted_days * 86400)
        except BaseException:
            database.close()
            raise
        return cls(paths, database)

    # -- snapshots --

    def save_snapshot(self, session_id: str, chain: str, dump: StateDump, *, header: SnapshotHeader) -> int:
        """Write a state to disk, then thin this session's older ones; returns the file's size in bytes.

        Raises ``DiskError``; then nothing has changed.
        """
        if header.chain != chain:
            raise UsageError(
                f"The snapshot's header is for chain {header.chain[:12]}, expected {chain[:12]}."
            )
        file = snapshots.snapshot_path(self.paths.snapshots, chain)
        with self._session_read(session_id):
            pass  # an unknown session must not leave a file
        size = write_snapshot(file, dump, header=header)
        with self._session_write(session_id) as (connection, key):
            snapshots.record(connection, key, header=header, size=size)
            unused = snapshots.thin(connection, key)
        for old in unused:
            remove_file(snapshots.snapshot_path(self.paths.snapshots, old))
        return size

    def load_snapshot(self, session_id: str, chain: str, *, header: SnapshotHeader) -> StateDump:
        """The state after ``chain``, checked to the last byte.

        Raises ``SnapshotError`` that names what is missing, damaged or different from ``header``.
        """
        with self._session_read(session_id) as (connection, key):
            if not snapshots.known(connection, chain):
                raise snapshots.missing(chain)
            linked = snapshots.is_linked(connection, key, chain)
        dump = read_snapshot(snapshots.snapshot_path(self.paths.snapshots, chain), expected=header)
        if not linked:
            # Another session's state: from now on this one needs it too.
            with self._session_write(session_id) as (connection, key):
                if snapshots.known(connection, chain):
                    snapshots.link(connection, key, chain)
        return dump

    def has_snapshot(self, session_id: str, chain: str) -> bool:
        """Whether there is a state after ``chain``, whichever session saved it. Does not read it."""
        with self._session_read(session_id) as (connection, _):
            known = snapshots.known(connection, chain)
        return known and snapshots.snapshot_path(self.paths.snapshots, chain).is_file()

    def snapshot_chains(self, session_id: str) -> list[SnapshotRow]:
        """The session's saved states, newest first."""
        with self._session_read(session_id) as (connection, key):
            return snapshots.rows(connection, key)

    def disk_usage(self, session_id: str | None = None) -> DiskUsage:
        """Bytes on disk of one session (states that it shares count in full) or of everything."""
        if session_id is None:
            with self._database.read() as connection:
                return housekeeping.total_usage(connection, self.paths)
        with self._session_read(session_id) as (connection, key):
            return housekeeping.session_usage(connection, key)

    def lock(self, session_id: str) -> SessionLock:
        """Take the session for this process. Raises ``SessionLockedError`` with the pid that has it."""
        with self._session_read(session_id) as (connection, key):
            name = sessions.by_key(connection, key).name
        return SessionLock(self.paths.locks, session_id, name=name)

    # -- housekeeping --

    def backup(self, file: Path) -> None:
        """Everything about conversations in one new zip file (mode 0600); ``restore_backup`` brings it back.

        Raises ``UsageError`` when the file exists, ``DiskError`` when it cannot be written.
        """
        from infinichat.store.backup import write_backup

        write_backup(self._database, self.paths, file)

    def verify(self) -> list[str]:
        """Check everything that was ever written; sentences about what is wrong, none when all is well."""
        from infinichat.store.verify import verify

        return verify(self._database, self.paths)

    def export_session(self, session_id: str, format: Literal["json", "markdown"] = "json") -> str:
        """The whole tree as JSON (``import_session`` reads it), or the selected branch as Markdown."""
        from infinichat.store import transfer

        if format not in ("json", "markdown"):
            raise UsageError(f"{format!r} is not an export format; expected json or markdown.")
        with self._session_read(session_id) as (connection, key):
            return (transfer.to_json if format == "json" else transfer.to_markdown)(connection, key)

    def import_session(self, text: str) -> SessionRecord:
        """A new session from what ``export_session`` wrote as JSON: every branch, word for word.

        Raises ``UsageError`` that names what is wrong in the text; then nothing was imported.
        """
        from infinichat.store import transfer

        parsed = transfer.parse(text)
        with self._database.write() as connection:
            return sessions.by_key(connection, transfer.insert(connection, parsed))
