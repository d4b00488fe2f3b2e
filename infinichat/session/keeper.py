"""The model state of one session: where it stands, how it gets to a message, how it gets to disk.

The keeper holds the live state and knows its chain. To reach a message it takes the nearest state it can
have (the live one, else a snapshot, else the empty state) and feeds what is missing exactly as it was fed
the first time. A feed that is stopped half-way is remembered with the number of ids that went in, and goes
on there. When the engine raises, the live state is dropped: the next turn starts from what is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from infinichat.chat_format import ChatFormat
from infinichat.errors import InfiniChatError, ModelError, SnapshotError, StateError, StoreError
from infinichat.messages import Message, Notice, PrefillProgress, StateRestored, StreamEvent
from infinichat.protocols import CancelFlag, Engine
from infinichat.session.chain import root_chain
from infinichat.session.route import Route, Step, chain_at
from infinichat.store import Feed, SnapshotHeader, Store

SNAPSHOT_EVERY_S = 10.0  # while a document or a transcript streams; one costs about 0.1 s

Events = Generator[StreamEvent, None, bool]
"""Events, and at the end whether everything was fed (``False``: stopped)."""


@dataclass(frozen=True, slots=True)
class HalfFed:
    """A feed that was stopped: its first ``done`` ids are in the state."""

    feed: Feed
    done: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """How to stream towards a message.

    ``fresh``: the id of the message that this turn added; its ids are the prompt (or the document) and not a
    replay. ``rewind``: an older point on purpose, so that a missing snapshot is nothing to mention.
    ``on_start`` is called with the fresh message's step before anything is fed, ``on_feed`` with the step and
    how many of its ids are in the state, whenever a snapshot of it was saved on the way.
    """

    fresh: str | None = None
    rewind: bool = False
    why: str | None = None
    on_start: Callable[[Step], None] | None = None
    on_feed: Callable[[Step, int], None] | None = None


class StateKeeper:
    """One session's state under one engine."""

    def __init__(self, store: Store, session_id: str, *, engine: Engine, chat: ChatFormat) -> None:
        self.store = store
        self.session_id = session_id
        self.engine = engine
        self.chat = chat
        self.root = root_chain(engine.info, engine.tokenizer, chat.template.id)
        self.state: Any = None  # None: not in memory
        self.chain = self.root
        self.half: HalfFed | None = None
        self.saved: str | None = None  # the chain of the newest snapshot that is known to be good

    def drop(self) -> None:
        """Forget the live state: after a failure nobody knows what is in it."""
        self.state, self.chain, self.half = None, self.root, None

    def stands_at(self, chain: str) -> None:
        """The live state was changed by someone else (generation) and is this one now."""
        self.chain, self.half = chain, None

    def reach(
        self, message_id: str | None, *, system: str | None, cancel: CancelFlag, how: Arrival | None = None
    ) -> Events:
        """Bring the state to just after ``message_id``; yields ``StateRestored`` first, then progress."""
        how = how or Arrival()
        route = Route(self.store, self.chat, root=self.root, system=system)
        cold = self.state is None
        source, why = self._nearest_state(route, message_id)
        steps = route.ahead()
        fresh = [step for step in steps if step.message.id == how.fresh]
        for step in fresh:
            if not step.known:
                self.store.write_feeds(step.message.id, self.root, step.feeds)
            if how.on_start is not None:
                how.on_start(step)
        replay = [step for step in steps if step.message.id != how.fresh]
        tokens = sum(step.tokens for step in replay) - (self.half.done if self.half is not None else 0)
        if tokens > 0 and why is None and cold and not how.rewind:
            why = f"{self._why_no_state()}: {tokens:,} tokens are streamed again."
        yield StateRestored("replay" if tokens > 0 else source, max(0, tokens), how.why or why)
        done = yield from self._feed_steps(replay, how, cancel=cancel, stage="replay")
        if done:
            document = bool(fresh) and fresh[0].message.role == "document"
            stage: Literal["prompt", "document"] = "document" if document else "prompt"
            done = yield from self._feed_steps(fresh, how, cancel=cancel, stage=stage)
        return done

    def feed(self, feed: Feed, *, cancel: CancelFlag) -> Iterator[int]:
        """Feed the rest of one feed; yields how many of its ids are in the state.

        Raises ``InfiniChatError``; the live state is dropped then.
        """
        start = self.half.done if self.half and self.half.feed.chain == feed.chain else 0
        self.half = HalfFed(feed, start)
        try:
            for progress in self.engine.feed(self.state, feed.ids[start:], mode=feed.mode, cancel=cancel):
                self.half = HalfFed(feed, start + progress.done)
                if self.half.done == len(feed.ids):
                    self.stands_at(feed.chain)
                yield start + progress.done
        except Exception as error:
            self.drop()
            raise_failure(error)
        except KeyboardInterrupt:
            # It may have struck in the middle of a segment.
            self.drop()
            raise
        self._forget_nothing_fed()

    def _forget_nothing_fed(self) -> None:
        if self.half is not None and self.half.done == 0:
            self.half = None

    def feeds_for(self, message: Message, *, system: str | None) -> tuple[Feed, ...]:
        """What has to be fed for this message after its parent; made now if it never was, and then stored."""
        route = Route(self.store, self.chat, root=self.root, system=system)
        parent_chain = chain_at(self.store, message.parent, self.root)
        for chain in route.back(message.id):
            if chain in (parent_chain, self.root):
                break
        steps = route.ahead()
        for step in steps:
            if not step.known:
                self.store.write_feeds(step.message.id, self.root, step.feeds)
        return steps[-1].feeds

    def save(self) -> str | None:
        """Write a snapshot. A failure costs time at the next start, never words: a sentence is returned."""
        if self.state is None or self.half is not None or self.chain in (self.root, self.saved):
            return None
        try:
            header = self._header(self.chain, self.engine.tokens_seen(self.state))
            dump = self.engine.dump_state(self.state)
            self.store.save_snapshot(self.session_id, self.chain, dump, header=header)
            self.saved = self.chain
        except StoreError as error:
            return (
                f"The state was not saved ({error}). The words are safe; the next start streams them again."
            )
        return None

    def _nearest_state(
        self, route: Route, message_id: str | None
    ) -> tuple[Literal["memory", "snapshot", "fresh"], str | None]:
        """Walk back to the first state that can be had; says where from, and what was wrong on the way."""
        saved = {row.chain: row for row in self.store.snapshot_chains(self.session_id)}
        why: str | None = None
        for chain in route.back(message_id):
            if self.state is not None and chain == self.chain and self._fits(route):
                return "memory", why
            if chain in saved:
                try:
                    header = self._header(chain, saved[chain].tokens_seen)
                    dump = self.store.load_snapshot(self.session_id, chain, header=header)
                    self.state = self.engine.load_state(dump)
                except (SnapshotError, StateError) as error:
                    why = why or str(error)
                    continue
                self.stands_at(chain)
                self.saved = chain
                return "snapshot", why
        # The walk ends at the root: an empty state is right there.
        self.state = self.engine.new_state()
        self.stands_at(self.root)
        return "fresh", why

    def _why_no_state(self) -> str:
        """Why no saved state could be taken up, as the beginning of a sentence."""
        info = self.engine.info
        rows = self.store.snapshot_chains(self.session_id)
        if not rows or any(row.fingerprint == info.fingerprint for row in rows):
            return "The end of the session has no saved state"
        if rows[0].model == info.name:
            return f"{info.name} has changed since the session's state was saved"
        return f"The session's saved state is one of {rows[0].model}, not of {info.name}"

    def _fits(self, route: Route) -> bool:
        """Whether a half-fed feed is the one that comes next anyway."""
        if self.half is None:
            return True
        ahead = next((feed for step in route.ahead() for feed in step.missing), None)
        return ahead is not None and ahead.chain == self.half.feed.chain

    def _feed_steps(
        self,
        steps: list[Step],
        how: Arrival,
        *,
        cancel: CancelFlag,
        stage: Literal["prompt", "replay", "document"],
    ) -> Events:
        meter = Meter(stage, steps, self.half)
        saved_at = time.monotonic()
        for step in steps:
            if not step.known and stage == "replay":
                self.store.write_feeds(step.message.id, self.root, step.feeds)
            inside = step.total - step.tokens
            for feed in step.missing:
                fed = 0
                for fed in self.feed(feed, cancel=cancel):
                    yield meter.event(fed, title=step.message.title)
                if fed < len(feed.ids):
                    return False
                meter.whole(feed)
                inside += len(feed.ids)
                if stage != "prompt" and time.monotonic() - saved_at >= SNAPSHOT_EVERY_S:
                    problem = self.save()
                    if problem:
                        yield Notice(problem)
                    elif stage == "document" and how.on_feed is not None:
                        how.on_feed(step, inside)
                    saved_at = time.monotonic()
        return True

    def _header(self, chain: str, tokens_seen: int) -> SnapshotHeader:
        info = self.engine.info
        return SnapshotHeader(
            fingerprint=info.fingerprint,
            tokenizer=self.engine.tokenizer.fingerprint,
            chat_format=self.chat.template.id,
            dtype=info.dtype,
            window=info.window,
            segment=info.segment,
            tokens_seen=tokens_seen,
            chain=chain,
            model=info.name,
        )


