"""The chat screen: title, transcript, activity, prompt, status. It composes and routes, and decides nothing
long.

Turns live in ``ui/turns.py``, slash commands in ``chat_commands.py``, painting in the widgets, everything
that takes time on the worker. What is on the screen at the first paint comes from the store alone."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.getters import query_one
from textual.screen import Screen
from textual.widgets import Static

from infinichat.errors import InfiniChatError, ModelNotFoundError
from infinichat.messages import MemoryReport, Message, SamplingOptions
from infinichat.protocols import EngineInfo
from infinichat.text import figures
from infinichat.text.harmless import one_line, visible
from infinichat.ui import events
from infinichat.ui.completion import candidates
from infinichat.ui.palette import MUTED
from infinichat.ui.screens.chat_commands import ChatCommands
from infinichat.ui.services import Services
from infinichat.ui.turns import Turns, sentence
from infinichat.ui.widgets.activity import ActivityLine
from infinichat.ui.widgets.completion_list import CompletionList
from infinichat.ui.widgets.entry import Note
from infinichat.ui.widgets.key_line import KeyLine
from infinichat.ui.widgets.prompt import Prompt
from infinichat.ui.widgets.status import StatusLine
from infinichat.ui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from infinichat.store import SessionRecord, Store
    from infinichat.ui.worker import SessionWorker

log = logging.getLogger(__name__)

RSS_EVERY_S = 2.0

# While someone types, painting an answer takes at most one part in so many of the time.
_TYPING_SHARE = 30
_SLOWEST_PACE_S = 3.0


class ChatScreen(Screen[None]):
    """One session at a time; ``open`` changes which."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "run('help')", "Help", id="help"),
        Binding("f2", "run('sessions')", "Sessions", id="sessions"),
        Binding("f3", "run('model')", "Models", id="models"),
        Binding("f4", "run('memory')", "Memory", id="memory"),
        Binding("ctrl+n", "run('new')", "New", id="new"),
        Binding("escape", "stop", "Stop", show=False, id="stop"),
        Binding("ctrl+r", "run('regenerate')", "Again", show=False, id="regenerate"),
        Binding("ctrl+g", "run('editor')", "Editor", show=False, id="editor"),
        Binding("alt+up,ctrl+up", "walk", "Messages", show=False, id="messages"),
        Binding("ctrl+l", "latest", "Latest message", show=False, id="latest"),
    ]

    transcript = query_one("#transcript", Transcript)
    prompt = query_one("#prompt", Prompt)
    status = query_one("#status", StatusLine)
    activity = query_one("#activity", ActivityLine)
    completions = query_one("#completions", CompletionList)
    title_bar = query_one("#title", Static)

    def __init__(self, services: Services, session: SessionRecord) -> None:
        super().__init__(id="chat")
        self.services = services
        self.record = session
        self.engine_info: EngineInfo | None = None
        self.report: MemoryReport | None = None
        self.sampling: SamplingOptions = services.settings.sampling
        self.turns = Turns(self)
        self.commands = ChatCommands(self)
        self._wanted_model: str | None = None
        self._begun = False
        self._left_unanswered = False  # a process ended before it could answer the message at the end

    @property
    def store(self) -> Store:
        return self.services.store

    @property
    def worker(self) -> SessionWorker:
        return self.services.worker

    @property
    def session_id(self) -> str:
        return self.record.id

    def compose(self) -> ComposeResult:
        yield Static(markup=False, id="title")
        yield Transcript(self._fetch, self.store.message, self.position, self._welcome, id="transcript")
        yield ActivityLine(id="activity")
        yield CompletionList(lambda text: candidates(text, self.commands.choices), id="completions")
        with Vertical(id="prompt-box"):
            yield Prompt(
                self.services.history, enter_sends=self.services.settings.ui.enter_sends, id="prompt"
            )
        yield StatusLine(id="status")
        yield KeyLine()

    async def on_mount(self) -> None:
        self.prompt.popup = self.completions
        self.prompt.focus()
        self._paint_session()
        # The transcript follows the first paint, the checkpoint follows the transcript.
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        self._recover()
        self.refresh_session()
        await self.transcript.show_session(self.record.tip)
        self._measure_rss()
        self.set_interval(RSS_EVERY_S, self._measure_rss)
        # Loading a model takes the interpreter for seconds: not before the words are painted.
        self.call_after_refresh(self.load)

    def load(self) -> None:
        """Begin to load the checkpoint and to open the session, unless that has begun: at the start, or when
        something is asked for before it."""
        if not self.turns.opened:
            self._open_on_worker(self._wanted_model)

    def _open_on_worker(self, model: str | None) -> None:
        self.turns.open(model)
        if self._left_unanswered:
            self._left_unanswered = False
            self.turns.answer()

    def want_model(self, model: str | None) -> None:
        """The checkpoint to load at the start; ``None`` is the session's own, or the default one."""
        self._wanted_model = model

    # -- what is shown

    def _fetch(self, before: str, limit: int) -> list[Message]:
        return self.store.path(self.session_id, limit=limit, before=before)

    def position(self, message: Message) -> tuple[int, int]:
        """(number, count) of a message among the versions of it in this session."""
        ids = self.store.versions(message.id, self.session_id)
        return (ids.index(message.id) + 1, len(ids)) if message.id in ids else (1, 1)

    def _welcome(self) -> Content:
        return welcome(self.engine_info)

    def refresh_session(self) -> None:
        """Read the session's record again: a turn may have changed it."""
        record = self.store.find_session(self.session_id)
        if record is not None:
            self.record = record
            self._paint_session()

    def _paint_session(self) -> None:
        self.title_bar.update(title_line(self.record, self.size.width or 80), layout=False)
        self.status.set(tokens_seen=self.record.tokens_seen)

    def on_resize(self) -> None:
        self._paint_session()

    def _recover(self) -> None:
        """Make messages of what a crash left, of an answer and of what was sent: words need no model."""
        self._left_unanswered = False
        if self.store.draft(self.session_id) is None and not self.store.left_waiting(self.session_id):
            return
        from infinichat.session import recover_interrupted

        try:
            recovered = recover_interrupted(self.store, self.session_id)
            self._left_unanswered = recovered is not None and recovered.role == "user"
        except InfiniChatError as error:
            # Opening the session tries it again, and says why it cannot be done.
            log.warning("what was interrupted was not recovered: %s", error)
        self.record = self.store.session(self.session_id)

    def pace(self, cost_s: float) -> float:
        """Seconds until an answer that streams is painted again, when painting it took ``cost_s`` of this
        thread. A paint lays the screen out again, and a key waits for its end: while someone types, fewer
        than one key in twenty may."""
        if self.prompt.idle_s < 0.5:
            return min(_SLOWEST_PACE_S, max(0.8, cost_s * _TYPING_SHARE))
        return min(_SLOWEST_PACE_S, max(0.05, cost_s))

    def _measure_rss(self) -> None:
        self.status.set(rss=self.services.rss())

    async def say(self, text: str, *, error: bool = False) -> None:
        """A sentence of the app in the conversation."""
        await self.transcript.note(Note(text, kind="error" if error else "notice"))

    def give_back(self, text: str) -> None:
        """A text that was not sent after all returns to the prompt, in front of what is typed."""
        typed = self.prompt.text
        self.prompt.set_text(f"{text}\n{typed}" if typed.strip() else text)
        self.prompt.focus()

    # -- changing sessions

    async def open(self, record: SessionRecord, *, message_id: str | None = None) -> None:
        """Go to another session, or to a message of this one."""
        if record.id != self.session_id:
            if self.turns.waiting:
                count = figures.counted(len(self.turns.waiting), "message")
                await self.say(f"{count} in this session still waits to be sent. Esc takes it back.")
                return
            self.turns.stop_all()
            self.record = record
            self.report = None
            self.status.set(window=None, memory=None, tokens_per_s=None, first_token_s=None)
            self.activity.done()
            self._recover()
            self._paint_session()
            await self.transcript.show_session(self.record.tip)
            self.store.touch(record.id)
            self._open_on_worker(record.model if self.engine_info is not None else self._wanted_model)
        if message_id is not None and not await self.transcript.reveal(message_id):
            await self.say("That message is on another branch of this session.")
        self.prompt.focus()

    # -- what the user does

    @on(Prompt.Submitted)
    async def _submitted(self, event: Prompt.Submitted) -> None:
        text = event.text
        # Whoever is faster than the transcript still writes below it.
        await self._begin()
        if text.startswith("/") and not text.startswith("//"):
            await self.commands.run(text)
            return
        try:
            await self.turns.send(text.removeprefix("/") if text.startswith("//") else text)
        except InfiniChatError as error:
            self.give_back(text)
            await self.fail(error)

    @on(CompletionList.Taken)
    def _taken(self, event: CompletionList.Taken) -> None:
        self.prompt.focus()
        self.prompt.take(event.candidate, run=event.run)

    @on(Prompt.Leave)
    def _leave(self, event: Prompt.Leave) -> None:
        if event.pages < 0:
            self.transcript.scroll_page_up(animate=False)
        elif event.pages > 0:
            self.transcript.scroll_page_down(animate=False)

    @on(Transcript.Left)
    def _left(self) -> None:
        self.prompt.focus()

    @on(Transcript.Turned)
    async def _turned(self, event: Transcript.Turned) -> None:
        if event.entry.message is not None:
            await self.commands.turn(event.entry.message, event.step)

    @on(Transcript.Acted)
    async def _acted(self, event: Transcript.Acted) -> None:
        await self.commands.act(event.act, event.entry)

    async def action_run(self, name: str) -> None:
        await self.commands.run(f"/{name}")

    async def action_latest(self) -> None:
        await self.transcript.latest()

    def action_walk(self) -> None:
        self.transcript.focus()

    def action_stop(self) -> None:
        if not self.turns.stop():
            self.clear_selection()
            self.prompt.focus()

    # -- what the worker says

    @on(events.EngineLoading)
    def _loading(self, event: events.EngineLoading) -> None:
        part = "" if event.fraction is None else f" {figures.percent(event.fraction)}"
        self.status.set(loading=f"{event.text} {one_line(event.name, 28)}{part}", problem=None)

    @on(events.EngineReady)
    def _ready(self, event: events.EngineReady) -> None:
        self.engine_info = event.info
        self.status.set(loading=None, problem=None, model=event.info.name, trained=event.info.trained)
        self.transcript.refresh_welcome()

    @on(events.EngineFailed)
    async def _engine_failed(self, event: events.EngineFailed) -> None:
        self.status.set(loading=None, problem="no model" if self.engine_info is None else None)
        await self.say(sentence(event.error), error=True)
        if self.engine_info is None and isinstance(event.error, ModelNotFoundError) and self.is_current:
            # The first start: the list says what can be fetched, and Enter fetches it.
            await self.commands.command_model("")

    @on(events.SessionReady)
    async def _session_ready(self, event: events.SessionReady) -> None:
        if event.session_id == self.session_id:
            await self.turns.agree(event.tip)

    @on(events.MemoryMeasured)
    def _measured(self, event: events.MemoryMeasured) -> None:
        if event.session_id != self.session_id:
            return
        report = self.report = event.report
        layers = report.layers
        self.status.set(
            tokens_seen=report.tokens_seen,
            window=(report.window_tokens, report.window_size) if report.window_size else None,
            memory=sum(layer.saturation for layer in layers) / len(layers) if layers else None,
            trained=report.trained,
        )

    @on(events.WorkStarted)
    async def _work_started(self, event: events.WorkStarted) -> None:
        await self.turns.started(event.ticket)

    @on(events.WorkEvent)
    async def _work_event(self, event: events.WorkEvent) -> None:
        await self.turns.event(event.ticket, event.event)

    @on(events.WorkDone)
    async def _work_done(self, event: events.WorkDone) -> None:
        await self.turns.done(event.ticket, event.tip)

    @on(events.WorkFailed)
    async def _work_failed(self, event: events.WorkFailed) -> None:
        await self.turns.failed(event.ticket, event.error, event.tip)

    @on(events.WorkDropped)
    async def _work_dropped(self, event: events.WorkDropped) -> None:
        await self.turns.dropped(event.ticket)

    def set_sampling(self, key: str, value: object) -> None:
        """Change one sampling option for this run of the app."""
        changes: dict[str, object] = {key: value}
        self.sampling = dataclasses.replace(self.sampling, **changes)  # type: ignore[arg-type]

    async def fail(self, error: InfiniChatError) -> None:
        """Show why something was not done."""
        await self.say(str(error), error=True)


