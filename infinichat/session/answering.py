"""One answer, from the first id to the disk.

The words go out about 25 times a second and not once per id, because painting costs more than generating.
What there is of the answer is on disk as a draft twice a second, so a crash loses less than the last half
second. At the end the answer is committed together with the exact ids, and after it the state: words first.

An answer that is stopped, or whose reader goes away, is kept as it is. When the engine fails, what there
was of the answer is kept with the reason "error", and the failure goes on to the caller.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from infinichat.errors import InfiniChatError, StoreError
from infinichat.messages import (
    FinishReason,
    Message,
    Notice,
    SamplingOptions,
    StreamEvent,
    TextDelta,
    TurnFinished,
    TurnStats,
)
from infinichat.protocols import CancelFlag
from infinichat.session.chain import make_feeds
from infinichat.session.keeper import StateKeeper, raise_failure
from infinichat.store import Feed

FLUSH_EVERY_S = 0.04
DRAFT_EVERY_S = 0.5


@dataclass(slots=True)
class Clock:
    """When things happened in a turn (``time.monotonic``), and how many ids went in."""

    started: float = field(default_factory=time.monotonic)
    tokens_in: int = 0
    fed: float | None = None
    first: float | None = None
    tokens_out: int = 0

    def stats(self, tokens_seen: int) -> TurnStats:
        now = time.monotonic()
        fed = self.fed or now
        # The first id comes out of the prefill; speed is that of the ids after it.
        decoding = now - self.first if self.first is not None else 0.0
        speed = (self.tokens_out - 1) / decoding if self.tokens_out > 1 and decoding > 0 else None
        return TurnStats(
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            tokens_seen=tokens_seen,
            prefill_s=fed - self.started,
            first_token_s=None if self.first is None else self.first - self.started,
            decode_s=now - fed,
            tokens_per_s=speed,
        )


@dataclass(slots=True)
class Growing:
    """The answer to ``parent`` so far. ``base`` is the chain of the state after ``parent``.

    ``prefix`` are ids that were fed in one prefill after it: the beginning of an answer that another model
    gave, when this one goes on with it. ``replaces`` is the answer that stood here before, if any: it stays
    when not a single id comes.
    """

    parent: Message
    base: str
    content: str = ""
    ids: list[int] = field(default_factory=list)
    prefix: tuple[int, ...] = ()
    replaces: Message | None = None
    drafted: float = 0.0
    new_ids: int = 0

    def feeds(self) -> tuple[Feed, ...]:
        return make_feeds(self.base, [("prefill", self.prefix), ("decode", self.ids)])


def answer(
    keeper: StateKeeper, growing: Growing, *, sampling: SamplingOptions, cancel: CancelFlag, clock: Clock
) -> Iterator[StreamEvent]:
    """Generate on the keeper's state, which stands where the answer goes on; ends with ``TurnFinished``."""
    reason: FinishReason = "stopped"
    try:
        if not cancel.is_set():
            reason = yield from _stream(keeper, growing, sampling=sampling, cancel=cancel, clock=clock)
    except Exception as error:
        keeper.drop()
        if growing.new_ids:
            with contextlib.suppress(InfiniChatError):
                commit(keeper, growing, "error")
        raise_failure(error)
    except GeneratorExit:
        # Whoever listened went away between two events: the state has exactly the ids that were counted.
        finish(keeper, growing, "stopped", clock=clock)
        raise
    except KeyboardInterrupt:
        keeper.drop()
        commit(keeper, growing, "stopped")
        raise
    message, problem = finish(keeper, growing, reason, clock=clock)
    if problem:
        yield Notice(problem)
    yield TurnFinished(message, clock.stats(tokens_seen(keeper)))


