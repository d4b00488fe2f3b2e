"""``ChatSession``: one conversation with its memory. What the app, the commands and the Python API use.

It puts the parts together and keeps the order of a turn: the user's message is on disk before anything is
generated; the state is brought to it; the answer streams, and is on disk before the state is. Every method
that talks to the model returns an iterator of events and does its work while it is iterated. One turn at a
time; the session is locked against other processes from ``open_session`` to ``close``.

A session's system text is what its first message is encoded with, so it cannot be changed once there are
messages: start a new session for another one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

from infinichat.chat_format import chat_format
from infinichat.errors import UsageError
from infinichat.messages import (
    MemoryReport,
    Message,
    Notice,
    SamplingOptions,
    StreamEvent,
)
from infinichat.protocols import Engine, EngineInfo
from infinichat.session.answering import Clock, Growing, answer, keep, tokens_seen
from infinichat.session.continuing import take_up
from infinichat.session.keeper import Arrival, StateKeeper
from infinichat.session.reading import PendingDocument, pending_documents, read
from infinichat.session.recovery import mark_move, recover
from infinichat.session.route import chain_at, known_feeds
from infinichat.session.saying import say
from infinichat.session.words import storable
from infinichat.session.words import words as _words
from infinichat.store import SessionLock, SessionRecord, Store


class ChatSession:
    """Made by ``open_session``; a context manager. ``stop`` and everything that only reads may be called from
    any thread while a turn runs."""

    def __init__(
        self,
        store: Store,
        record: SessionRecord,
        *,
        engine: Engine,
        lock: SessionLock,
        sampling: SamplingOptions,
        owns_engine: bool,
        owns_store: bool,
    ) -> None:
        self.id = record.id
        self.store = store
        self._lock = lock
        self._sampling = sampling
        self._owns_engine = owns_engine
        self._owns_store = owns_store
        self._keeper = self._keeper_for(engine)
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._closed = False
        self._running: Generator[StreamEvent, None, None] | None = None
        self._runner = 0  # the thread that iterates it

    # -- what there is --

    @property
    def record(self) -> SessionRecord:
        """The session's row as it is now."""
        return self.store.session(self.id)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def engine_info(self) -> EngineInfo:
        return self._keeper.engine.info

    def messages(self, *, limit: int | None = None, before: str | None = None) -> list[Message]:
        """The selected branch, first to last; with ``limit`` its newest messages (before that message)."""
        return self.store.path(self.id, limit=limit, before=before)

    def versions(self, message_id: str) -> list[str]:
        """Ids of the versions of this message, oldest first (``Store.versions``)."""
        return self.store.versions(message_id, self.id)

    def pending_documents(self) -> list[PendingDocument]:
        """Readings on the selected branch that were stopped; ``read(title, text)`` goes on with one."""
        return pending_documents(self.store, self.id)

    # -- turns --

    def send(
        self, text: str, *, sampling: SamplingOptions | None = None, waited: int | None = None
    ) -> Iterator[StreamEvent]:
        """Say something and stream the answer.

        The message is on disk before anything else happens. When the tip is this very message without an
        answer, or with one that failed, it is answered again instead of being said twice. ``waited`` is the
        number under which ``Store.put_waiting`` kept it until its turn came.
        """
        text = _words(text, "message")
        return self._run(self._waited(waited, self._send(text, sampling or self._sampling, waited)))

    def regenerate(self, *, sampling: SamplingOptions | None = None) -> Iterator[StreamEvent]:
        """Another answer to the last user's message, beside the one there is."""
        return self._run(self._regenerate(sampling or self._sampling))

    def edit(
        self,
        message_id: str,
        text: str,
        *,
        sampling: SamplingOptions | None = None,
        waited: int | None = None,
    ) -> Iterator[StreamEvent]:
        """Say ``text`` in the place of that user's message, and stream the answer. The old branch stays.
        ``waited`` is as for ``send``."""
        text = _words(text, "message")
        self.store.siblings(message_id, self.id)  # raises for a message that is not of this session
        message = self.store.message(message_id)
        if message.role != "user":
            raise UsageError(f"Only your own messages can be edited; this one is of role {message.role!r}.")
        edited = self._edit(message, text, sampling or self._sampling, waited)
        return self._run(self._waited(waited, edited))

    def continue_answer(self, *, sampling: SamplingOptions | None = None) -> Iterator[StreamEvent]:
        """Go on with an answer that did not come to its end; it is replaced at the tip by the longer one."""
        return self._run(self._continue(sampling or self._sampling))

    def read(self, title: str, text: str, *, again: bool = False) -> Iterator[StreamEvent]:
        """Stream a document into the memory. With the same title and text it goes on where it was stopped;
        what was read to its end is passed over, except with ``again``."""
        text = _words(text, "document")
        return self._run(
            read(
                self._keeper,
                storable(title),
                text,
                system=self.record.system,
                cancel=self._stop,
                again=again,
            )
        )

    def restore(self) -> Iterator[StreamEvent]:
        """Bring the state to the tip; the other methods do it by themselves."""
        return self._run(self._restore())

    def switch_model(self, engine: Engine, *, model: str | None = None) -> Iterator[StreamEvent]:
        """Go on with another engine: the session is streamed into it, or its old state there is taken up.

        Until that is done, and when it is stopped or fails, the session stays with the engine it has. A
        session that loaded its own engine owns the new one as well; otherwise both remain the caller's.
        ``model`` is the name or path to load next time, when that is not what the engine calls itself.
        """
        return self._run(self._switch(engine, model or engine.info.name))

    def stop(self) -> None:
        """Ask the running turn to end soon and to keep what there is. From any thread, also from a signal."""
        self._stop.set()

    # -- other --

    def select(self, message_id: str) -> None:
        """Change to the branch through this message: its newest end becomes the tip."""
        with self._alone():
            self.store.set_tip(self.id, self.store.newest_descendant(message_id, self.id))

    def memory_report(self) -> MemoryReport:
        """What the state at the tip holds; restores it when it is not in memory."""
        with self._alone():
            self._stop.clear()
            for _ in self._restore():
                pass
            keeper, info = self._keeper, self.engine_info
            if keeper.half is not None:
                raise UsageError(
                    "Restoring the state was stopped; expected to reach its end. Next: try again."
                )
            return MemoryReport(
                session=self.name,
                model=info.name,
                trained=info.trained,
                tokens_seen=tokens_seen(keeper),
                window_tokens=keeper.engine.window_tokens(keeper.state),
                window_size=info.window,
                state_bytes=keeper.engine.state_bytes(keeper.state),
                layers=keeper.engine.layer_memory(keeper.state),
                history=self.store.memory_marks(self.id, keeper.root),
            )

    def close(self) -> None:
        """End the running turn, keep what there is of it, and give the session free. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        try:
            self._end_turn()
        finally:
            self._lock.release()
            if self._owns_engine:
                self._keeper.engine.close()
            if self._owns_store:
                self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_turn(self) -> None:
        """Wait until the running turn, which was asked to stop, has kept what there is of it."""
        if self._running is not None and self._runner == threading.get_ident():
            # A turn that this thread began and did not iterate to its end. (It cannot be ended from inside
            # itself, as a signal handler would: then it ends when the handler returns.)
            with contextlib.suppress(ValueError):
                self._running.close()
            return
        if self._turn.acquire(timeout=_PATIENCE_S):
            self._turn.release()

    # -- how a turn goes --

    def _waited(self, waited: int | None, events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
        """The events of a turn whose message is kept as waiting until the turn is over, however it ends: only
        the end of the process leaves it there."""
        try:
            yield from events
        finally:
            if waited is not None:
                self.store.clear_waiting(waited)

    def _send(self, text: str, sampling: SamplingOptions, waited: int | None) -> Iterator[StreamEvent]:
        clock = Clock()
        user, failed = self._unanswered(text)
        if user is None:
            user = self._say(text, waited)
        elif waited is not None:
            self.store.waiting_said(waited, user.id)
        yield from self._answer(user, sampling, clock=clock, replaces=failed)

    def _regenerate(self, sampling: SamplingOptions) -> Iterator[StreamEvent]:
        last = self._last_message()
        if last.role == "user":
            yield from self._answer(last, sampling)
            return
        user = None if last.parent is None else self.store.message(last.parent)
        if last.role != "assistant" or user is None:
            raise UsageError(f"There is no answer to make again: the last message is a {last.role}.")
        yield from self._answer(user, sampling, replaces=last, rewind=True)

    def _edit(
        self, message: Message, text: str, sampling: SamplingOptions, waited: int | None
    ) -> Iterator[StreamEvent]:
        clock = Clock()
        mark_move(self.store, self.id)
        self.store.set_tip(self.id, message.parent)
        user = self._say(text, waited)
        self.store.clear_draft(self.id)
        yield from self._answer(user, sampling, clock=clock, rewind=True)

    def _continue(self, sampling: SamplingOptions) -> Iterator[StreamEvent]:
        last = self._last_message()
        if last.role == "user":
            yield from self._answer(last, sampling)
            return
        if last.role != "assistant" or last.parent is None:
            raise UsageError(f"There is no answer to go on with: the last message is a {last.role}.")
        if last.reason in ("stop", "complete"):
            raise UsageError("The last answer came to its end by itself. Next: say something, or regenerate.")
        keeper, clock = self._keeper, Clock()
        growing = yield from take_up(keeper, last, system=self.record.system, cancel=self._stop)
        clock.fed = time.monotonic()
        yield from answer(keeper, growing, sampling=sampling, cancel=self._stop, clock=clock)

    def _answer(
        self,
        user: Message,
        sampling: SamplingOptions,
        *,
        clock: Clock | None = None,
        replaces: Message | None = None,
        rewind: bool = False,
    ) -> Iterator[StreamEvent]:
        clock = clock or Clock()
        keeper = self._keeper
        how = Arrival(fresh=user.id, rewind=rewind)
        yield from keeper.reach(user.id, system=self.record.system, cancel=self._stop, how=how)
        clock.fed = time.monotonic()
        clock.tokens_in = sum(len(f.ids) for f in known_feeds(self.store, user, keeper.root) or ())
        base = chain_at(self.store, user.id, keeper.root) or keeper.root
        growing = Growing(user, base, replaces=replaces)
        yield from answer(keeper, growing, sampling=sampling, cancel=self._stop, clock=clock)

    def _restore(self) -> Iterator[StreamEvent]:
        keeper, record = self._keeper, self.record
        done = yield from keeper.reach(record.tip, system=record.system, cancel=self._stop)
        if done and record.tip is not None and keeper.chain != keeper.saved:
            problem = keep(keeper)
            if problem:
                yield Notice(problem)

    def _switch(self, engine: Engine, name: str) -> Iterator[StreamEvent]:
        record, old, new = self.record, self._keeper, self._keeper_for(engine)
        how = Arrival(rewind=True)
        if not (yield from new.reach(record.tip, system=record.system, cancel=self._stop, how=how)):
            yield Notice(f"Stopped: the session stays with {old.engine.info.name}.")
            return
        self._keeper = new
        self.store.set_model(self.id, name)
        problem = keep(new) if record.tip is not None else None
        if problem:
            yield Notice(problem)
        if self._owns_engine and old.engine is not engine:
            old.engine.close()

    def _say(self, text: str, waited: int | None) -> Message:
        return say(self.store, self.id, text, model=self.engine_info.name, waited=waited)

    def _unanswered(self, text: str) -> tuple[Message | None, Message | None]:
        """The user's message at the tip when it says the same and is not answered, and the failed answer."""
        last = self._tip()
        failed = last if last is not None and last.role == "assistant" and last.reason == "error" else None
        if failed is not None and failed.parent is not None:
            last = self.store.message(failed.parent)
        if last is not None and last.role == "user" and last.content == text:
            return last, failed
        return None, None

    def _tip(self) -> Message | None:
        tip = self.record.tip
        return None if tip is None else self.store.message(tip)

    def _last_message(self) -> Message:
        last = self._tip()
        if last is None:
            raise UsageError("Nothing has been said in this session yet. Next: say something.")
        return last

    def _keeper_for(self, engine: Engine) -> StateKeeper:
        chat = chat_format(engine.tokenizer, engine.info.chat_format)
        return StateKeeper(self.store, self.id, engine=engine, chat=chat)

    def _run(self, events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
        """The events of one turn. The wish to stop counts from here on, also before the first event."""
        self._check_free()
        self._stop.clear()
        self._running = self._exclusive(events)
        self._runner = threading.get_ident()
        return self._running

    def _exclusive(self, events: Iterator[StreamEvent]) -> Generator[StreamEvent, None, None]:
        with self._alone():
            self._runner = threading.get_ident()
            # A turn that could not even be ended (the disk was full) left a draft.
            recover(self.store, self.id, reason="error")
            yield from events

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self._check_free()
        if not self._turn.acquire(blocking=False):
            raise UsageError(_BUSY)
        try:
            yield
        finally:
            self._turn.release()

    def _check_free(self) -> None:
        if self._closed:
            raise UsageError("The session was closed; expected an open one. Next: open it again.")
        if self._turn.locked():
            raise UsageError(_BUSY)


_PATIENCE_S = 30.0  # for a turn of another thread to end; a segment on a slow machine takes a few seconds

_BUSY = "A turn is running in this session; expected one at a time. Next: stop it, or wait for its end."
