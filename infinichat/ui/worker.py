"""One thread that owns the engine and the open ``ChatSession``; everything that may take long happens on it.

The screen hands over work and gets a ticket; the thread does one piece after another and reports with
``post`` (Textual's ``post_message``, which any thread may call). Work that is handed over while the
checkpoint loads simply waits its turn, so the prompt is usable from the first paint. Every broad ``except``
of the app is here: an ``InfiniChatError`` goes to the screen as it is, anything else is logged with its
traceback first.

The thread is always joined before the app ends: leaving Python while torch runs on a thread aborts the
process."""

from __future__ import annotations

import gc
import itertools
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textual.message import Message as TextualMessage

from infinichat.errors import InfiniChatError, ModelError
from infinichat.messages import PrefillProgress
from infinichat.protocols import Engine
from infinichat.ui.events import (
    EngineFailed,
    EngineLoading,
    EngineReady,
    MemoryMeasured,
    ScreenEvent,
    SessionReady,
    WorkDone,
    WorkDropped,
    WorkEvent,
    WorkFailed,
    WorkStarted,
)

if TYPE_CHECKING:
    from infinichat.session import ChatSession

log = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]
LoadEngine = Callable[[str | None, Progress], Engine]
OpenSession = Callable[[str, Engine, str | None], "ChatSession"]
Run = Callable[["ChatSession", threading.Event], Iterator[ScreenEvent]]
Post = Callable[[TextualMessage], object]

GC_THRESHOLD = (100_000, 50, 1000)
"""New objects before the youngest are looked through for cycles, and how often older ones are with them."""


