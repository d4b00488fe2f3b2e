"""One message on the screen, whoever it is from, and the notes that the app itself puts between them.

An answer is a ``Markdown`` widget that is filled through one ``MarkdownStream`` for as long as it streams
and is never seeded with text first (an update followed by an append loses text in Textual 8.2). Every other
text is plain: nothing in it is markup."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message as TextualMessage
from textual.widgets import Static

from infinichat.messages import FinishReason, Message, TurnStats
from infinichat.text import figures
from infinichat.text.harmless import one_line, visible

if TYPE_CHECKING:
    from textual.timer import Timer
    from textual.widgets.markdown import MarkdownStream

# A longer message of a person or a document is shown up to here; copying gives all of it.
LONGEST_SHOWN = 20_000

_REASONS: dict[FinishReason, str] = {
    "stopped": "stopped · /continue goes on",
    "length": "reached its limit · /continue goes on",
    "interrupted": "interrupted · /continue goes on",
    "error": "ended by an error · /continue goes on",
}


class MetaLine(Static):
    """The small line under a message: which of its siblings it is, how it ended, what it cost."""

    @dataclass
    class Turned(TextualMessage):
        """An arrow of ``‹ 2/3 ›`` was clicked: -1 or +1."""

        entry: Entry
        step: int

    def __init__(self) -> None:
        super().__init__(markup=False, classes="meta")
        self._arrows = 0

    def show(self, position: tuple[int, int], parts: list[str]) -> None:
        """``position`` is (number of this sibling from 1, how many there are)."""
        number, count = position
        arrows = f"‹ {number}/{count} ›" if count > 1 else ""
        self._arrows = len(arrows)
        self.update(" · ".join([*([arrows] if arrows else []), *parts]))
        self.display = bool(arrows or parts)

    def on_click(self, event: events.Click) -> None:
        entry = self.parent
        if isinstance(entry, Entry) and event.x < self._arrows:
            event.stop()
            self.post_message(self.Turned(entry, -1 if event.x < self._arrows // 2 else 1))


class Entry(Vertical):
    """A message, or one that is about to become one (``message`` is ``None`` until it is on disk)."""

    class Clicked(TextualMessage):
        """The entry was clicked."""

        def __init__(self, entry: Entry) -> None:
            super().__init__()
            self.entry = entry

    def __init__(self, message: Message | None, *, position: tuple[int, int] = (1, 1)) -> None:
        super().__init__(classes="entry")
        self.message = message
        self.position = position
        self.meta = MetaLine()

    @property
    def text(self) -> str:
        """What copying this entry gives."""
        return self.message.content if self.message else ""

    def on_mount(self) -> None:
        self.refresh_meta()

    def refresh_meta(self) -> None:
        self.meta.show(self.position, self.meta_parts())

    def meta_parts(self) -> list[str]:
        return []

    def settle(self, message: Message, position: tuple[int, int]) -> None:
        """The message is on disk now."""
        self.message, self.position = message, position
        self.refresh_meta()

    def on_click(self) -> None:
        self.post_message(self.Clicked(self))


class UserEntry(Entry):
    """What the user said. ``queued`` until the session has begun with it."""

    DEFAULT_CLASSES = "user"

    def __init__(
        self,
        message: Message | None,
        *,
        text: str = "",
        queued: str | None = None,
        position: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(message, position=position)
        self._text = message.content if message else text
        self.queued = queued

    @property
    def text(self) -> str:
        return self._text

    def compose(self) -> ComposeResult:
        yield Static(Content(_shown(self._text)), markup=False, classes="words")
        yield self.meta

    def meta_parts(self) -> list[str]:
        return [f"waiting: {self.queued}"] if self.queued else []

    def set_queued(self, why: str | None) -> None:
        """Say what the message waits for, or nothing when its turn has come."""
        self.queued = why
        self.set_class(why is not None, "-queued")
        if self.is_mounted:
            self.refresh_meta()


class SystemEntry(Entry):
    """A system prompt in the transcript."""

    DEFAULT_CLASSES = "system"

    def compose(self) -> ComposeResult:
        yield Static(Content(f"system: {_shown(self.text)}"), markup=False, classes="words")
        yield self.meta


class DocumentEntry(Entry):
    """A document that the model has read, as one line."""

    DEFAULT_CLASSES = "document"

    def __init__(
        self,
        message: Message | None,
        *,
        title: str = "",
        characters: int = 0,
        position: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(message, position=position)
        self.title = (message.title if message else title) or "document"
        self.characters = len(message.content) if message else characters

    def compose(self) -> ComposeResult:
        words = f"≡ {one_line(self.title, 60)} · {self.characters:,} characters"
        yield Static(Content(words), markup=False, classes="words")
        yield self.meta

    def meta_parts(self) -> list[str]:
        if self.message is None:
            return ["the model is reading"]
        if self.message.reason == "complete":
            return ["read to its end"]
        return ["not read to its end · the same /read goes on from there"]


class AnswerEntry(Entry):
    """What the model said, streaming or settled."""

    DEFAULT_CLASSES = "answer"

    def __init__(
        self,
        message: Message | None,
        *,
        position: tuple[int, int] = (1, 1),
        pace: Callable[[float], float] = lambda cost_s: 0.05,
    ) -> None:
        """``pace`` gives the seconds until what has streamed is painted next; it gets what the last paints
        took of this thread, in seconds."""
        super().__init__(message, position=position)
        # 40 ms with its parser: not before the first paint.
        from textual.widgets import Markdown

        content = None if message is None else visible(message.content)
        self.markdown = Markdown(content, open_links=False, classes="words")
        self.stats: TurnStats | None = None
        self._stream: MarkdownStream | None = None
        self._streamed: list[str] = []
        self._pace = pace
        self._unpainted = ""
        self._timer: Timer | None = None
        self._painted_at = 0.0  # of this thread's processor time
        self._cost_s = 0.0

    @property
    def text(self) -> str:
        return self.message.content if self.message else "".join(self._streamed)

    def compose(self) -> ComposeResult:
        yield self.markdown
        yield self.meta

    async def write(self, fragment: str) -> None:
        """Append to the answer while it streams. Painting a fragment lays the screen out again, so fragments
        are gathered until ``pace`` has passed."""
        self._streamed.append(fragment)
        self._unpainted += fragment
        if self._stream is None:
            self._stream = self.markdown.get_stream(self.markdown)
            await self._paint()
        elif self._timer is None:
            # The first words after a paint come when it is over: what this thread did since then is its cost.
            self._cost_s = max(time.thread_time() - self._painted_at, 0.8 * self._cost_s)
            self._timer = self.set_timer(self._pace(self._cost_s), self._paint)

    async def _paint(self) -> None:
        self._timer = None
        self._painted_at = time.thread_time()
        # A carriage return at the end may be half of a line end; it waits for the other half.
        ready = self._unpainted.removesuffix("\r")
        self._unpainted = self._unpainted[len(ready) :]
        if self._stream is not None:
            await self._stream.write(visible(ready))

    async def finish(self, message: Message, stats: TurnStats | None, position: tuple[int, int]) -> None:
        """The answer is over and on disk; what streamed is replaced when it is not exactly that."""
        streamed = "".join(self._streamed)
        await self.end_stream()
        self.stats = stats
        self.settle(message, position)
        if streamed != message.content:
            await self.markdown.update(visible(message.content))

    async def end_stream(self) -> None:
        """Nothing more will be written."""
        if self._timer is not None:
            self._timer.stop()
        await self._paint()
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.stop()

    def meta_parts(self) -> list[str]:
        parts = []
        if self.message is not None and self.message.reason in _REASONS:
            parts.append(_REASONS[self.message.reason])
        if self.stats is not None:
            if self.stats.tokens_per_s is not None:
                parts.append(f"{self.stats.tokens_per_s:.0f} tokens/s")
            if self.stats.first_token_s is not None:
                parts.append(f"first token {figures.duration(self.stats.first_token_s)}")
        return parts


class Note(Static):
    """A sentence of the app in the conversation: a notice, or a failure with its next step."""

    def __init__(self, text: str, *, kind: Literal["notice", "error"] = "notice") -> None:
        sign = "!" if kind == "error" else "·"
        super().__init__(Content(f"{sign} {visible(text)}"), markup=False, classes=f"note -{kind}")
        self.sentence = text


def entry_of(message: Message, position: tuple[int, int]) -> Entry:
    """The widget for a message."""
    match message.role:
        case "user":
            return UserEntry(message, position=position)
        case "assistant":
            return AnswerEntry(message, position=position)
        case "document":
            return DocumentEntry(message, position=position)
        case "system":
            return SystemEntry(message, position=position)


def fences(markdown: str) -> list[str]:
    """The contents of the fenced code blocks, also of one that was never closed.

    >>> fences("a\\n```py\\nx = 1\\n```\\nb")
    ['x = 1']
    """
    found: list[str] = []
    fence, lines = "", list[str]()
    for line in markdown.splitlines():
        mark = line.strip()
        if fence and mark.startswith(fence) and not mark.strip(fence[0]):
            found.append("\n".join(lines))
            fence = ""
        elif fence:
            lines.append(line)
        elif mark.startswith(("```", "~~~")):
            fence = mark[: len(mark) - len(mark.lstrip(mark[0]))]
            lines = []
    return [*found, "\n".join(lines)] if fence and lines else found


def _shown(text: str) -> str:
    if len(text) <= LONGEST_SHOWN:
        return visible(text)
    return f"{visible(text[:LONGEST_SHOWN])}…\n({len(text):,} characters; copying gives all of them)"
