"""The seams: what a session needs from an engine and from a tokenizer, without importing either.

``engine/`` implements these with torch; ``engine/scripted.py`` implements them with a list of replies and no
torch. The session talks to nothing else, so every test of sessions, commands and screens can run in
milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from infinichat.messages import LayerMemory, SamplingOptions

FeedMode = Literal["prefill", "decode", "read"]
"""How ids entered a state: whole segments per forward, or one id per forward; both give the same state up to
rounding. "read" is "prefill" for long texts: what the memory gets is the same, the layers above it are run
later and only over the end (``model.reading``). A replay uses the mode that was used the first time, so that
it is exact to the last bit."""


class CancelFlag(Protocol):
    """``threading.Event`` is one. Checked per generated token and per prefill segment."""

    def is_set(self) -> bool: ...


class TextTokenizer(Protocol):
    """Text to ids and back. ``encode`` never yields a control token, whatever the text contains."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this id stands for; control tokens give ``b""``."""
        ...

    def control_id(self, token: str) -> int:
        """Id of a control token such as ``<|im_end|>``; raises ``ConfigError`` when there is none."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over vocabulary, merges and pre-tokenizer."""
        ...


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded. ``fingerprint`` (hex SHA-256) covers weights, configuration, window and segment: two
    engines with the same fingerprint can exchange states. ``chat_format`` names the template."""

    name: str
    fingerprint: str
    window: int
    segment: int
    trained: bool
    device: str
    dtype: str
    threads: int
    chat_format: str
    parameters: int
    memory_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor as plain data. ``dtype`` is safetensors' name for it ("F32", "BF16", "I64", ...)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class StateDump:
    """A whole state as plain data: tensors and strings. A copy of its own: later feeding never changes it."""

    tensors: Mapping[str, TensorRecord]
    meta: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        return sum(len(record.data) for record in self.tensors.values())


@dataclass(frozen=True, slots=True)
class FeedProgress:
    """After each segment: how many of the ids given to ``feed`` are in the state now."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One generated id, already fed to the state (an end token is reported with ``fed=False`` and is not).

    ``text`` is what became printable with it: whole characters only, possibly empty, already cut at a stop
    string. ``finish`` is set on the last item only.
    """

    token_id: int | None
    text: str
    fed: bool
    finish: Literal["stop", "length", "stopped"] | None = None


class Engine(Protocol):
    """Ids in, ids out, on a state that belongs to the caller.

    ``state`` is opaque to the caller. ``feed`` and ``generate`` change it in place; between two items of
    either iterator it is consistent and may be dumped. After ``feed`` of ids x and ``generate`` of ids y it
    has seen exactly x + y (the end token not included). Two states never share anything.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def tokenizer(self) -> TextTokenizer: ...

    def new_state(self) -> Any: ...

    def tokens_seen(self, state: Any) -> int: ...

    def window_tokens(self, state: Any) -> int: ...

    def feed(
        self, state: Any, ids: Sequence[int], *, mode: FeedMode = "prefill", cancel: CancelFlag | None = None
    ) -> Iterator[FeedProgress]:
        """Feed ids, yielding after each segment ("decode": every 64 ids). When cancelled it returns early:
        the last progress says how many ids the state has. Feeding the rest later gives the same state as
        never having stopped."""
        ...

    def generate(
        self,
        state: Any,
        options: SamplingOptions,
        *,
        end_ids: Sequence[int],
        cancel: CancelFlag | None = None,
    ) -> Iterator[GeneratedToken]:
        """Sample ids after what the state has seen, one item per id. The repetition penalty looks at the ids
        generated in this call only. Needs at least one token in the state."""
        ...

    def dump_state(self, state: Any) -> StateDump: ...

    def load_state(self, dump: StateDump) -> Any:
        """Raises ``StateError`` naming what differs when the dump does not fit this model."""
        ...

    def layer_memory(self, state: Any) -> tuple[LayerMemory, ...]: ...

    def state_bytes(self, state: Any) -> int: ...

    def close(self) -> None: ...
