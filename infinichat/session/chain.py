"""Chains: the name of a model state is a hash over exactly what was fed to reach it.

    root             sha256(version, engine, tokenizer, chat format)
    after a feed     sha256(chain before, mode, number of ids, ids)

Two conversations with the same chain have the same state, so a snapshot that is stored under its chain fits
every branch and session through that point, and a stale one can never pass for a fresh one. The root names
the model: feeds are kept under it, and under another model the same message has other feeds.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

from infinichat.protocols import EngineInfo, FeedMode, TextTokenizer
from infinichat.store import Feed

VERSION = "infinichat-chain-1"

PIECE = 4096  # ids of a document that are fed in one go; reading resumes at such an end after a crash
LAST_PIECE = 64
"""Ids at a document's end that are fed like a prompt: the layers that reading leaves out are run before them,
so that nobody waits for that when something is asked about the document."""


def root_chain(info: EngineInfo, tokenizer: TextTokenizer, template_id: str) -> str:
    """The chain of the empty state: everything that decides what ids do to a state."""
    parts = (VERSION, info.fingerprint, tokenizer.fingerprint, template_id)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def next_chain(previous: str, mode: FeedMode, ids: Sequence[int]) -> str:
    """The chain after feeding ``ids`` (32-bit, little-endian in the hash) to the state ``previous``."""
    digest = hashlib.sha256(f"{previous}\n{mode}\n{len(ids)}\n".encode())
    digest.update(struct.pack(f"<{len(ids)}i", *ids))
    return digest.hexdigest()


def make_feeds(previous: str, pieces: Iterable[tuple[FeedMode, Sequence[int]]]) -> tuple[Feed, ...]:
    """Feeds with their chains; empty pieces feed nothing and are left out."""
    feeds: list[Feed] = []
    for mode, ids in pieces:
        if ids:
            previous = next_chain(previous, mode, ids)
            feeds.append(Feed(mode, tuple(ids), previous))
    return tuple(feeds)


def document_pieces(ids: Sequence[int]) -> list[tuple[FeedMode, tuple[int, ...]]]:
    """How a document's ids are fed. Of one that is a single piece little could be left out."""
    if len(ids) <= PIECE:
        return [("prefill", tuple(ids))]
    last = len(ids) - LAST_PIECE
    pieces: list[tuple[FeedMode, tuple[int, ...]]] = [
        ("read", tuple(ids[at : min(at + PIECE, last)])) for at in range(0, last, PIECE)
    ]
    return [*pieces, ("prefill", tuple(ids[last:]))]


def place_chain(parent: str | None, system: str | None) -> str:
    """What tells apart two equal user messages or documents at the same place of the tree.

    Below a parent nothing is needed, the parent's id says it all. At the root the system text belongs to what
    is fed for the first message, so sessions with different ones must not share that message.
    """
    if parent is not None:
        return ""
    text = "default" if system is None else f"text {system}"
    return hashlib.sha256(f"infinichat-system-1\n{text}".encode("utf-8", errors="replace")).hexdigest()
