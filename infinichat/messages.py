"""The values that travel between engine, session and screen: messages, statistics and stream events.

Everything here is a small frozen dataclass made of plain Python values. No torch, no disk, no widgets: the
app can import this before its first paint. A turn looks like this to whoever iterates it::

    StateRestored -> Notice* -> PrefillProgress* -> TextDelta* -> TurnFinished
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "document"]

FinishReason = Literal[
    "complete",  # a user, system or document message: all of it is there
    "stop",  # the model ended its answer (end token or stop string)
    "length",  # max_tokens was reached
    "stopped",  # the user stopped the answer or the reading
    "interrupted",  # the process died while the answer streamed; found at the next start
    "error",  # generation failed; the text up to there was kept
]


@dataclass(frozen=True, slots=True)
class Message:
    """One node of a session's message tree, as the store keeps it.

    ``id`` is the content address (hex SHA-256), ``parent`` the id of the message before it or ``None`` for
    the first. ``created`` is seconds since the epoch. For a document ``title`` is its file name.
    """

    id: str
    parent: str | None
    role: Role
    content: str
    reason: FinishReason
    created: float
    title: str | None = None
    model: str | None = None  # name of the checkpoint that was in use


@dataclass(frozen=True, slots=True)
class TurnStats:
    """What a turn cost. Times in seconds; ``first_token_s`` runs from send to the first id of the answer."""

    tokens_in: int
    tokens_out: int
    tokens_seen: int
    prefill_s: float
    first_token_s: float | None
    decode_s: float
    tokens_per_s: float | None  # decode speed; None when fewer than two ids were generated


@dataclass(frozen=True, slots=True)
class StateRestored:
    """How the state needed for this turn was obtained.

    ``source`` is "fresh" (empty session), "memory" (still in RAM), "snapshot" (read from disk) or "replay"
    (an older snapshot, or none, plus ``replay_tokens`` tokens that are about to be streamed again).
    ``why`` is a sentence when something was missing or damaged, otherwise ``None``.
    """

    source: Literal["fresh", "memory", "snapshot", "replay"]
    replay_tokens: int = 0
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the user about something that is not an answer and not a failure."""

    text: str


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Tokens are being streamed into the model. ``stage`` says what for."""

    stage: Literal["prompt", "replay", "document"]
    done: int
    total: int
    tokens_per_s: float
    seconds_left: float | None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer, always whole characters."""

    text: str


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The last event of a turn. ``message`` is on disk; ``message.reason`` says how the turn ended."""

    message: Message
    stats: TurnStats


StreamEvent = StateRestored | Notice | PrefillProgress | TextDelta | TurnFinished


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next id is chosen. ``temperature`` 0 is greedy; then the other filters do nothing.

    Filters apply in this order: repetition penalty, DRY, temperature, top-k, top-p, min-p. DRY ("don't repeat
    yourself", named as in llama.cpp): an id that would go on with what the answer has said already, after n
    >= ``dry_allowed_length`` ids that are the same as there, loses ``dry_multiplier * dry_base ** (n -
    dry_allowed_length)``; a multiplier of 0 is off. ``seed`` None draws a fresh one; the same seed on the
    same machine gives the same text. The defaults are for small models, which wander at a temperature of 0.7,
    repeat themselves for ever without a penalty, and whole paragraphs with one.
    """

    temperature: float = 0.3
    top_p: float = 0.9
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    repetition_window: int = 64
    dry_multiplier: float = 0.8
    dry_base: float = 1.75
    dry_allowed_length: int = 6
    seed: int | None = None
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """One memory layer of one session. ``written`` counts tokens with a write gate above zero; ``norm`` is
    the Frobenius norm of M; ``saturation`` in 0..1 is the effective rank of M over its largest possible rank,
    averaged over heads; ``gate`` is the mean mixing gate, in 0..1."""

    layer: int
    written: int
    norm: float
    saturation: float
    gate: float


@dataclass(frozen=True, slots=True)
class MemoryMark:
    """What the memory held at the end of one turn. ``words`` is the beginning of what the turn was about: the
    user's message, or a document's title. ``added`` is how many tokens all layers wrote in it; the counts in
    ``layers`` are those since the session began."""

    message: str
    role: Role
    words: str
    created: float
    tokens_seen: int
    added: int
    layers: tuple[LayerMemory, ...]


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The state of one session: what ``infinichat memory show`` prints and the memory screen draws.
    ``history`` has the newest turns that were recorded under this model, oldest first."""

    session: str
    model: str
    trained: bool
    tokens_seen: int
    window_tokens: int
    window_size: int
    state_bytes: int
    layers: tuple[LayerMemory, ...]
    history: tuple[MemoryMark, ...] = ()
