"""ScriptedEngine: the engine's interface with replies from a list and no model behind it.

For tests, demos and work on the screens. Its state remembers every id it was fed and how, so a test can
assert that two conversations have exactly the same state, to the last id. What it answers depends on the
state alone when decoding is greedy: the n-th answer of a conversation is ``replies[n]`` (after the last one
it starts over), also in another process and also when an answer was cut in the middle and goes on. With a
temperature above 0 and no seed, asking the same point again gives the next reply, as a regenerated answer
should differ. Without any replies it answers with a digest of its state, so that any difference shows::

    ScriptedEngine(["Hello!", "Biscuit."])          answers in order
    ScriptedEngine(lambda prompt: prompt.upper())   answers from the text that was fed since the last answer
    ScriptedEngine(fail_at=3)                       raises ModelError after three ids of an answer
"""

from __future__ import annotations

import codecs
import hashlib
import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.errors import ModelError, StateError, UsageError
from infinichat.messages import LayerMemory, SamplingOptions
from infinichat.protocols import (
    CancelFlag,
    EngineInfo,
    FeedMode,
    FeedProgress,
    GeneratedToken,
    StateDump,
    TensorRecord,
    TextTokenizer,
)

Replies = Sequence[str] | Callable[[str], str]

_PREFILL, _DECODE = 0, 1
_DECODE_STEP = 64  # ids between two reports when ids are fed one by one (protocols.Engine.feed)


class ScriptedState:
    """Every id in order, and for each whether it came by prefill (0) or decode (1)."""

    __slots__ = ("ids", "modes")

    def __init__(self, ids: Sequence[int] = (), modes: bytes = b"") -> None:
        self.ids = array("i", ids)
        self.modes = bytearray(modes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScriptedState) and (self.ids, self.modes) == (other.ids, other.modes)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[int], mode: int) -> None:
        self.ids.extend(ids)
        self.modes.extend(bytes([mode]) * len(ids))

    @property
    def digest(self) -> str:
        """Hex SHA-256 over ids and modes."""
        return hashlib.sha256(self.ids.tobytes() + b"|" + bytes(self.modes)).hexdigest()

    def answer_start(self) -> int:
        """Where the run of decoded ids at the end begins; the length when the last id was prefilled."""
        return self.modes.rfind(_PREFILL) + 1

    def answers_before(self, end: int) -> int:
        """How many runs of decoded ids there are in the first ``end`` ids."""
        return bytes(self.modes[:end]).count(bytes([_PREFILL, _DECODE]))


