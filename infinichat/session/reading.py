"""Reading a document into the memory: in pieces, with progress, to be stopped and taken up again.

The whole document is committed before the first piece is fed. While it is read a draft says how far the
saved states go. When the reading is stopped, what was read takes the document's place as a message that
ends there (reason "stopped"): the transcript says exactly what the model has seen, and a question can be
asked at once. The whole document stays beside it. Reading it again goes on:

    at the tip         the whole document takes its place back, the state goes on in the middle of its feeds
    further up         the rest is read as a document of its own at the tip, under the same title
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infinichat.errors import InfiniChatError
from infinichat.messages import Message, Notice, StreamEvent, TurnFinished
from infinichat.protocols import CancelFlag, TextTokenizer
from infinichat.session.answering import Clock, keep, tokens_seen
from infinichat.session.chain import place_chain
from infinichat.session.keeper import Arrival, HalfFed, StateKeeper
from infinichat.session.recovery import cut_reading, first_feeds, mark_move, recover
from infinichat.session.route import Step, chain_at, known_feeds
from infinichat.store import Feed, Store


@dataclass(frozen=True, slots=True)
class PendingDocument:
    """A document whose reading was stopped: ``read_chars`` of ``len(text)`` characters are in the
    conversation, and ``session.read(title, text)`` goes on from there."""

    title: str | None
    text: str
    read_chars: int
    message_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """How far the selected branch has read a text: characters, and the last document message of it."""

    chars: int
    last: Message | None


def place_of(documents: list[Message], title: str | None, text: str) -> Place:
    """``documents`` are those of the selected branch, first to last."""
    chars = 0
    last: Message | None = None
    for document in documents:
        if document.title == title and document.content and text.startswith(document.content, chars):
            chars += len(document.content)
            last = document
    return Place(chars, last)


def documents_of(store: Store, session_id: str) -> list[Message]:
    """The documents of the selected branch, first to last."""
    return [message for message in store.path(session_id) if message.role == "document"]


def pending_documents(store: Store, session_id: str) -> list[PendingDocument]:
    """Readings on the selected branch that were stopped and not finished later, first to last."""
    documents = documents_of(store, session_id)
    pending: dict[tuple[str | None, str], PendingDocument] = {}
    for index, document in enumerate(documents):
        if document.reason == "complete":
            continue
        for text in _whole_texts(store, session_id, document):
            place = place_of(documents[index:], document.title, text)
            if place.last is not None and place.chars < len(text):
                # A rest that was stopped as well is the end of a text that is in the list already.
                entry = PendingDocument(document.title, text, place.chars, place.last.id)
                pending.setdefault((document.title, text[place.chars :]), entry)
    return list(pending.values())


def _whole_texts(store: Store, session_id: str, part: Message) -> list[str]:
    """The texts of the whole documents that ``part`` is the beginning of: they stand beside it."""
    beside = (store.message(other) for other in store.siblings(part.id, session_id))
    return [
        other.content
        for other in beside
        if other.title == part.title
        and other.reason == "complete"
        and other.content.startswith(part.content)
        and len(other.content) > len(part.content)
    ]


@dataclass(slots=True)
class Reading:
    """One call of ``read``: what is read where, and how it ends before its end."""

    keeper: StateKeeper
    system: str | None
    document: Message
    before: str | None  # the tip when the call began
    clock: Clock
    had: int = 0  # ids of the document that were in the state when the call began

    def feeds(self) -> tuple[Feed, ...]:
        return known_feeds(self.keeper.store, self.document, self.keeper.root) or ()

    def starts(self, step: Step) -> None:
        """Before the first piece: a crash in it leaves the document cut after it (it is fed again then)."""
        half = self.keeper.half
        self.had = step.total - step.tokens
        if step.missing:
            self.had += half.done if half and half.feed.chain == step.missing[0].chain else 0
            self.saved(step, max(self.had, len(step.feeds[0].ids)))

    def saved(self, step: Step, count: int) -> None:
        """The state with the first ``count`` ids is on disk."""
        if count < step.total:
            self._draft(step.feeds, count)

    def counted(self, count: int) -> None:
        self.clock.tokens_in = max(0, count - self.had)
        self.clock.fed = time.monotonic()

    def cut(self) -> Message:
        """End the document where the state stands; returns the message that is there now."""
        keeper, feeds = self.keeper, self.feeds()
        base = chain_at(keeper.store, self.document.parent, keeper.root) or keeper.root
        count = _fed(keeper, feeds, base)
        self.counted(count)
        if not self._characters(feeds, count):
            # Not a word is in the state. The first piece stands for the beginning; the next turn feeds it.
            count = len(feeds[0].ids)
        characters = self._characters(feeds, count)
        if characters == len(self.document.content):
            keeper.store.clear_draft(keeper.session_id)
            return self.document
        self._draft(feeds, count)
        taken = first_feeds(feeds, count, base=base)
        part = cut_reading(
            keeper.store,
            keeper.session_id,
            document=self.document,
            content=self.document.content[:characters],
            feeds=taken,
            root=keeper.root,
            reason="stopped",
        )
        if keeper.half is not None and keeper.half.done == len(taken[-1].ids):
            keeper.stands_at(taken[-1].chain)
        return part

    def undo(self) -> None:
        """After a failure: keep what is in a saved state, or go back to where the tip was."""
        store, session_id = self.keeper.store, self.keeper.session_id
        saved = {row.chain for row in store.snapshot_chains(session_id)}
        if store.draft(session_id) is not None and any(feed.chain in saved for feed in self.feeds()):
            recover(store, session_id, reason="error")
            return
        store.set_tip(session_id, self.before)
        store.clear_draft(session_id)

    def _characters(self, feeds: tuple[Feed, ...], count: int) -> int:
        ids = [i for feed in feeds for i in feed.ids]
        return characters_in(self.keeper.engine.tokenizer, ids, count=count, text=self.document.content)

    def _draft(self, feeds: tuple[Feed, ...], count: int) -> None:
        self.keeper.store.write_draft(
            self.keeper.session_id,
            parent=self.document.id,
            content=self.document.content[: self._characters(feeds, count)],
            ids=[i for feed in feeds for i in feed.ids][:count],
            prompt_ids=(),
            model=self.keeper.engine.info.name,
            fingerprint=self.keeper.root,
        )


def read(
    keeper: StateKeeper, title: str, text: str, *, system: str | None, cancel: CancelFlag, again: bool
) -> Iterator[StreamEvent]:
    """Read ``text`` on from where the selected branch has it; ends with ``TurnFinished``."""
    clock = Clock()
    store, session_id = keeper.store, keeper.session_id
    tip = store.session(session_id).tip
    place = Place(0, None) if again else place_of(documents_of(store, session_id), title, text)
    if place.last is not None and place.chars == len(text):
        document = place.last
        yield Notice(f"{title} has been read in this session already.")
        if document.id != tip:
            yield TurnFinished(document, clock.stats(tokens_seen(keeper)))
            return
    elif place.last is not None and place.last.id == tip and place.last.reason != "complete":
        if not (yield from keeper.reach(tip, system=system, cancel=cancel)):
            yield TurnFinished(place.last, clock.stats(tokens_seen(keeper)))
            return
        # What comes before the part at the tip was read as a document of its own.
        whole = text[place.chars - len(place.last.content) :]
        document = _take_back(keeper, place.last, whole, system=system)
    else:
        document = store.append(
            session_id,
            role="document",
            content=text[place.chars :],
            reason="complete",
            chain=place_chain(tip, system),
            title=title,
            model=keeper.engine.info.name,
        )
    yield from _read_whole(Reading(keeper, system, document, tip, clock), cancel=cancel)


def _read_whole(reading: Reading, *, cancel: CancelFlag) -> Iterator[StreamEvent]:
    keeper, message = reading.keeper, reading.document
    store, session_id = keeper.store, keeper.session_id
    how = Arrival(fresh=message.id, on_start=reading.starts, on_feed=reading.saved)
    try:
        done = yield from keeper.reach(message.id, system=reading.system, cancel=cancel, how=how)
        if done:
            reading.counted(sum(len(feed.ids) for feed in reading.feeds()))
            store.clear_draft(session_id)
        else:
            message = reading.cut()
    except GeneratorExit:
        # Whoever listened went away between two pieces: as if it had been stopped.
        reading.cut()
        keep(keeper)
        raise
    except KeyboardInterrupt:
        keeper.drop()
        recover(store, session_id, reason="stopped")
        raise
    except Exception:
        keeper.drop()
        with contextlib.suppress(InfiniChatError):
            reading.undo()
        raise
    problem = keep(keeper)
    if problem:
        yield Notice(problem)
    yield TurnFinished(message, reading.clock.stats(tokens_seen(keeper)))


def _take_back(keeper: StateKeeper, part: Message, whole: str, *, system: str | None) -> Message:
    """Put the whole document in the place of the part that the state stands at; returns it."""
    store, session_id = keeper.store, keeper.session_id
    beside = (store.message(other) for other in store.siblings(part.id, session_id))
    document = next((m for m in beside if m.title == part.title and m.content == whole), None)
    if document is None:
        mark_move(store, session_id)
        store.set_tip(session_id, part.parent)
        document = store.append(
            session_id,
            role="document",
            content=whole,
            reason="complete",
            chain=place_chain(part.parent, system),
            title=part.title,
            model=keeper.engine.info.name,
        )
    feeds = keeper.feeds_for(document, system=system)
    taken = known_feeds(store, part, keeper.root) or ()
    store.write_draft(
        session_id,
        parent=document.id,
        content=part.content,
        ids=[i for feed in taken for i in feed.ids],
        prompt_ids=(),
        model=keeper.engine.info.name,
        fingerprint=keeper.root,
    )
    store.set_tip(session_id, document.id)
    whole_feeds = sum(a.chain == b.chain for a, b in zip(taken, feeds, strict=False))
    if taken and whole_feeds == len(taken) - 1 < len(feeds) and keeper.chain == taken[-1].chain:
        cut_ids, all_ids = taken[-1].ids, feeds[whole_feeds].ids
        if cut_ids == all_ids[: len(cut_ids)]:
            # The part ends inside this feed: the same state, seen as the beginning of it.
            base = chain_at(store, document.parent, keeper.root) or keeper.root
            keeper.stands_at(feeds[whole_feeds - 1].chain if whole_feeds else base)
            keeper.half = HalfFed(feeds[whole_feeds], len(cut_ids))
    return document


def _fed(keeper: StateKeeper, feeds: tuple[Feed, ...], base: str) -> int:
    """How many ids of the document are in the live state; 0 when it stands somewhere else."""
    count, chain = 0, base
    for feed in feeds:
        if keeper.chain == chain:
            half = keeper.half
            return count + (half.done if half is not None and half.feed.chain == feed.chain else 0)
        count, chain = count + len(feed.ids), feed.chain
    return count if keeper.chain == chain else 0


def characters_in(tokenizer: TextTokenizer, ids: Sequence[int], *, count: int, text: str) -> int:
    """How many whole characters of ``text`` the first ``count`` of ``ids`` hold, when ``ids`` hold all of it
    between a header and an end."""
    data = text.encode("utf-8")
    pieces = [tokenizer.token_bytes(i) for i in ids]
    # The header may hold the same words as the text; the text is what comes last.
    header = b"".join(pieces).rfind(data)
    if header < 0:
        # A tokenizer that changes its text a little, as some do with blanks: the share of it is near enough.
        return len(text) * count // max(1, len(ids))
    inside = sum(map(len, pieces[:count])) - header
    return len(data[: max(0, inside)].decode("utf-8", errors="ignore"))
