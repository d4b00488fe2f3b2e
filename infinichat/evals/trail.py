"""One long filler that many conversations share, without any of them being asked of anything but its own.

What a filler does to a memory layer's input does not depend on what was told before it, once the telling has
left the window: below the memory nothing remembers. So a ``Trail`` streams its filler once, in the product's
own pieces, and notes each token that the write gate let through. A conversation then needs three parts of its
own, and gets the rest of its way from the trail:

    plant     tell, then two windows of the trail's filler, through the layers below the memory. From there
              on no token that is still to be written had the telling in its window.
    follow    what the trail wrote further on is written into this conversation's memory too, by the model's
              own ``write`` (a bank, at once) or ``commit`` (what leaves the window, eviction by eviction)
    arrive    the window is the trail's; the last window + segment of tokens before the question go through
              the memory layer and all above it with this conversation's memory (``stream_above``)

The conversation's segments end where the trail's do, as they would after a telling that is a multiple of a
segment long. With one layer below the memory nothing else differs from a conversation that streams all of it
(tests compare memory, window and last state); with more, windows are stacked on windows, and what the telling
left in the states of the first filler reaches a little further, in the last digits. A trail may be used from
its start or from any place on it, which is how a thing is told at a depth, and left at any place, which is
how one conversation is asked at several distances.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.bank import BankState
from infinichat.attention.memory import MemoryState
from infinichat.attention.window import room
from infinichat.chat_format import Utterance
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.conditions import without_memory
from infinichat.evals.streaming import Passed, least_tail, stream_above, stream_below, stream_keeping
from infinichat.model.bank_memory import BankMemory
from infinichat.model.cache import InfiniCache
from infinichat.model.layer_state import LayerState
from infinichat.model.memories import RecallMemory, ResidualMemory
from infinichat.model.segments import leaving
from infinichat.model.slots import Slots

ROOM = 96
"""Tokens that a question and its answer may take before the next segment leaves: a trail is left only where
that many fit, so that questions can be asked beside each other."""

TAKEN = 128
"""Tokens of a book that are taken from the filler at once."""

GREETING = (Utterance("user", "Hello."), Utterance("assistant", "Hello! How can I help you today?"))
"""How every conversation on a trail begins."""

Memories = dict[int, tuple[MemoryState, BankState | None]]
"""What each memory layer holds."""


class Takes(Protocol):
    """Filler for a conversation: ``filler.Stretch`` and whatever else gives ids. ``title`` is that of the
    document which is open, if one is."""

    title: str | None

    def take(self, conversation: Conversation, least: int) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens of one layer that left the window at once and were written: their ``places`` on the trail, what
    they are written under [1, n, K], how strongly [1, n], and their ids [1, n]."""

    layer: int
    places: tuple[int, ...]
    keys: Tensor
    strength: Tensor
    ids: Tensor
    joined: Tensor


