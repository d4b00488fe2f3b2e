"""Taking up an answer that did not come to its end, so that going on equals never having stopped.

The answer's ids are in the transcript and its state can be reached, so generation simply goes on there. One
case needs care: an answer that was cut inside a character. Half of a character was never shown, so its ids
are taken back (the state goes to the message before and is fed without them) and generated again.
"""

from __future__ import annotations

import codecs
from collections.abc import Generator, Sequence

from infinichat.messages import Message, StreamEvent
from infinichat.protocols import CancelFlag, TextTokenizer
from infinichat.session.answering import Growing
from infinichat.session.keeper import Arrival, StateKeeper
from infinichat.session.route import chain_at, known_feeds

_LONGEST_CHARACTER = 8  # ids: a character is at most four bytes, and an id is at least one


def take_up(
    keeper: StateKeeper, last: Message, *, system: str | None, cancel: CancelFlag
) -> Generator[StreamEvent, None, Growing]:
    """Bring the state to where ``last`` goes on; returns the answer as it is so far.

    Of an answer that another model gave this one has read the words in one prefill, and goes on from there.
    """
    store = keeper.store
    assert last.parent is not None, "an answer has a message that it answers"
    parent = store.message(last.parent)
    known = known_feeds(store, last, keeper.root) or ()
    ids = [i for feed in known if feed.mode == "decode" for i in feed.ids]
    whole = whole_characters(keeper.engine.tokenizer, ids)
    if whole == len(ids):
        yield from keeper.reach(last.id, system=system, cancel=cancel)
        known = known_feeds(store, last, keeper.root) or ()
    else:
        how = Arrival(fresh=parent.id, rewind=True)
        yield from keeper.reach(parent.id, system=system, cancel=cancel, how=how)
    growing = Growing(
        parent,
        chain_at(store, parent.id, keeper.root) or keeper.root,
        content=last.content if whole == len(ids) else last.content.rstrip("\ufffd"),
        ids=ids[:whole],
        prefix=tuple(i for feed in known if feed.mode == "prefill" for i in feed.ids),
        replaces=last,
    )
    if whole < len(ids):
        for feed in growing.feeds():
            for _ in keeper.feed(feed, cancel=cancel):
                pass
    return growing


def whole_characters(tokenizer: TextTokenizer, ids: Sequence[int]) -> int:
    """How many of ``ids`` to keep so that they do not end in the middle of a character.

    An answer that was stopped there goes on from the character before: its half was never shown.
    """
    for keep_ids in range(len(ids), max(-1, len(ids) - _LONGEST_CHARACTER), -1):
        tail = b"".join(
            tokenizer.token_bytes(i) for i in ids[max(0, keep_ids - _LONGEST_CHARACTER) : keep_ids]
        )
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(tail)
        if not decoder.getstate()[0]:
            return keep_ids
    return len(ids)
