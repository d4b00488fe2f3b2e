"""From a message back to a state that exists, and forward again: what has to be fed for a point of the tree.

Walking back from a message gives the chains of the states on the way, newest first, down to the empty one.
Whoever walks stops at the first chain for which there is a state; ``ahead`` then says what to feed from
there. What was fed once is fed again exactly (same ids, same mode); a message that this model has never
seen is encoded from its words: a user's turn in one prefill, a document in pieces, an answer in one
prefill.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infinichat.chat_format import ChatFormat
from infinichat.messages import Message
from infinichat.protocols import FeedMode
from infinichat.session.chain import document_pieces, make_feeds
from infinichat.store import Feed, Store


@dataclass(frozen=True, slots=True)
class Step:
    """One message to be fed: the feeds that are missing in the state, and all of its feeds.

    ``known`` is false when the feeds were made just now and are not in the store yet.
    """

    message: Message
    missing: tuple[Feed, ...]
    feeds: tuple[Feed, ...]
    known: bool

    @property
    def tokens(self) -> int:
        return sum(len(feed.ids) for feed in self.missing)

    @property
    def total(self) -> int:
        return sum(len(feed.ids) for feed in self.feeds)


@dataclass(slots=True)
class _Visited:
    message: Message
    feeds: tuple[Feed, ...] | None
    skip: int = 0  # feeds that the state of the point where the walk stands already has


class Route:
    """One walk. ``root`` is the model's root chain, under which feeds are kept."""

    def __init__(self, store: Store, chat: ChatFormat, *, root: str, system: str | None) -> None:
        self._store = store
        self._chat = chat
        self._root = root
        self._system = system
        self._visited: list[_Visited] = []
        self._chain = root

    def back(self, message_id: str | None) -> Iterator[str]:
        """The chains of the states on the way from this message to the beginning, newest first."""
        while message_id is not None:
            message = self._store.message(message_id)
            feeds = known_feeds(self._store, message, self._root)
            here = _Visited(message, feeds)
            self._visited.append(here)
            for index in reversed(range(len(feeds or ()))):
                here.skip = index + 1
                self._chain = feeds[index].chain if feeds else self._root
                yield self._chain
            here.skip = 0
            message_id = message.parent
        self._chain = self._root
        yield self._root

    def ahead(self) -> list[Step]:
        """What is missing between the point where the walk stands and the message where it began."""
        chain = self._chain
        system = self._system
        previous: Message | None = None
        steps: list[Step] = []
        for here in reversed(self._visited):
            if here.message.role == "system":
                system = here.message.content if previous is None else system
                continue
            if here.feeds is None:
                pieces = _encoded(self._chat, here.message, previous=previous, system=system)
            else:
                pieces = [(feed.mode, feed.ids) for feed in here.feeds[here.skip :]]
            missing = make_feeds(chain, pieces)
            feeds = (here.feeds or ())[: here.skip] + missing
            steps.append(Step(here.message, missing, feeds, known=feeds == here.feeds))
            chain = missing[-1].chain if missing else chain
            previous = here.message
        return steps


def known_feeds(store: Store, message: Message, root: str) -> tuple[Feed, ...] | None:
    """What was fed for this message under this model; ``None`` when it never was."""
    if message.role == "system":
        return ()
    feeds = store.feeds(message.id, root)
    return None if feeds is None else tuple(feeds)


def chain_at(store: Store, message_id: str | None, root: str) -> str | None:
    """The chain of the state after this message; ``None`` when this model has not seen it yet."""
    while message_id is not None:
        message = store.message(message_id)
        feeds = known_feeds(store, message, root)
        if feeds is None:
            return None
        if feeds:
            return feeds[-1].chain
        message_id = message.parent
    return root


def _encoded(
    chat: ChatFormat, message: Message, *, previous: Message | None, system: str | None
) -> list[tuple[FeedMode, tuple[int, ...]]]:
    ids = chat.encode_message(message, previous=previous, system=system).ids
    if message.role != "document":
        return [("prefill", ids)]
    return document_pieces(ids)
