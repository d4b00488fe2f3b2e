"""A user's message becomes part of the transcript: at its place, with the session's title made from the first
one. No model takes part, so what a dead process had sent is said the same way."""

from __future__ import annotations

from infinichat.messages import Message
from infinichat.session.chain import place_chain
from infinichat.session.words import title_from
from infinichat.store import Store, Waiting


def say(
    store: Store, session_id: str, text: str, *, model: str | None = None, waited: int | None = None
) -> Message:
    """Put ``text`` below the tip; ``waited`` is the number under which the store kept it until now."""
    record = store.session(session_id)
    message = store.append(
        session_id,
        role="user",
        content=text,
        reason="complete",
        chain=place_chain(record.tip, record.system),
        model=model,
        waited=waited,
    )
    if record.title is None:
        store.set_title(session_id, title_from(text))
    return message


def say_what_waited(store: Store, session_id: str) -> Message | None:
    """Say what a process that has ended had sent to this session and nobody answered; returns the message at
    the tip when that is one of those. For whoever has the session's lock."""
    left = store.left_waiting(session_id)
    for waiting in left:
        if waiting.said is None:
            _take_place(store, session_id, waiting)
            say(store, session_id, waiting.text, waited=waiting.number)
        store.clear_waiting(waiting.number)
    tip = store.session(session_id).tip if left else None
    last = None if tip is None else store.message(tip)
    return last if last is not None and last.role == "user" else None


def _take_place(store: Store, session_id: str, waiting: Waiting) -> None:
    if waiting.instead_of is not None:
        store.set_tip(session_id, store.message(waiting.instead_of).parent)