@dataclass(slots=True)
class Planted:
    """A conversation under way: its memories with everything in them that stands before ``place``."""

    memories: Memories
    place: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A place where questions are asked: the trail's states before and after the last window + segment of
    tokens, those tokens on the way, and the same with no memory at all."""

    place: int
    before: InfiniCache
    after: Conversation
    passed: Sequence[Passed]
    off: Conversation


class Trail:
    """Filler from ``stretch`` after a greeting (or after the raw text ``opening``). Places count its tokens.

    The trail itself stands at ``at`` and only moves on; whoever needs a place copies ``line`` when it is
    there. Only for memories of the ``ResidualMemory`` kind.
    """

    def __init__(self, bench: Bench, stretch: Takes, *, opening: str = "") -> None:
        self.bench = bench
        self.engine = bench.engine
        self.ids: list[int] = []
        self.writes: list[Written] = []
        self._stretch = stretch
        self._ends = [0]
        self._titles: list[tuple[int, str | None]] = []
        self.line = bench.new_conversation()
        if opening:
            self.line.feed(self.line.raw(opening))
        else:
            for message in GREETING:
                self.line.tell(message)
        self.start = self.line.tokens
        self._source = self.line.copy()
        config = self.engine.model.config
        self.window, self.segment = config.window, config.segment
        self.tail = least_tail(self.engine.model)
        self.join = 2 * self.window
        self.layer = min(self.line.cache.memories)
        kind = self.engine.model.model.layers[self.layer].memory
        self._at_once = isinstance(kind, BankMemory)
        self._noted = self.start

    @property
    def at(self) -> int:
        """The place that the trail's own stream has come to."""
        return self.line.tokens - self.start

    def place(self, least: int, *, ahead: int = 0, room_for: int = 0) -> int:
        """The first place from ``least`` on where a message may stand and, for a stream that is ``ahead``
        tokens longer, ``room_for`` more tokens fit before a segment leaves."""
        index = 0
        while True:
            index = bisect.bisect_left(self._ends, least, lo=index)
            while index >= len(self._ends):
                self._take()
            found = self._ends[index]
            seen = self.start + ahead + found
            if found >= least and room(seen, window=self.window, segment=self.segment) >= room_for:
                return found
            index += 1

    def _take(self) -> None:
        """One more exchange, or piece of a book."""
        before = len(self.ids)
        ids = self._stretch.take(self._source, TAKEN if self._in_document else 1)
        self._titles.append((before, self._stretch.title))
        self.ids += ids
        # Inside a document anything may be said at any place; a repeated line is never broken.
        self._ends += range(before + 1, len(self.ids) + 1) if self._in_document else [len(self.ids)]

    @property
    def _in_document(self) -> bool:
        return self._stretch.title is not None or self._source.previous == "document"

    @property
    def _open(self) -> bool:
        return self._in_document or self._source.previous == "raw"

    def _until(self, cache: InfiniCache) -> int:
        """The place up to which the memory of ``cache``, a state of this trail, has been written."""
        return (cache.seen if self._at_once else cache.evicted) - self.start

    def go(self, place: int, *, full: int = 0) -> None:
        """Stream on to ``place``, the last ``full`` tokens through all layers."""
        self.place(place)
        cut = max(self.at, place - full)
        look = self._note
        stream_below(self.engine, self.line.cache, self.ids[self.at : cut], before_eviction=look)
        stream_keeping(
            self.engine, self.line.cache, self.ids[self.at : place], layer=self.layer, before_eviction=look
        )
        self._note_new(self.line.cache)
        if place:
            self.line.previous = self._source.previous if self._open else "assistant"

    def arrive(self, place: int) -> Arrival:
        """Stream on to ``place``, ``tail`` tokens ahead or more, and get ready for questions."""
        start = place - self.tail
        self.go(start, full=self.tail)
        before = self.line.cache.clone()
        passed = stream_keeping(
            self.engine,
            self.line.cache,
            self.ids[start:place],
            layer=self.layer,
            before_eviction=self._note,
        )
        self._note_new(self.line.cache)
        after = self.line.copy()
        bare = without_memory(before)
        below = without_memory(after.cache)
        stream_above(self.engine, bare, passed, below, layer=self.layer)
        return Arrival(place, before, after, passed, after.copy(bare))

    def _note(self, cache: InfiniCache) -> None:
        """What was written since the last look, or what the eviction that is due now will write."""
        self._note_new(cache)
        due = None if self._at_once else leaving(cache)
        if due is None:
            return
        count, write = due
        span = count if write is None else write.shape[1]
        self._keep(cache, slice(0, span), cache.evicted, write)

    def _note_new(self, cache: InfiniCache) -> None:
        """For memories that are written at once: the tokens since the last look."""
        fresh = cache.seen - self._noted
        if self._at_once and fresh:
            end = cache.window_tokens
            self._keep(cache, slice(end - fresh, end), self._noted, None)
        self._noted = cache.seen

    def _keep(self, cache: InfiniCache, slots: slice, first: int, write: Tensor | None) -> None:
        """Note what is written of the window's ``slots``, the first of which is token ``first``; of a bank,
        what is written there: the tokens before them."""
        for index, state in enumerate(cache.states):
            if state.strength is None or state.memory_k is None:
                continue
            whole = state.strength.content
            joined = F.pad(whole[:, :-1] > 0, (1, 0))[:, slots]
            strength = whole[:, slots] if write is None else whole[:, slots] * write
            chosen = (strength[0] > 0).nonzero()[:, 0]
            if chosen.numel():
                places = tuple((chosen + first - self.start).tolist())
                keys = state.memory_k.content[:, slots][:, chosen]
                fed = cache.ids.content
                ids = (F.pad(fed[:, :-1], (1, 0)) if self._at_once else fed)[:, slots][:, chosen]
                new = Written(index, places, keys, strength[:, chosen], ids, joined[:, chosen])
                self.writes.append(new)

    # ---- conversations on the trail

    def rejoin(self, conversation: Conversation, place: int) -> list[int]:
        """What ``conversation`` needs before the trail's text from ``place`` on: in a book, after messages,
        the beginning of a document."""
        index = bisect.bisect_right(self._titles, place, key=lambda entry: entry[0]) - 1
        title = self._titles[index][1] if index >= 0 else self._stretch.title
        if title is None or conversation.previous == "document":
            return []
        return list(conversation.encode(Utterance("document", "", title=title)))

    def plant(self, conversation: Conversation, place: int) -> Planted:
        """``conversation`` is a copy of the trail's at ``place`` that was told something (``feed_below`` is
        enough for that); it is used up."""
        self.place(place + self.join)
        conversation.feed_below(self.rejoin(conversation, place))
        first = conversation.tokens
        conversation.feed_below(self.ids[place : place + self.join])
        states = conversation.cache.states
        memories = {
            index: (memory, states[index].bank) for index, memory in conversation.cache.memories.items()
        }
        cache = conversation.cache
        return Planted(memories, place + (cache.seen if self._at_once else cache.evicted) - first)

    @torch.inference_mode()
    def follow(self, planted: Planted, cache: InfiniCache) -> None:
        """Write what the trail wrote from ``planted.place`` up to where its state ``cache`` stands."""
        until = self._until(cache)
        body = self.engine.model.model
        for index, (memory, bank) in planted.memories.items():
            kind = body.layers[index].memory
            assert isinstance(kind, ResidualMemory)
            state = LayerState.empty(cache.config, index, batch=1, dtype=cache.dtype, device=cache.device)
            state.memory, state.bank = memory, bank
            for written in self.writes:
                part = _between(written, planted.place, until) if written.layer == index else None
                if part is None:
                    continue
                if isinstance(kind, BankMemory):
                    kind.write_each(
                        state,
                        part.keys,
                        part.ids,
                        body.embed_tokens,
                        strength=part.strength,
                        joined=part.joined,
                    )
                elif isinstance(kind, RecallMemory):
                    state.memory_k = Slots(part.keys, dim=1, limit=cache.config.window)
                    state.strength = Slots(part.strength, dim=1, limit=cache.config.window)
                    count = part.ids.shape[1]
                    state.memory = kind.commit(state, count, None, part.ids, body.embed_tokens)
            assert state.memory is not None
            if state.bank is not None:
                # What the last token found stood in front of other tokens than those that come next.
                state.bank = replace(state.bank, route=torch.zeros_like(state.bank.route))
            planted.memories[index] = (state.memory, state.bank)
        planted.place = until

    def arrived(self, planted: Planted, arrival: Arrival) -> Conversation:
        """The conversation at the arrival's place; ``planted`` has followed to ``arrival.before``."""
        cache = holding(arrival.before, planted.memories)
        stream_above(self.engine, cache, arrival.passed, arrival.after.cache, layer=self.layer)
        return arrival.after.copy(cache)


def holding(cache: InfiniCache, memories: Memories) -> InfiniCache:
    """A copy of ``cache`` with ``memories`` in place of its own."""
    copy = cache.clone()
    for index, (memory, bank) in memories.items():
        copy.states[index].memory = memory
        copy.states[index].bank = bank
    return copy


def _between(written: Written, first: int, until: int) -> Written | None:
    """Those of its tokens whose places are in ``first`` to ``until`` - 1."""
    kept = [index for index, place in enumerate(written.places) if first <= place < until]
    if len(kept) == len(written.places):
        return written
    if not kept:
        return None
    chosen = torch.tensor(kept, device=written.ids.device)
    return replace(
        written,
        places=tuple(written.places[index] for index in kept),
        keys=written.keys[:, chosen],
        strength=written.strength[:, chosen],
        ids=written.ids[:, chosen],
        joined=written.joined[:, chosen],
    )
