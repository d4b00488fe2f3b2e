"""What a test of sessions asks of a turn: the words that were shown, its last event, the state it ends in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from infinichat.engine.scripted import ScriptedState
from infinichat.messages import StateRestored, StreamEvent, TextDelta, TurnFinished
from infinichat.session import ChatSession


def state_of(session: ChatSession) -> ScriptedState:
    """The live state, brought to the tip first."""
    session.memory_report()
    state = session._keeper.state
    assert isinstance(state, ScriptedState)
    return state


def said(events: Iterable[StreamEvent]) -> str:
    """Run a turn; the words that were shown."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def finished(events: Iterable[StreamEvent]) -> TurnFinished:
    """Run a turn; its last event."""
    last = list(events)[-1]
    assert isinstance(last, TurnFinished)
    return last


def restored(events: Iterable[StreamEvent]) -> StateRestored:
    """Run a turn; how its state was obtained."""
    found = [event for event in events if isinstance(event, StateRestored)]
    assert len(found) == 1
    return found[0]


def stop_after(session: ChatSession, events: Iterator[StreamEvent], characters: int) -> TurnFinished:
    """Run a turn and stop it when that many characters of the answer have been shown."""
    shown = 0
    last: StreamEvent | None = None
    for event in events:
        last = event
        if isinstance(event, TextDelta):
            shown += len(event.text)
            if shown >= characters:
                session.stop()
    assert isinstance(last, TurnFinished)
    return last


def transcript(session: ChatSession) -> list[tuple[str, str, str]]:
    return [(message.role, message.content, message.reason) for message in session.messages()]