def title_line(record: SessionRecord, width: int) -> Content:
    """ "∞ Biscuit the dog … chat-1": the session's title and, when it is another, its name."""
    name = one_line(record.name, 24)
    title = one_line(record.title or record.name, max(8, width - len(name) - 8))
    right = name if title != name else ""
    if record.pinned:
        right = f"★ {right}".rstrip()
    left = f" ∞ {visible(title)}"
    gap = max(1, width - len(left) - len(right) - 1)
    return Content.assemble((" ∞ ", "bold $text-accent"), (title, "bold"), " " * gap, (right, MUTED))


def welcome(info: EngineInfo | None) -> Content:
    """What an empty session says: what this is, and what its memory is worth."""
    if info is None:
        memory = "The model is loading; you can write already."
    elif info.trained:
        memory = (
            f"It sees the last {info.window:,} tokens exactly. Of what came before, a memory of fixed size "
            "keeps some, what it was trained to keep. F4 shows it."
        )
    else:
        memory = (
            f"This checkpoint's memory is not trained: it sees the last {info.window:,} tokens and forgets "
            "what came before. F3 lists others."
        )
    return Content.assemble(
        ("∞ infinichat\n", "bold $text-accent"),
        ("A conversation without an end, on this machine alone.\n\n", ""),
        (f"{memory}\n\n", MUTED),
        ("/read FILE", "bold"),
        ("  let the model read a book\n", MUTED),
        ("/help", "bold"),
        ("       keys and commands\n", MUTED),
    )