class Meter:
    """Progress over several feeds: how many ids are in, how fast, how long still. A document counts as a
    whole, also when an earlier reading fed its beginning; the speed is that of this run."""

    def __init__(
        self, stage: Literal["prompt", "replay", "document"], steps: list[Step], half: HalfFed | None
    ) -> None:
        self._stage = stage
        missing = sum(step.tokens for step in steps)
        self._total = sum(step.total for step in steps) if stage == "document" else missing
        self._before = self._total - missing  # ids in the state before the current feed
        first = next((feed for step in steps for feed in step.missing), None)
        half_done = half.done if half and first and half.feed.chain == first.chain else 0
        self._at_start = self._before + half_done
        self._started = time.monotonic()

    def event(self, fed: int, *, title: str | None) -> PrefillProgress:
        done = self._before + fed
        elapsed = max(time.monotonic() - self._started, 1e-6)
        speed = (done - self._at_start) / elapsed
        left = (self._total - done) / speed if speed > 0 else None
        return PrefillProgress(self._stage, done, self._total, speed, left, title)

    def whole(self, feed: Feed) -> None:
        self._before += len(feed.ids)


def raise_failure(error: Exception) -> NoReturn:
    """Raise an engine's exception: its own sentence, or a ``ModelError`` around it."""
    if isinstance(error, InfiniChatError):
        raise error
    raise ModelError(
        f"The model failed with {type(error).__name__}: {error}. What was said is kept. "
        "Next: try again, or choose another checkpoint."
    ) from error
