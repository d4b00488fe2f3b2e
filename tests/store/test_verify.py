from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from infinichat.protocols import StateDump
from infinichat.store import Feed, SessionRecord, SnapshotHeader, Store
from infinichat.store.snapshot_file import write_snapshot


@pytest.fixture
def talked(
    store: Store, session: SessionRecord, dump: StateDump, make_header: Callable[..., SnapshotHeader]
) -> Store:
    for n in range(3):
        message = store.append(
            session.id, role="user", content=f"words {n}", reason="complete", chain=f"c{n}"
        )
        store.write_feeds(message.id, "f" * 64, [Feed("prefill", (n,), f"c{n}")])
        store.save_snapshot(session.id, f"c{n}", dump, header=make_header(f"c{n}", tokens_seen=n))
    store.branch(session.id, message.id, "side")
    assert store.verify() == []
    return store


def damage(store: Store, *statements: str) -> list[str]:
    with store._database.connection() as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)
        connection.execute("PRAGMA foreign_keys = ON")
    return store.verify()


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE messages SET content = 'other words' WHERE key = 2", "was altered on disk"),
        ("UPDATE messages SET role = 'assistant' WHERE key = 2", "was altered on disk"),
        ("UPDATE messages SET chain = 'x' WHERE key = 2", "was altered on disk"),
        ("UPDATE messages SET parent = NULL WHERE key = 3", "was altered on disk"),
        ("UPDATE messages SET depth = 7 WHERE key = 2", "has the depth 7"),
        ("DELETE FROM members WHERE message = 3", "which it does not know"),
        ("DELETE FROM members WHERE message = 2", "but not the one before it"),
        ("DELETE FROM words WHERE rowid >> 20 = 2", "missing from the search index"),
        ("UPDATE feeds SET ids = x'0102' WHERE feed_set = 1", "is damaged: A list of token ids has 2 bytes"),
        ("DELETE FROM messages WHERE key = 1", "that is gone"),
        ("UPDATE snapshots SET fingerprint = '0' WHERE chain = 'c1'", "of another point or model"),
    ],
)
def test_a_changed_row_is_found(talked: Store, statement: str, finding: str) -> None:
    found = damage(talked, statement)
    assert any(finding in sentence for sentence in found), found


def test_a_changed_and_an_exchanged_state_are_found(
    talked: Store, dump: StateDump, make_header: Callable[..., SnapshotHeader]
) -> None:
    folder = talked.paths.snapshots
    data = bytearray((folder / "c0.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "c0.safetensors").write_bytes(data)
    write_snapshot(folder / "c1.safetensors", dump, header=replace(make_header("c2"), tokens_seen=1))
    damaged, exchanged = talked.verify()
    assert "c0.safetensors is damaged: its checksum" in damaged
    assert "c1.safetensors holds the state of another point" in exchanged


def test_many_findings_are_cut_short(store: Store, session: SessionRecord) -> None:
    for n in range(30):
        store.append(session.id, role="user", content=f"words {n}", reason="complete", chain="c")
    found = damage(store, "UPDATE messages SET depth = depth + 1 WHERE depth % 2")
    assert len(found) == 21
    assert found[-1] == "There is more of this kind."
