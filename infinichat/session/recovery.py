"""What a process that died left behind becomes part of the conversation again.

A draft on disk says what was going on. Whose parent is a user's message: an answer was streaming; it
becomes an answer with the reason "interrupted", with the exact ids, so its state can be fed again. Whose
parent is a document: it was being read; what had been read becomes a document "interrupted", and reading
goes on from there. An empty draft marks a move of the tip that was not finished, and points to where the
tip came from. Messages that were sent and not said yet are said then.

Nothing here needs an engine, so ``infinichat sessions show`` after a crash has every word without a model.
"""

from __future__ import annotations

from collections.abc import Iterable

from infinichat.errors import SessionLockedError
from infinichat.messages import FinishReason, Message
from infinichat.protocols import FeedMode
from infinichat.session.chain import make_feeds
from infinichat.session.route import chain_at
from infinichat.session.saying import say_what_waited
from infinichat.store import Draft, Feed, Store


def recover_interrupted(store: Store, session_id: str) -> Message | None:
    """Recover a session that no process has open; returns the message that a crash had cut off, if any: an
    answer or a document, or a user's message at the tip that nobody answered."""
    if store.draft(session_id) is None and not store.left_waiting(session_id):
        return None
    try:
        lock = store.lock(session_id)
    except SessionLockedError:
        return None  # it is being written right now
    with lock:
        return recover(store, session_id)


def recover(store: Store, session_id: str, *, reason: FinishReason = "interrupted") -> Message | None:
    """``recover_interrupted`` for the process that has the session's lock."""
    cut = _recover_draft(store, session_id, reason=reason)
    return say_what_waited(store, session_id) or cut


def _recover_draft(store: Store, session_id: str, *, reason: FinishReason) -> Message | None:
    draft = store.draft(session_id)
    if draft is None:
        return None
    parent = None if draft.parent is None else store.message(draft.parent)
    if parent is not None and parent.role == "document" and draft.content:
        return _recover_reading(store, draft, parent, reason=reason)
    if draft.ids:
        return _recover_answer(store, draft, reason=reason)
    if parent is not None and _is_above(store, store.session(session_id).tip, parent):
        store.set_tip(session_id, parent.id)
    store.clear_draft(session_id)
    return None


def mark_move(store: Store, session_id: str) -> None:
    """Before the tip goes up to a message where a new branch will begin: remember where it was."""
    tip = store.session(session_id).tip
    if tip is not None:
        store.write_draft(session_id, parent=tip, content="", ids=(), prompt_ids=(), model="", fingerprint="")


def cut_reading(
    store: Store,
    session_id: str,
    *,
    document: Message,
    content: str,
    feeds: tuple[Feed, ...],
    root: str,
    reason: FinishReason,
) -> Message:
    """Put the part of ``document`` that was read in its place: a sibling that ends there."""
    if store.session(session_id).tip != document.parent:
        store.set_tip(session_id, document.parent)
    part = store.append(
        session_id,
        role="document",
        content=content,
        reason=reason,
        chain=feeds[-1].chain if feeds else "",
        title=document.title,
        model=document.model,
    )
    store.write_feeds(part.id, root, feeds)
    store.clear_draft(session_id)
    return part


def _recover_answer(store: Store, draft: Draft, *, reason: FinishReason) -> Message:
    base = chain_at(store, draft.parent, draft.fingerprint)
    if store.session(draft.session_id).tip != draft.parent:
        store.set_tip(draft.session_id, draft.parent)
    if base is None:
        # The feeds before it are gone (a damaged or imported database): the words will be encoded again.
        message = store.append(
            draft.session_id,
            role="assistant",
            content=draft.content,
            reason=reason,
            chain="",
            model=draft.model,
        )
        store.clear_draft(draft.session_id)
        return message
    feeds = make_feeds(base, [("prefill", draft.prompt_ids), ("decode", draft.ids)])
    return store.commit_answer(
        draft.session_id,
        content=draft.content,
        reason=reason,
        chain=feeds[-1].chain,
        model=draft.model,
        feeds=feeds,
        fingerprint=draft.fingerprint,
    )


def _recover_reading(store: Store, draft: Draft, document: Message, *, reason: FinishReason) -> Message:
    base = chain_at(store, document.parent, draft.fingerprint)
    whole = store.feeds(document.id, draft.fingerprint)
    if draft.content == document.content or base is None or whole is None:
        if store.session(draft.session_id).tip != document.id:
            store.set_tip(draft.session_id, document.id)
        store.clear_draft(draft.session_id)
        return document
    return cut_reading(
        store,
        draft.session_id,
        document=document,
        content=draft.content,
        feeds=first_feeds(whole, len(draft.ids), base=base),
        root=draft.fingerprint,
        reason=reason,
    )


def first_feeds(feeds: Iterable[Feed], count: int, *, base: str) -> tuple[Feed, ...]:
    """The feeds of the first ``count`` ids after the state ``base``; the last one may be shortened."""
    pieces: list[tuple[FeedMode, tuple[int, ...]]] = []
    for feed in feeds:
        pieces.append((feed.mode, feed.ids[:count]))
        count -= min(count, len(feed.ids))
    return make_feeds(base, pieces)


def _is_above(store: Store, tip: str | None, message: Message) -> bool:
    """Whether ``tip`` lies on the way from the root to ``message``."""
    at: str | None = message.id
    while at is not None and at != tip:
        at = store.message(at).parent
    return at == tip