@dataclass(eq=False)
class _Work:
    ticket: int
    act: Callable[[_Work], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class SessionWorker:
    """The thread. Every public method may be called from the event loop and returns at once, except
    ``close``.

    Args:
        load_engine: makes the engine for a checkpoint's name (``None``: the default one), reporting progress.
        open_session: opens a session by id with an engine and the name that the engine was asked for by.
        post: where messages go.
    """

    def __init__(self, *, load_engine: LoadEngine, open_session: OpenSession, post: Post) -> None:
        self._load_engine = load_engine
        self._open_session = open_session
        self._post = post
        self._tickets = itertools.count(1)
        self._queue: queue.Queue[_Work | None] = queue.Queue()
        self._waiting: dict[int, _Work] = {}
        self._current: _Work | None = None
        self._guard = threading.Lock()
        self._engine: Engine | None = None
        self._asked: str | None = None  # the name or path that the engine was loaded by
        self._session: ChatSession | None = None
        self._session_id: str | None = None
        self._left_engine = False  # an engine was closed in this piece of work
        self._thread = threading.Thread(target=self._main, name="infinichat-session")
        self._closing = False

    def __repr__(self) -> str:
        return f"SessionWorker(session={self._session_id!r}, waiting={len(self._waiting)})"

    def start(self) -> None:
        self._thread.start()

    def load(self, model: str | None) -> int:
        """Load a checkpoint; when a session is open it is streamed into the new one."""
        return self._put(lambda work: self._load(work, model))

    def open(self, session_id: str, model: str | None = None) -> int:
        """Open this session, loading ``model`` first when it is another one than what is loaded."""
        return self._put(lambda work: self._open(work, session_id, model))

    def submit(self, run: Run) -> int:
        """Run a turn on the session that is open when its time comes."""
        return self._put(lambda work: self._turn(work, run))

    def measure(self) -> int:
        """Post a ``MemoryMeasured`` for the open session."""
        return self._put(lambda work: self._measure())

    def cancel(self, ticket: int) -> None:
        """Stop this work: what runs ends soon and keeps what it has, what waits is dropped."""
        with self._guard:
            work = self._current if self._current and self._current.ticket == ticket else None
            work = work or self._waiting.get(ticket)
            if work is not None:
                work.cancelled.set()
            running = work is not None and work is self._current
            session = self._session
        if running and session is not None:
            session.stop()

    def close(self, *, patience_s: float = 0.5, on_wait: Callable[[], None] | None = None) -> None:
        """Stop what runs, drop what waits, join the thread. ``on_wait`` is called when that takes longer than
        ``patience_s``: a checkpoint that is being loaded is loaded to its end first."""
        if not self._thread.is_alive():
            return
        with self._guard:
            self._closing = True
            tickets = [*self._waiting, *([self._current.ticket] if self._current else [])]
        for ticket in tickets:
            self.cancel(ticket)
        self._queue.put(None)
        self._thread.join(patience_s)
        if self._thread.is_alive() and on_wait is not None:
            on_wait()
        self._thread.join()

    def _put(self, act: Callable[[_Work], None]) -> int:
        work = _Work(next(self._tickets), act)
        with self._guard:
            self._waiting[work.ticket] = work
        self._queue.put(work)
        return work.ticket

    def _main(self) -> None:
        while (work := self._queue.get()) is not None:
            with self._guard:
                del self._waiting[work.ticket]
                self._current = work
            if work.cancelled.is_set() or self._closing:
                self._post(WorkDropped(work.ticket))
            else:
                self._attempt(work)
            if self._left_engine:
                self._left_engine = False
                _give_back_memory()
            with self._guard:
                self._current = None
        self._close_session()
        if self._engine is not None:
            self._engine.close()

    def _attempt(self, work: _Work) -> None:
        try:
            work.act(work)
        except InfiniChatError as error:
            self._post(WorkFailed(work.ticket, error, self._tip()))
        except Exception as error:
            log.exception("work %d failed", work.ticket)
            self._post(WorkFailed(work.ticket, error, self._tip()))
        else:
            self._post(WorkDone(work.ticket, self._tip()))

    def _tip(self) -> str | None:
        """The newest message of the open session now."""
        try:
            return self._session.record.tip if self._session is not None else None
        except InfiniChatError as error:
            log.warning("the session cannot be read: %s", error)
            return None

    def _turn(self, work: _Work, run: Run) -> None:
        session = self._require_session()
        self._post(WorkStarted(work.ticket))
        self._play(work, session, run(session, work.cancelled))

    def _play(self, work: _Work, session: ChatSession, events: Iterator[ScreenEvent]) -> None:
        """Pass every event on, then say what the state holds."""
        half_fed = False
        for event in events:
            if isinstance(event, PrefillProgress):
                half_fed = event.done < event.total
            self._post(WorkEvent(work.ticket, event))
            if work.cancelled.is_set():
                session.stop()
        # Measuring a state that was stopped half-way would feed it to its end first.
        if not half_fed:
            self._measure()

    def _measure(self) -> None:
        if self._session is None or self._session_id is None or self._closing:
            return
        try:
            report = self._session.memory_report()
        except InfiniChatError as error:
            log.info("the memory was not measured: %s", error)
        else:
            self._post(MemoryMeasured(self._session_id, report))

    def _require_session(self) -> ChatSession:
        if self._session is None and self._engine is not None and self._session_id is not None:
            session = self._open_session(self._session_id, self._engine, self._asked)
            with self._guard:
                self._session = session
        if self._session is None:
            raise ModelError("No checkpoint is loaded, so nothing can answer. Next: choose one with /model.")
        return self._session

    def _load(self, work: _Work, model: str | None) -> None:
        engine = self._make_engine(model)
        if engine is None:
            return
        old = self._engine
        if self._session is None or old is None:
            self._adopt(engine, model)
            if self._session_id is not None:
                self._reopen(work)
            return
        self._post(WorkStarted(work.ticket))
        try:
            self._play(work, self._session, self._session.switch_model(engine))
        finally:
            # Stopped or failed: the session stays with the engine it has.
            if self._session.engine_info == engine.info:
                self._adopt(engine, model)
            else:
                engine.close()
                self._left_engine = True
                self._post(EngineReady(old.info))

    def _adopt(self, engine: Engine, model: str | None) -> None:
        old, self._engine, self._asked = self._engine, engine, model
        if old is not None and old is not engine:
            old.close()
            self._left_engine = True

    def _make_engine(self, model: str | None) -> Engine | None:
        """The engine, or ``None`` after the failure has been posted."""
        name = model or "the default checkpoint"
        self._post(EngineLoading(name, "loading"))

        def report(text: str, fraction: float | None) -> None:
            self._post(EngineLoading(name, text, fraction))

        try:
            engine = self._load_engine(model, report)
        except InfiniChatError as error:
            self._post(EngineFailed(model, error))
            return None
        except Exception as error:
            log.exception("loading %r failed", model)
            self._post(EngineFailed(model, error))
            return None
        # What came with torch stays for good; looking through it again and again would stall keys for 0.1 s.
        gc.freeze()
        # A streaming answer makes and drops widgets by the hundred. Collecting at every 700th new object, as
        # Python does, made one key in twenty wait 54 to 57 ms with 1,000 messages; so it is 33 to 41 ms.
        gc.set_threshold(*GC_THRESHOLD)
        self._post(EngineReady(engine.info))
        return engine

    def _open(self, work: _Work, session_id: str, model: str | None) -> None:
        self._close_session()
        self._session_id = session_id
        loaded = self._engine is not None and model in (None, self._asked, self._engine.info.name)
        if not loaded:
            engine = self._make_engine(model)
            if engine is not None:
                self._adopt(engine, model)
        if self._engine is not None:
            self._reopen(work)

    def _reopen(self, work: _Work) -> None:
        """Open the session and bring its state to the tip, so that the first answer starts at once."""
        session = self._require_session()
        self._post(SessionReady(session.id, self._tip()))
        self._post(WorkStarted(work.ticket))
        self._play(work, session, session.restore())

    def _close_session(self) -> None:
        with self._guard:
            session, self._session = self._session, None
        if session is not None:
            session.close()


def _give_back_memory() -> None:
    """What a checkpoint took goes back to the system. Only torch's engines took any."""
    if "torch" in sys.modules:
        from infinichat.engine.heap import give_back_memory

        give_back_memory()
