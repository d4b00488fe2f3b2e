"""Playing a session's events on the console: the answer to stdout, progress and notices to stderr.

The first Ctrl+C asks the session to stop, so that what was said so far is kept; a second one leaves at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from infinichat.cli.console import Console
from infinichat.messages import Notice, PrefillProgress, StateRestored, StreamEvent, TextDelta, TurnFinished
from infinichat.text.figures import duration

if TYPE_CHECKING:
    from infinichat.session import ChatSession

# A prompt that is read faster than this needs no progress line. Seconds.
_PATIENCE = 0.5

_STAGES = {"prompt": "reading the message", "replay": "reading the transcript again", "document": "reading"}


class Interruption:
    """Whether Ctrl+C was pressed while a block of ``stops_on_ctrl_c`` ran."""

    def __init__(self) -> None:
        self.happened = False


@contextmanager
def stops_on_ctrl_c(stop: Callable[[], None]) -> Iterator[Interruption]:
    """In this block the first Ctrl+C calls ``stop``, a second one raises ``KeyboardInterrupt``."""
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if state.happened:
            raise KeyboardInterrupt
        state.happened = True
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, before)


def play(
    session: ChatSession,
    events: Iterator[StreamEvent],
    console: Console,
    *,
    on_text: Callable[[str], None] | None = None,
) -> tuple[TurnFinished | None, bool]:
    """Show every event as it comes. Returns the last event of the turn, ``None`` when there was none, and
    whether Ctrl+C stopped it.

    When the answer cannot be shown any more (the reader of the pipe went away), the session is stopped and
    what was generated is kept before the error goes on.
    """
    with stops_on_ctrl_c(session.stop) as interruption:
        try:
            finished = _show(events, console, on_text or console.write)
        except (BrokenPipeError, KeyboardInterrupt):
            session.stop()
            for _ in events:
                pass
            raise
    return finished, interruption.happened


def _show(
    events: Iterator[StreamEvent], console: Console, on_text: Callable[[str], None]
) -> TurnFinished | None:
    finished = None
    started = time.monotonic()
    for event in events:
        match event:
            case TextDelta():
                on_text(event.text)
            case PrefillProgress():
                if event.stage == "document" or time.monotonic() - started > _PATIENCE:
                    console.progress(describe(event))
            case Notice():
                console.status(event.text)
            case StateRestored():
                if event.why:
                    console.status(event.why)
            case TurnFinished():
                finished = event
    console.clear_progress()
    return finished


def describe(event: PrefillProgress) -> str:
    """ "reading moby.txt  41 %  512,000 of 1,234,567 tokens  1,203 tokens/s  10 min left"."""
    what = _STAGES[event.stage] + (f" {event.title}" if event.title else "")
    percent = 100 * event.done // max(1, event.total)
    parts = [what, f"{percent} %", f"{event.done:,} of {event.total:,} tokens"]
    if event.tokens_per_s > 0:
        parts.append(f"{event.tokens_per_s:,.0f} tokens/s")
    if event.seconds_left is not None and event.done < event.total:
        parts.append(f"{duration(event.seconds_left)} left")
    return "  ".join(parts)
