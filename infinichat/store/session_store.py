"""The part of the store's face that is about sessions as a whole: names, titles, pins, deletion, branches."""

from __future__ import annotations

import time

from infinichat.store import housekeeping, sessions, transcripts
from infinichat.store.base import StoreBase
from infinichat.store.records import SessionRecord


class SessionStore(StoreBase):
    """Sessions: each method is one transaction."""

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
