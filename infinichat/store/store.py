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
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from infinichat.errors import UsageError
from infinichat.messages import FinishReason, Message, Role
from infinichat.paths import Paths
from infinichat.protocols import StateDump
from infinichat.store import answers, housekeeping, search, sessions, snapshots, transcripts
from infinichat.store.database import Database
from infinichat.store.files import private_folder, sweep_partial
from infinichat.store.locks import SessionLock
from infinichat.store.migrations import migrate
from infinichat.store.records import (
    DiskUsage,
    Draft,
    Feed,
    SearchHit,
    SessionRecord,
    SnapshotHeader,
    SnapshotRow,
)
from infinichat.store.snapshot_file import read_snapshot, remove_file, write_snapshot


class Store:
    """Made by ``Store.open``; a context manager."""

    def __init__(self, paths: Paths, database: Database) -> None:
        self.paths = paths
        self._database = database

    @classmethod
    def open(cls, paths: Paths) -> Store:
        """Create what is missing (folders 0700, files 0600) and bring the database to the newest format.

        Raises ``DatabaseError`` (damaged, another program's, a newer infinichat's) or ``DiskError``.
        """
        database = Database(paths.database)
        try:
            migrate(database, backups=paths.backups)
            for folder in (paths.snapshots, paths.locks):
                private_folder(folder)
            sweep_partial(paths.snapshots)
        except BaseException:
            database.close()
            raise
        return cls(paths, database)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- sessions --

    def create_session(
        self, name: str | None = None, *, system: str | None = None, model: str | None = None
    ) -> SessionRecord:
        """A new, empty session; without a name it is called ``chat-1``, ``chat-2``, ...

        Raises ``UsageError`` when the name is taken or cannot be one.
        """
        with self._database.write() as connection:
            return sessions.by_key(connection, sessions.create(connection, name, system=system, model=model))

    def session(self, name_or_id: str, *, deleted: bool = False) -> SessionRecord:
        """The session with this name, id, or at least six first characters of its id (among the deleted ones
        with ``deleted``). Raises ``SessionNotFoundError`` with the names that are near."""
        with self._database.read() as connection:
            found = sessions.find(connection, name_or_id, deleted=deleted)
            if found is None:
                raise sessions.not_found(connection, name_or_id, deleted=deleted)
            return found

    def find_session(self, name_or_id: str, *, deleted: bool = False) -> SessionRecord | None:
        """Like ``session``, but ``None`` when there is none."""
        with self._database.read() as connection:
            return sessions.find(connection, name_or_id, deleted=deleted)

    def sessions(
        self, *, query: str | None = None, deleted: bool = False, limit: int | None = None
    ) -> list[SessionRecord]:
        """Pinned first, then newest used (deleted ones: newest deleted first). With ``query`` those whose
        name or title contains it, or whose messages hold its words."""
        with self._database.read() as connection:
            return sessions.listed(connection, query=query, deleted=deleted, limit=limit)

    def last_session(self) -> SessionRecord | None:
        """The session that was used last, pinned or not."""
        with self._database.read() as connection:
            return sessions.last(connection)

    def rename(self, session_id: str, name: str) -> None:
        """Raises ``UsageError`` when another session has the name."""
        with self._session_write(session_id) as (connection, key):
            sessions.rename(connection, key, name)

    def set_title(self, session_id: str, title: str | None) -> None:
        self._set(session_id, "title", None if title is None else transcripts.storable(title))

    def set_model(self, session_id: str, model: str | None) -> None:
        self._set(session_id, "model", model)

    def set_system(self, session_id: str, system: str | None) -> None:
        self._set(session_id, "system", None if system is None else transcripts.storable(system))

    def set_pinned(self, session_id: str, pinned: bool) -> None:
        self._set(session_id, "pinned", int(pinned))

    def set_tokens_seen(self, session_id: str, tokens_seen: int) -> None:
        self._set(session_id, "tokens_seen", tokens_seen)

    def touch(self, session_id: str) -> None:
        """Make this the session that was used last."""
        self._set(session_id, "updated", time.time())

    def set_tip(self, session_id: str, message_id: str | None) -> None:
        """Select the branch that ends at this message of the session; ``None`` is before the first one."""
        with self._session_write(session_id) as (connection, key):
            tip = None if message_id is None else transcripts.message_key(connection, message_id, session=key)
            transcripts.move_tip(connection, key, tip)

    def delete(self, session_id: str) -> None:
        """Put the session away; ``undelete`` brings it back until ``purge_deleted`` removes it."""
        self._set(session_id, "deleted_at", time.time())

    def undelete(self, session_id: str) -> SessionRecord:
        """Bring a deleted session back, as ``name-2`` when its name was given away meanwhile."""
        with self._session_write(session_id) as (connection, key):
            sessions.undelete(connection, key)
            return sessions.by_key(connection, key)

    def purge_deleted(self, *, older_than_s: float) -> int:
        """Remove for good what was deleted longer ago than this, and all that nothing else shares: messages,
        feeds, snapshots. Sessions that are open somewhere stay. Returns how many sessions went."""
        return housekeeping.purge_deleted(self._database, self.paths, older_than_s=older_than_s)

    def branch(self, session_id: str, message_id: str, name: str | None = None) -> SessionRecord:
        """A new session that goes on from this message of the session; everything before it is shared."""
        with self._session_write(session_id) as (connection, key):
            message = transcripts.message_key(connection, message_id, session=key)
            return sessions.by_key(connection, sessions.branch(connection, key, message, name=name))

    # -- messages --

    def append(
        self,
        session_id: str,
        *,
        role: Role,
        content: str,
        reason: FinishReason,
        chain: str,
        title: str | None = None,
        model: str | None = None,
    ) -> Message:
        """Put a message below the tip and make it the tip. It is on disk when this returns.

        The same content at the same place is the same message: its ``reason`` is updated, nothing is added.
        """
        with self._session_write(session_id) as (connection, key):
            new = self._append(connection, key, role, content, reason, chain, title, model)
            return transcripts.message(connection, new)

    def message(self, message_id: str) -> Message:
        """Raises ``UsageError`` when there is none with this id."""
        with self._database.read() as connection:
            return transcripts.message(connection, transcripts.message_key(connection, message_id))

    def set_reason(self, message_id: str, reason: FinishReason) -> Message:
        """Say how a message came to an end: a document that was stopped has been read to its end now."""
        transcripts.check_reason(reason)
        with self._database.write() as connection:
            key = transcripts.message_key(connection, message_id)
            connection.execute("UPDATE messages SET reason = ? WHERE key = ?", (reason, key))
            return transcripts.message(connection, key)

    def path(self, session_id: str, *, limit: int | None = None, before: str | None = None) -> list[Message]:
        """The transcript, first message first; with ``limit`` its newest messages only, with ``before`` those
        before that message (of this session, on the selected branch or another)."""
        with self._session_read(session_id) as (connection, key):
            if before is None:
                start: int | None = connection.execute(
                    "SELECT tip FROM sessions WHERE key = ?", (key,)
                ).fetchone()[0]
            else:
                below = transcripts.message_key(connection, before, session=key)
                start = transcripts.parent_key(connection, below)
            return transcripts.path(connection, start, limit=limit)

    def path_length(self, session_id: str) -> int:
        with self._session_read(session_id) as (connection, key):
            return sessions.by_key(connection, key).messages

    def siblings(self, message_id: str, session_id: str) -> list[str]:
        """Ids of the messages of this session with the same parent and role, itself included, oldest
        first."""
        with self._session_read(session_id) as (connection, key):
            message = transcripts.message_key(connection, message_id, session=key)
            return transcripts.siblings(connection, key, message)

    def newest_descendant(self, message_id: str, session_id: str) -> str:
        """Id of the end of the branch through this message that was written last (perhaps the message
        itself)."""
        with self._session_read(session_id) as (connection, key):
            message = transcripts.message_key(connection, message_id, session=key)
            return transcripts.message(connection, transcripts.newest_descendant(connection, key, message)).id

    # -- the answer as it streams --

    def write_draft(
        self,
        session_id: str,
        *,
        parent: str | None,
        content: str,
        ids: Sequence[int],
        prompt_ids: Sequence[int],
        model: str,
        fingerprint: str,
    ) -> None:
        """Keep the answer so far; a session has one draft, and the next call overwrites it."""
        with self._session_write(session_id) as (connection, key):
            answers.write_draft(
                connection,
                key,
                parent=None if parent is None else transcripts.message_key(connection, parent, session=key),
                content=content,
                ids=ids,
                prompt_ids=prompt_ids,
                model=model,
                fingerprint=fingerprint,
            )

    def draft(self, session_id: str) -> Draft | None:
        """The answer that was streaming when its process died, or streams now."""
        with self._session_read(session_id) as (connection, key):
            return answers.draft(connection, key)

    def clear_draft(self, session_id: str) -> None:
        with self._session_write(session_id) as (connection, key):
            answers.clear_draft(connection, key)

    def commit_answer(
        self,
        session_id: str,
        *,
        content: str,
        reason: FinishReason,
        chain: str,
        model: str,
        feeds: Sequence[Feed],
        fingerprint: str | None = None,
    ) -> Message:
        """The answer below the tip, what was fed for it, the draft gone, the tip moved: one transaction.

        ``fingerprint`` is the model's that the feeds are for; ``None`` takes it from the draft. Raises
        ``UsageError`` when there are feeds and neither says it.
        """
        with self._session_write(session_id) as (connection, key):
            draft = answers.draft(connection, key)
            fingerprint = fingerprint or (draft.fingerprint if draft else None)
            if feeds and fingerprint is None:
                raise UsageError(
                    "The feeds of an answer need the model's fingerprint, and there is no draft that has it."
                )
            new = self._append(connection, key, "assistant", content, reason, chain, None, model)
            if fingerprint is not None:
                answers.write_feeds(connection, new, fingerprint, feeds)
            answers.clear_draft(connection, key)
            return transcripts.message(connection, new)

    # -- feeds --

    def write_feeds(self, message_id: str, fingerprint: str, feeds: Sequence[Feed]) -> None:
        """Keep what was fed for this message under this model; replaces what was kept before."""
        with self._database.write() as connection:
            answers.write_feeds(
                connection, transcripts.message_key(connection, message_id), fingerprint, feeds
            )

    def feeds(self, message_id: str, fingerprint: str) -> list[Feed] | None:
        """What was fed for this message under this model, or ``None`` when it never was."""
        with self._database.read() as connection:
            return answers.feeds(connection, transcripts.message_key(connection, message_id), fingerprint)

    # -- search --

    def search(self, query: str, *, session_id: str | None = None, limit: int = 50) -> list[SearchHit]:
        """Messages that hold all the words (the last one may be a beginning), newest first. Any string is
        safe."""
        with self._database.read() as connection:
            return search.search(connection, query, session_id=session_id, limit=limit)

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

    # -- shared by the methods above --

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

    def _append(
        self,
        connection: sqlite3.Connection,
        key: int,
        role: Role,
        content: str,
        reason: FinishReason,
        chain: str,
        title: str | None,
        model: str | None,
    ) -> int:
        tip: int | None = connection.execute("SELECT tip FROM sessions WHERE key = ?", (key,)).fetchone()[0]
        new = transcripts.add_message(
            connection,
            parent=tip,
            role=role,
            content=content,
            reason=reason,
            chain=chain,
            title=title,
            model=model,
        )
        transcripts.join(connection, key, new)
        transcripts.move_tip(connection, key, new)
        return new
