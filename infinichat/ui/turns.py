"""What the user asked for and has not been answered yet, in order; painting its events as they come.

A turn is a ticket of the worker and the entries that stand for it on the screen. While it waits, its message
says for what, and is on disk as one that waits; when it runs, its events fill the answer; when it is over,
the entries become messages of the transcript. After a failure the screen is made equal to the store again,
and a text that was not said returns to the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal

from infinichat.errors import CancelledError, InfiniChatError
from infinichat.messages import (
    Message,
    Notice,
    PrefillProgress,
    SamplingOptions,
    StateRestored,
    TextDelta,
    TurnFinished,
)
from infinichat.text.documents import documents
from infinichat.ui.events import DocumentOpened, ScreenEvent
from infinichat.ui.widgets.entry import AnswerEntry, DocumentEntry, Entry, Note, UserEntry
from infinichat.ui.worker import Run

if TYPE_CHECKING:
    from infinichat.session import ChatSession
    from infinichat.ui.screens.chat import ChatScreen

Kind = Literal["send", "edit", "regenerate", "continue", "read", "select", "load", "open"]

_DOING: dict[Kind, str] = {
    "send": "thinking",
    "edit": "thinking",
    "regenerate": "thinking again",
    "continue": "going on",
    "read": "reading",
    "select": "changing branch",
    "load": "loading",
    "open": "opening the session",
}


@dataclass(eq=False, slots=True)
class Turn:
    """One ticket. ``cut`` is the message that the turn takes the place of, with all after it; ``before``
    what an answer that goes on already said; ``waited`` the number under which the store keeps the text until
    it is answered."""

    ticket: int
    kind: Kind
    session_id: str
    text: str = ""
    cut: str | None = None
    before: str = ""
    waited: int | None = None
    user: UserEntry | None = None
    answer: AnswerEntry | None = None
    document: DocumentEntry | None = None
    finished: list[TurnFinished] = field(default_factory=list)


class Turns:
    """The queue of the chat screen. At most one turn runs; the worker decides which."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._turns: dict[int, Turn] = {}
        self._running: Turn | None = None
        self._tip: str | None = None  # the newest message that has been announced
        self.opened = False  # a session was handed to the worker, so that turns have something to run on

    def __repr__(self) -> str:
        return f"Turns(waiting={len(self._turns)}, running={self._running})"

    @property
    def busy(self) -> bool:
        """Something runs or waits, other than the loading of a checkpoint."""
        return any(turn.kind not in ("load", "open") for turn in self._turns.values())

    @property
    def running(self) -> Turn | None:
        return self._running

    @property
    def waiting(self) -> list[Turn]:
        """Messages that were sent and not begun, oldest first."""
        return [t for t in self._turns.values() if t is not self._running and t.kind not in ("load", "open")]

    # -- asking for turns

    async def send(self, text: str) -> None:
        sampling = self._screen.sampling
        waited = self._screen.store.put_waiting(self._screen.session_id, text)
        turn = self._submit(
            "send",
            lambda session, _: session.send(text, sampling=sampling, waited=waited),
            text=text,
            waited=waited,
        )
        turn.user = UserEntry(None, text=text)
        turn.user.set_queued(self._why_waiting())
        await self._screen.transcript.begin(turn.user, instead_of=self._same_unanswered(text))

    def _same_unanswered(self, text: str) -> str | None:
        """The message at the end that says just this and got no answer: the session answers it, and does not
        say it twice."""
        tail = [m for m in self._screen.transcript.messages[-2:] if m.reason != "error"]
        last = tail[-1] if tail else None
        return last.id if last and last.role == "user" and last.content == text else None

    async def edit(self, message: Message, text: str) -> None:
        sampling = self._screen.sampling
        waited = self._screen.store.put_waiting(self._screen.session_id, text, instead_of=message.id)
        turn = self._submit(
            "edit",
            lambda session, _: session.edit(message.id, text, sampling=sampling, waited=waited),
            text=text,
            cut=message.id,
            waited=waited,
        )
        turn.user = UserEntry(None, text=text)
        turn.user.set_queued(self._why_waiting())
        await self._screen.transcript.begin(turn.user, instead_of=message.id)

    def answer(self) -> None:
        """Answer the message at the end: the process that it was sent to ended before it could."""
        sampling = self._screen.sampling
        self._submit("send", lambda session, _: session.regenerate(sampling=sampling))

    def regenerate(self, last: Message) -> None:
        sampling = self._screen.sampling
        cut = last.id if last.role == "assistant" else None
        self._submit("regenerate", lambda session, _: session.regenerate(sampling=sampling), cut=cut)

    def go_on(self, answer: Message) -> None:
        sampling = self._screen.sampling
        self._submit(
            "continue",
            lambda session, _: session.continue_answer(sampling=sampling),
            cut=answer.id,
            before=answer.content,
        )

    def read(self, paths: list[Path]) -> None:
        self._submit("read", lambda session, cancelled: _read_all(session, paths, cancelled))

    def select(self, message_id: str) -> None:
        self._submit("select", lambda session, _: _select(session, message_id))

    def load(self, model: str | None) -> None:
        self._screen.load()
        self._add(Turn(self._screen.worker.load(model), "load", self._screen.session_id))

    def open(self, model: str | None) -> None:
        self.opened = True
        self._tip = self._screen.record.tip
        ticket = self._screen.worker.open(self._screen.session_id, model)
        self._add(Turn(ticket, "open", self._screen.session_id))

    def _submit(
        self,
        kind: Kind,
        run: Run,
        *,
        text: str = "",
        cut: str | None = None,
        before: str = "",
        waited: int | None = None,
    ) -> Turn:
        self._screen.load()
        ticket = self._screen.worker.submit(run)
        session_id = self._screen.session_id
        return self._add(Turn(ticket, kind, session_id, text=text, cut=cut, before=before, waited=waited))

    def _add(self, turn: Turn) -> Turn:
        self._turns[turn.ticket] = turn
        self._screen.refresh_bindings()
        return turn

    def _why_waiting(self) -> str | None:
        if self._screen.engine_info is None:
            return "the model is loading"
        ahead = any(
            turn.user is not None or turn is self._running for turn in list(self._turns.values())[:-1]
        )
        return "the answer before it" if ahead else None

    def stop(self) -> bool:
        """Stop what runs; when nothing does, take the newest waiting message back. ``False``: nothing to
        do."""
        turn = self._running or next(reversed(self.waiting), None)
        if turn is None or turn.ticket not in self._turns:
            return False
        self._screen.worker.cancel(turn.ticket)
        if turn is not self._running:
            self._take_back(turn)
        return True

    def _take_back(self, turn: Turn) -> None:
        """The text of a turn that did not run is not to be said any more, also not after a crash."""
        if turn.waited is not None:
            self._screen.store.clear_waiting(turn.waited)

    def stop_all(self) -> None:
        """Stop what runs and drop what waits."""
        for ticket in list(self._turns):
            self._screen.worker.cancel(ticket)

    # -- what the worker says

    async def started(self, ticket: int) -> None:
        turn = self._running = self._turns.get(ticket)
        self._screen.refresh_bindings()
        if turn is None or turn.session_id != self._screen.session_id:
            return
        self._screen.activity.begin(_DOING[turn.kind])
        if turn.user is not None:
            turn.user.set_queued(None)
        if turn.kind in ("send", "edit", "regenerate", "continue"):
            turn.answer = AnswerEntry(None, pace=self._screen.pace)
            after = turn.user
            cut = turn.cut if turn.kind in ("regenerate", "continue") else None
            await self._screen.transcript.begin(turn.answer, instead_of=cut, after=after)
            if turn.before:
                await turn.answer.write(turn.before)

    async def event(self, ticket: int, event: ScreenEvent) -> None:
        turn = self._turns.get(ticket)
        if turn is None or turn.session_id != self._screen.session_id:
            return
        match event:
            case TextDelta():
                self._screen.activity.begin("answering")
                if turn.answer is not None:
                    await turn.answer.write(event.text)
            case PrefillProgress():
                self._screen.activity.progress(event)
                if event.stage == "document":
                    self._screen.status.set(tokens_per_s=event.tokens_per_s or None)
            case Notice():
                await self._screen.transcript.note(Note(event.text))
            case StateRestored():
                if event.why:
                    await self._screen.transcript.note(Note(event.why))
            case DocumentOpened():
                turn.document = DocumentEntry(None, title=event.title, characters=event.characters)
                await self._screen.transcript.begin(turn.document)
            case TurnFinished():
                turn.finished.append(event)
                await self._finish(turn, event)

    async def _finish(self, turn: Turn, event: TurnFinished) -> None:
        self._screen.status.set(
            tokens_seen=event.stats.tokens_seen,
            tokens_per_s=event.stats.tokens_per_s,
            first_token_s=event.stats.first_token_s,
        )
        if turn.document is not None:
            # Only a state that has all of it is measured; the figures of before are not those of now.
            self._screen.status.set(window=None, memory=None)
        live: Entry | None = turn.document if turn.document is not None else turn.answer
        if live is None:
            return
        transcript = self._screen.transcript
        if turn.user is not None and event.message.parent is not None:
            said = self._screen.store.message(event.message.parent)
            turn.user.settle(said, self._screen.position(said))
            transcript.settled(turn.user, said)
            turn.user = None
        position = self._screen.position(event.message)
        if isinstance(live, AnswerEntry):
            await live.finish(event.message, event.stats, position)
            turn.answer = None
        else:
            live.settle(event.message, position)
            turn.document = None
        transcript.settled(live, event.message)

    async def done(self, ticket: int, tip: str | None) -> None:
        with self._ending(ticket) as turn:
            if turn is not None:
                await self.agree(tip, over=turn)

    async def failed(self, ticket: int, error: Exception, tip: str | None) -> None:
        with self._ending(ticket) as turn:
            if turn is None:
                return
            await self.agree(tip, over=turn)
            if isinstance(error, CancelledError):
                return
            if turn.text:
                # Sent again as it is, it is answered and not said twice.
                self._screen.give_back(turn.text)
                self._take_back(turn)
            await self._screen.transcript.note(Note(sentence(error), kind="error"))

    async def dropped(self, ticket: int) -> None:
        with self._ending(ticket) as turn:
            if turn is None:
                return
            if turn.text:
                self._screen.give_back(turn.text)
                self._take_back(turn)
            if turn.user is not None:
                await self._screen.transcript.discard(turn.user)
            if turn.kind == "edit":
                await self.agree(self._tip, over=turn)

    @contextmanager
    def _ending(self, ticket: int) -> Iterator[Turn | None]:
        """The turn, when it is one of the session on the screen; over once the screen shows how it ended."""
        turn = self._turns.get(ticket)
        try:
            yield turn if turn is not None and turn.session_id == self._screen.session_id else None
        finally:
            self._over(ticket)

    def _over(self, ticket: int) -> None:
        turn = self._turns.pop(ticket, None)
        if turn is not None and turn is self._running:
            self._running = None
            self._screen.activity.done()
        self._screen.refresh_bindings()

    async def agree(self, tip: str | None, *, over: Turn | None = None) -> None:
        """Make the screen equal to the transcript that ends at ``tip``, keeping the entries of turns that
        wait. (``None`` after the work of no session: what is on the screen is right.)"""
        self._tip = tip = tip or self._tip
        waiting = [turn.user for turn in self._turns.values() if turn.user is not None and turn is not over]
        await self._screen.transcript.sync(tip, keep=waiting)
        self._screen.refresh_session()


def sentence(error: Exception) -> str:
    """What the user is told about a failure."""
    if isinstance(error, InfiniChatError):
        return str(error)
    return (
        f"Something went wrong that should not have ({type(error).__name__}: {error}). What was said is "
        "safe. The log has the details; `infinichat locate` says where it is."
    )


def _read_all(session: ChatSession, paths: list[Path], cancelled: Event) -> Iterator[ScreenEvent]:
    for document in documents(paths):
        if cancelled.is_set():
            return
        yield DocumentOpened(document.title, len(document.text))
        yield from session.read(document.title, document.text)


def _select(session: ChatSession, message_id: str) -> Iterator[ScreenEvent]:
    session.select(message_id)
    yield from session.restore()


def options(sampling: SamplingOptions) -> str:
    """The sampling options as one line."""
    return (
        f"temperature {sampling.temperature:g} · top_p {sampling.top_p:g} · top_k {sampling.top_k} · "
        f"min_p {sampling.min_p:g} · repetition_penalty {sampling.repetition_penalty:g} · "
        f"dry_multiplier {sampling.dry_multiplier:g} · "
        f"max_tokens {sampling.max_tokens:,} · seed {'random' if sampling.seed is None else sampling.seed}"
    )
