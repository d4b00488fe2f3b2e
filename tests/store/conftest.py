"""An open store in the test's own home, one session in it, and states small enough to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from infinichat.paths import Paths
from infinichat.protocols import StateDump, TensorRecord
from infinichat.store import SessionRecord, SnapshotHeader, Store

HEADER = SnapshotHeader(
    fingerprint="f" * 64,
    tokenizer="t" * 64,
    chat_format="chatml-1",
    dtype="float32",
    window=1024,
    segment=128,
    tokens_seen=10,
    chain="c" * 64,
    model="smol",
)


@pytest.fixture
def store(paths: Paths) -> Iterator[Store]:
    with Store.open(paths) as opened:
        yield opened


@pytest.fixture
def session(store: Store) -> SessionRecord:
    return store.create_session("notes")


@pytest.fixture
def dump() -> StateDump:
    return StateDump(
        tensors={
            "layer.18.M": TensorRecord("F32", (2, 3), bytes(range(24))),
            "window.ids": TensorRecord("I64", (2,), bytes(16)),
            "empty": TensorRecord("BF16", (0, 4), b""),
        },
        meta={"position": "10", "note": 'quotes " and ünïcode'},
    )


@pytest.fixture
def make_header() -> Callable[..., SnapshotHeader]:
    def make(chain: str = "c" * 64, *, tokens_seen: int = 10, fingerprint: str = "f" * 64) -> SnapshotHeader:
        return replace(HEADER, chain=chain, tokens_seen=tokens_seen, fingerprint=fingerprint)

    return make