def _stream(
    keeper: StateKeeper, growing: Growing, *, sampling: SamplingOptions, cancel: CancelFlag, clock: Clock
) -> Generator[StreamEvent, None, FinishReason]:
    """Ids from the engine into ``growing``, words out in flushes; returns how the answer ended."""
    reason: FinishReason = "stop"
    held = ""
    flushed = 0.0
    tokens = keeper.engine.generate(keeper.state, sampling, end_ids=keeper.chat.end_ids, cancel=cancel)
    for token in tokens:
        if clock.first is None:
            clock.first = time.monotonic()
        if token.fed and token.token_id is not None:
            growing.ids.append(token.token_id)
            growing.new_ids += 1
            clock.tokens_out += 1
        growing.content += token.text
        held += token.text
        reason = token.finish or reason
        now = time.monotonic()
        if now - growing.drafted >= DRAFT_EVERY_S:
            write_draft(keeper, growing)
        if held and (now - flushed >= FLUSH_EVERY_S or token.finish):
            flushed = now
            yield TextDelta(held)
            held = ""
    if held:
        yield TextDelta(held)
    return reason


def write_draft(keeper: StateKeeper, growing: Growing) -> None:
    """Put the answer so far on disk."""
    if not growing.new_ids:
        return
    keeper.store.write_draft(
        keeper.session_id,
        parent=growing.parent.id,
        content=growing.content,
        ids=growing.ids,
        prompt_ids=growing.prefix,
        model=keeper.engine.info.name,
        fingerprint=keeper.root,
    )
    growing.drafted = time.monotonic()


def commit(keeper: StateKeeper, growing: Growing, reason: FinishReason) -> Message:
    """The answer as a message on disk. Without a single new id what stood here before stays."""
    store = keeper.store
    if growing.replaces is not None and not growing.new_ids:
        if reason == "stop" and growing.content == growing.replaces.content:
            # It was whole already, and only the end token was missing when it was interrupted.
            return store.set_reason(growing.replaces.id, "stop")
        return store.message(growing.replaces.id)
    if store.session(keeper.session_id).tip != growing.parent.id:
        # A crash between here and the commit finds the draft and goes on from it.
        write_draft(keeper, growing)
        store.set_tip(keeper.session_id, growing.parent.id)
    feeds = growing.feeds()
    return store.commit_answer(
        keeper.session_id,
        content=growing.content,
        reason=reason,
        chain=feeds[-1].chain if feeds else growing.base,
        model=keeper.engine.info.name,
        feeds=feeds,
        fingerprint=keeper.root,
    )


def finish(
    keeper: StateKeeper, growing: Growing, reason: FinishReason, *, clock: Clock
) -> tuple[Message, str | None]:
    """Words first, state second. Returns the message and, when the state was not saved, a sentence."""
    try:
        message = commit(keeper, growing, reason)
    except StoreError:
        # The state has an answer that the transcript lacks.
        keeper.drop()
        raise
    if growing.new_ids:
        keeper.stands_at(growing.feeds()[-1].chain)
    return message, keep(keeper)


def keep(keeper: StateKeeper) -> str | None:
    """At the end of a turn: the count of tokens and the snapshot; a sentence when that failed."""
    try:
        if keeper.half is None:
            keeper.store.set_tokens_seen(keeper.session_id, tokens_seen(keeper))
            mark_memory(keeper)
    except StoreError as error:
        return str(error)
    return keeper.save()


def mark_memory(keeper: StateKeeper) -> None:
    """Keep what the memory holds now, at the tip, for the history of what was written when."""
    tip = keeper.store.session(keeper.session_id).tip
    if keeper.state is None or tip is None or not keeper.engine.info.memory_layers:
        return
    keeper.store.mark_memory(
        tip,
        keeper.root,
        tokens_seen=tokens_seen(keeper),
        layers=keeper.engine.layer_memory(keeper.state),
    )


def tokens_seen(keeper: StateKeeper) -> int:
    """How many tokens the live state has seen; 0 when none is in memory."""
    return 0 if keeper.state is None else keeper.engine.tokens_seen(keeper.state)