class ScriptedEngine:
    """``protocols.Engine`` without a model.

    Args:
        replies: texts, or a function from the text fed since the last answer to a reply; none: a digest.
        tokens_per_s: speed of answers (one id is one byte); ``None`` is as fast as it goes.
        prefill_tokens_per_s: speed of reading.
        window, segment: what the real engine would have, in tokens; progress comes once a segment.
        name, trained, chat_format: what ``info`` reports. The name is part of the fingerprint, so two
            engines of different names are two models that cannot exchange states.
        fail_at: raise after this many ids of an answer; ``fail_feed_at`` after this many ids of a feed.
            Both may be set to ``None`` later, which repairs the engine.
        failure: what is raised then.
    """

    def __init__(
        self,
        replies: Replies = (),
        *,
        tokens_per_s: float | None = None,
        prefill_tokens_per_s: float | None = None,
        window: int = 1024,
        segment: int = 128,
        name: str = "scripted",
        trained: bool = True,
        chat_format: str = "chatml",
        fail_at: int | None = None,
        fail_feed_at: int | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.replies = replies
        self.tokens_per_s = tokens_per_s
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.fail_at = fail_at
        self.fail_feed_at = fail_feed_at
        self.failure = failure or ModelError("The scripted engine was told to fail here. Next: try again.")
        self.closed = False
        self.fed = 0  # ids fed by feed(), over all states: how much work a restore cost
        self._tokenizer = ByteTokenizer()
        self._asked: dict[str, int] = {}
        self._info = EngineInfo(
            name=name,
            fingerprint=hashlib.sha256(f"scripted-1 {name} {window} {segment}".encode()).hexdigest(),
            window=window,
            segment=segment,
            trained=trained,
            device="cpu",
            dtype="float32",
            threads=1,
            chat_format=chat_format,
            parameters=0,
            memory_layers=(18,),
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def tokenizer(self) -> TextTokenizer:
        return self._tokenizer

    def new_state(self) -> ScriptedState:
        return ScriptedState()

    def tokens_seen(self, state: Any) -> int:
        return len(state)

    def window_tokens(self, state: Any) -> int:
        return min(len(state), self._info.window)

    def feed(
        self, state: Any, ids: Sequence[int], *, mode: FeedMode = "prefill", cancel: CancelFlag | None = None
    ) -> Iterator[FeedProgress]:
        done = 0
        while done < len(ids):
            if cancel is not None and cancel.is_set():
                return
            segment = self._info.segment
            step = _DECODE_STEP if mode == "decode" else segment - len(state) % segment
            piece = ids[done : done + step]
            if self.fail_feed_at is not None and done + len(piece) > self.fail_feed_at:
                raise self.failure
            self._wait(len(piece), self.prefill_tokens_per_s)
            state.add(piece, _DECODE if mode == "decode" else _PREFILL)
            done += len(piece)
            self.fed += len(piece)
            yield FeedProgress(done, len(ids))

    def generate(
        self,
        state: Any,
        options: SamplingOptions,
        *,
        end_ids: Sequence[int],
        cancel: CancelFlag | None = None,
    ) -> Iterator[GeneratedToken]:
        if not len(state):
            raise UsageError("Nothing was fed yet; expected at least one token before an answer.")
        start = state.answer_start()
        reply = self._tokenizer.encode(self._reply(state, start, options))[len(state) - start :]
        printer = _Printer(options.stop)
        for count, token in enumerate(reply):
            if cancel is not None and cancel.is_set():
                yield GeneratedToken(None, printer.rest(), False, "stopped")
                return
            if self.fail_at is not None and count >= self.fail_at:
                raise self.failure
            if count >= options.max_tokens:
                yield GeneratedToken(None, printer.rest(), False, "length")
                return
            self._wait(1, self.tokens_per_s)
            state.add([token], _DECODE)
            text, stopped = printer.add(self._tokenizer.token_bytes(token))
            yield GeneratedToken(token, text, True, "stop" if stopped else None)
            if stopped:
                return
        yield GeneratedToken(end_ids[0], printer.rest(), False, "stop")

    def dump_state(self, state: Any) -> StateDump:
        n = len(state)
        return StateDump(
            tensors={
                "ids": TensorRecord("I32", (n,), state.ids.tobytes()),
                "modes": TensorRecord("U8", (n,), bytes(state.modes)),
            },
            meta={"engine": self._info.fingerprint},
        )

    def load_state(self, dump: StateDump) -> ScriptedState:
        made_by = dump.meta.get("engine")
        if made_by != self._info.fingerprint:
            raise StateError(
                f"The state was made by engine {made_by}; expected {self._info.fingerprint}. "
                "Next: stream the conversation again."
            )
        ids = array("i")
        ids.frombytes(dump.tensors["ids"].data)
        return ScriptedState(ids, dump.tensors["modes"].data)

    def layer_memory(self, state: Any) -> tuple[LayerMemory, ...]:
        """Invented numbers that grow with what has left the window, for the screens to draw."""
        written = max(0, len(state) - self._info.window)
        return tuple(
            LayerMemory(layer, written, math.sqrt(written), written / (written + 10_000), 0.5)
            for layer in self._info.memory_layers
        )

    def state_bytes(self, state: Any) -> int:
        return len(state) * 5

    def close(self) -> None:
        self.closed = True

    def _wait(self, ids: int, per_s: float | None) -> None:
        if per_s:
            time.sleep(ids / per_s)

    def _reply(self, state: ScriptedState, start: int, options: SamplingOptions) -> str:
        if callable(self.replies):
            return self.replies(self._fed_text(state, start))
        if not self.replies:
            prefix = ScriptedState(state.ids[:start], bytes(state.modes[:start]))
            return f"I have seen {start} tokens ({prefix.digest[:12]})."
        turn = state.answers_before(start) + self._variation(state, start, options)
        return self.replies[turn % len(self.replies)]

    def _variation(self, state: ScriptedState, start: int, options: SamplingOptions) -> int:
        if options.temperature == 0:
            return 0
        if options.seed is not None:
            return options.seed
        asked_before = start < len(state)
        key = hashlib.sha256(state.ids[:start].tobytes()).hexdigest()
        if not asked_before:
            self._asked[key] = self._asked.get(key, -1) + 1
        return self._asked.get(key, 0)

    def _fed_text(self, state: ScriptedState, start: int) -> str:
        before = bytes(state.modes[:start]).rfind(bytes([_DECODE])) + 1
        return self._tokenizer.decode(state.ids[before:start])


class _Printer:
    """Bytes in, printable text out: whole characters, nothing of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, data: bytes) -> tuple[str, bool]:
        self._held += self._decoder.decode(data)
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text, False

    def rest(self) -> str:
        """What was held back. A character that was cut in the middle is not shown: the answer may go on."""
        return self._held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that could become ``stop``."""
        return next((n for n in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:n])), 0)
