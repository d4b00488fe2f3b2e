"""The values that the store takes and returns: frozen dataclasses, no connection and no file behind them.

A ``Message`` (``infinichat.messages``) is a node of the tree; what is here describes everything around it:
the session that points into the tree, what was fed to the model for a message, the answer that is still
streaming, a search hit, and the saved states.
"""

from __future__ import annotations

from dataclasses import dataclass

from infinichat.messages import Role
from infinichat.protocols import FeedMode


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session: a named pointer to a tip of the message tree.

    ``created``, ``updated`` and ``deleted_at`` are seconds since the epoch. ``tip`` is the id of the newest
    message of the selected branch, ``messages`` the number of messages from the root to it.
    """

    id: str
    name: str
    title: str | None
    system: str | None
    model: str | None
    tip: str | None
    created: float
    updated: float
    pinned: bool
    deleted_at: float | None
    tokens_seen: int
    messages: int


@dataclass(frozen=True, slots=True)
class Feed:
    """Ids that entered a state in one go. ``chain`` names the state after them: a hash over all."""

    mode: FeedMode
    ids: tuple[int, ...]
    chain: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer that has not been committed: what is on disk while it streams, or what a crash left behind.

    ``prompt_ids`` were fed in one prefill after ``parent``'s state, ``ids`` one at a time after them.
    """

    session_id: str
    parent: str | None
    content: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    model: str
    fingerprint: str
    updated: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that was sent and not answered. ``said`` is the id under which it is in the transcript, if it
    is; ``instead_of`` the id of the message whose place it takes, if it is an edit."""

    number: int
    text: str
    said: str | None
    instead_of: str | None


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One message that holds the words searched for.

    ``matches`` are (start, end) character offsets into ``snippet``, which is at most a few hundred characters
    of the message and may begin or end with an ellipsis.
    """

    session_id: str
    session_name: str
    message_id: str
    role: Role
    title: str | None
    created: float
    snippet: str
    matches: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot is bound to. At loading every field but ``model``, a name, must agree."""

    fingerprint: str
    tokenizer: str
    chat_format: str
    dtype: str
    window: int
    segment: int
    tokens_seen: int
    chain: str
    model: str


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One saved state. ``message_id`` is ``None`` while no feed with its chain is known."""

    chain: str
    fingerprint: str
    model: str
    tokens_seen: int
    bytes: int
    created: float
    message_id: str | None


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes on disk. For one session ``transcript`` counts its words, for all sessions the database files."""

    transcript: int
    snapshots: int
    snapshot_count: int

    @property
    def total(self) -> int:
        return self.transcript + self.snapshots
