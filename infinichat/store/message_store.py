"""The part of the store's face that is about words: messages, what waits to be said, the answer
as it streams, feeds, search."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from infinichat.errors import UsageError
from infinichat.messages import FinishReason, LayerMemory, MemoryMark, Message, Role
from infinichat.store import answers, memory_marks, search, transcripts, waiting
from infinichat.store.base import StoreBase
from infinichat.store.records import Draft, Feed, SearchHit, Waiting


class MessageStore(StoreBase):
    """Messages and what was fed for them: each method is one transaction."""

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
        waited: int | None = None,
    ) -> Message:
        """Put a message below the tip and make it the tip. It is on disk when this returns.

        The same content at the same place is the same message: its ``reason`` is updated, nothing is added.
        ``waited`` is the number under which ``put_waiting`` kept it.
        """
        with self._session_write(session_id) as (connection, key):
            new = self._append(connection, key, role, content, reason, chain, title, model)
            if waited is not None:
                waiting.said(connection, waited, new)
            return transcripts.message(connection, new, session=key)

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
            return transcripts.path(connection, key, start, limit=limit)

    def siblings(self, message_id: str, session_id: str) -> list[str]:
        """Ids of this session's messages with the same parent and role, itself included, oldest first."""
        with self._session_read(session_id) as (connection, key):
            message = transcripts.message_key(connection, message_id, session=key)
            return transcripts.siblings(connection, key, message)

    def versions(self, message_id: str, session_id: str) -> list[str]:
        """Those of ``siblings`` that are versions to choose between: an answer that was stopped and gone on
        with, and a part of a document, are none beside the whole."""
        with self._session_read(session_id) as (connection, key):
            message = transcripts.message_key(connection, message_id, session=key)
            return transcripts.versions(connection, key, message)

    def newest_descendant(self, message_id: str, session_id: str) -> str:
        """Id of the end of the branch through this message that was written last; perhaps its own."""
        with self._session_read(session_id) as (connection, key):
            message = transcripts.message_key(connection, message_id, session=key)
            return transcripts.message(connection, transcripts.newest_descendant(connection, key, message)).id

    # -- what was sent and is not answered --

    def put_waiting(self, session_id: str, text: str, *, instead_of: str | None = None) -> int:
        """Keep a message that was sent, until ``clear_waiting``; returns its number."""
        with self._session_write(session_id) as (connection, key):
            place = instead_of and transcripts.message_key(connection, instead_of, session=key)
            return waiting.put(connection, key, text, instead_of=place or None)

    def left_waiting(self, session_id: str) -> list[Waiting]:
        """What processes that have ended sent to the session, and nobody answered; oldest first."""
        with self._session_read(session_id) as (connection, key):
            return waiting.left_behind(connection, key)

    def waiting_said(self, number: int, message_id: str) -> None:
        """What waited is this message of the transcript."""
        with self._database.write() as connection:
            waiting.said(connection, number, transcripts.message_key(connection, message_id))

    def clear_waiting(self, number: int) -> None:
        """What waited was answered, or will not be said. Doing it twice is fine."""
        with self._database.write() as connection:
            waiting.clear(connection, number)

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
            return transcripts.message(connection, new, session=key)

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

    # -- what was written to the memory when --

    def mark_memory(
        self, message_id: str, fingerprint: str, *, tokens_seen: int, layers: Sequence[LayerMemory]
    ) -> None:
        """Keep what the memory of this model held at the end of the turn that this message ended."""
        with self._database.write() as connection:
            memory_marks.write(
                connection,
                transcripts.message_key(connection, message_id),
                fingerprint=fingerprint,
                tokens_seen=tokens_seen,
                layers=layers,
            )

    def memory_marks(self, session_id: str, fingerprint: str, *, limit: int = 400) -> tuple[MemoryMark, ...]:
        """What was kept for the newest ``limit`` messages of the selected branch, oldest first."""
        with self._session_read(session_id) as (connection, key):
            return memory_marks.marks(connection, key, fingerprint=fingerprint, limit=limit)

    # -- search --

    def search(self, query: str, *, session_id: str | None = None, limit: int = 50) -> list[SearchHit]:
        """Messages with all the words (the last may be a beginning), newest first. Any string is safe."""
        with self._database.read() as connection:
            return search.search(connection, query, session_id=session_id, limit=limit)

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
        now = time.time()
        new = transcripts.add_message(
            connection,
            parent=tip,
            role=role,
            content=content,
            reason=reason,
            chain=chain,
            title=title,
            model=model,
            created=now,
        )
        transcripts.join(connection, key, new, added=now)
        transcripts.move_tip(connection, key, new)
        return new
