"""What the worker thread tells the screen: Textual messages around the session's events.

``ticket`` is the number that ``SessionWorker.submit`` gave to a piece of work. For one ticket the order is
``WorkStarted``, ``WorkEvent``*, then exactly one of ``WorkDone``, ``WorkFailed`` or (never started)
``WorkDropped``.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message as TextualMessage

from infinichat.messages import MemoryReport, StreamEvent
from infinichat.protocols import EngineInfo


@dataclass(frozen=True, slots=True)
class DocumentOpened:
    """The next document of a reading: its title and length in characters."""

    title: str
    characters: int


ScreenEvent = StreamEvent | DocumentOpened


@dataclass
class EngineLoading(TextualMessage):
    """A checkpoint is being loaded. ``fraction`` is 0..1, ``None`` when it cannot be told."""

    name: str
    text: str
    fraction: float | None = None


@dataclass
class EngineReady(TextualMessage):
    """The checkpoint is loaded."""

    info: EngineInfo


@dataclass
class EngineFailed(TextualMessage):
    """The checkpoint could not be loaded; ``error`` is for the user when it is an ``InfiniChatError``."""

    name: str | None
    error: Exception


@dataclass
class SessionReady(TextualMessage):
    """The session is open with the engine: what a crash left behind has been repaired. ``tip`` as below."""

    session_id: str
    tip: str | None


@dataclass
class MemoryMeasured(TextualMessage):
    """The state of the open session, after a turn or when asked for."""

    session_id: str
    report: MemoryReport


@dataclass
class WorkStarted(TextualMessage):
    """The worker has begun with this ticket."""

    ticket: int


@dataclass
class WorkEvent(TextualMessage):
    """One event of the session."""

    ticket: int
    event: ScreenEvent


@dataclass
class WorkDone(TextualMessage):
    """The ticket's events are over. ``tip`` is the id of the newest message at that moment: the worker may be
    far ahead of the screen, and the store with it."""

    ticket: int
    tip: str | None = None


@dataclass
class WorkFailed(TextualMessage):
    """The ticket ended with an error."""

    ticket: int
    error: Exception
    tip: str | None = None


@dataclass
class WorkDropped(TextualMessage):
    """The ticket was cancelled before it began."""

    ticket: int
