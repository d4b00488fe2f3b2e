from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from infinichat.errors import SessionNotFoundError, SnapshotError, UsageError
from infinichat.protocols import StateDump
from infinichat.store import Feed, SessionRecord, SnapshotHeader, Store
from infinichat.store.snapshots import KEEP_BRANCHES, KEEP_NEWEST, Saved, superfluous

MakeHeader = Callable[..., SnapshotHeader]
FP = "f" * 64


class Talk:
    """A session that is talked to in turns of 100 tokens; each turn's state is saved under ``chain<n>``."""

    def __init__(
        self, store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
    ) -> None:
        self.store, self.session, self.dump, self.make_header = store, session, dump, make_header
        self.turns = 0

    def turn(self, *, tokens_seen: int | None = None) -> str:
        self.turns += 1
        chain = f"chain{self.turns}"
        message = self.store.append(
            self.session.id, role="user", content=chain, reason="complete", chain=chain
        ).id
        self.store.write_feeds(message, FP, [Feed("prefill", (self.turns,), chain)])
        header = self.make_header(chain, tokens_seen=tokens_seen or 100 * self.turns)
        self.store.save_snapshot(self.session.id, chain, self.dump, header=header)
        return message

    def kept(self) -> set[int]:
        return {int(row.chain.removeprefix("chain")) for row in self.store.snapshot_chains(self.session.id)}


@pytest.fixture
def talk(store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader) -> Talk:
    return Talk(store, session, dump, make_header)


def files(store: Store) -> set[str]:
    return {path.stem for path in store.paths.snapshots.glob("*.safetensors")}


def test_a_saved_state_is_loaded_exactly_after_a_restart(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    header = make_header("ab")
    assert not store.has_snapshot(session.id, "ab")
    size = store.save_snapshot(session.id, "ab", dump, header=header)
    store.close()
    with Store.open(store.paths) as again:
        assert again.has_snapshot(session.id, "ab")
        assert again.load_snapshot(session.id, "ab", header=header) == dump
        (row,) = again.snapshot_chains(session.id)
        assert (row.chain, row.bytes, row.tokens_seen, row.fingerprint) == ("ab", size, 10, FP)
        assert (store.paths.snapshots / "ab.safetensors").stat().st_size == size
        assert again.verify() == []


def test_saving_the_same_chain_again_is_one_state(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    for _ in range(2):
        store.save_snapshot(session.id, "ab", dump, header=make_header("ab"))
    assert len(store.snapshot_chains(session.id)) == 1


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_state_files_belong_to_their_owner_alone(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    store.save_snapshot(session.id, "ab", dump, header=make_header("ab"))
    for path in store.paths.data.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_what_was_never_saved_is_said_to_be_missing(
    store: Store, session: SessionRecord, make_header: MakeHeader
) -> None:
    with pytest.raises(SnapshotError, match="no saved state abcabcabcabc"):
        store.load_snapshot(session.id, "abc" * 10, header=make_header("abc" * 10))


def test_a_file_that_vanished_is_missing_everywhere(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    store.save_snapshot(session.id, "ab", dump, header=make_header("ab"))
    (store.paths.snapshots / "ab.safetensors").unlink()
    assert not store.has_snapshot(session.id, "ab")
    with pytest.raises(SnapshotError, match="is missing"):
        store.load_snapshot(session.id, "ab", header=make_header("ab"))
    assert any("is missing" in sentence for sentence in store.verify())
    store.save_snapshot(session.id, "ab", dump, header=make_header("ab"))
    assert store.load_snapshot(session.id, "ab", header=make_header("ab")) == dump


def test_another_models_state_is_refused_by_name(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    store.save_snapshot(session.id, "ab", dump, header=make_header("ab"))
    other = replace(make_header("ab"), fingerprint="0" * 64, model="big")
    with pytest.raises(SnapshotError, match="made by model smol and does not fit big: model fingerprint"):
        store.load_snapshot(session.id, "ab", header=other)


@pytest.mark.parametrize("chain", ["", "../x", "a/b", "a\0", "é", "x" * 129, "."])
def test_a_chain_that_is_no_plain_name_never_becomes_a_path(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader, chain: str
) -> None:
    with pytest.raises(UsageError, match="not a chain"):
        store.save_snapshot(session.id, chain, dump, header=make_header(chain))
    assert files(store) == set()


def test_a_header_for_another_chain_or_session_writes_nothing(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    with pytest.raises(UsageError, match="for chain bb, expected aa"):
        store.save_snapshot(session.id, "aa", dump, header=make_header("bb"))
    with pytest.raises(SessionNotFoundError):
        store.save_snapshot("0" * 32, "aa", dump, header=make_header("aa"))
    assert files(store) == set()


def test_a_state_belongs_to_the_message_that_was_fed(
    talk: Talk, store: Store, session: SessionRecord
) -> None:
    messages = [talk.turn(), talk.turn()]
    assert [row.message_id for row in store.snapshot_chains(session.id)] == messages[::-1]


def test_the_newest_states_stay_and_older_ones_thin_out_geometrically(talk: Talk, store: Store) -> None:
    for _ in range(40):
        talk.turn()
    kept = talk.kept()
    assert {40, 39, 38, 37} <= kept
    assert 1 in kept
    # 100 tokens a turn; distances 4^4, 4^5 and 4^6 tokens: the oldest state in each of the ranges stays.
    assert len(kept) <= KEEP_NEWEST + 5
    older = sorted((40 - n) * 100 for n in kept if n < 37)
    assert all(b <= 16 * a for a, b in pairwise(older))
    assert files(store) == {f"chain{n}" for n in kept}
    assert store.verify() == []


def test_a_million_tokens_need_only_a_few_states(talk: Talk) -> None:
    for n in range(1, 101):
        talk.turn(tokens_seen=10_000 * n)
        assert len(talk.kept()) <= KEEP_NEWEST + 6
    assert talk.kept() >= {97, 98, 99, 100}


def test_the_end_of_another_branch_keeps_its_state(talk: Talk, store: Store, session: SessionRecord) -> None:
    for _ in range(3):
        root = talk.turn()
    for _ in range(3):
        talk.turn()
    left = talk.turns
    store.set_tip(session.id, root)
    for _ in range(8):
        talk.turn()
    assert left in talk.kept()
    assert left - 1 not in talk.kept()


def test_of_many_other_branches_the_newest_keep_their_states(
    talk: Talk, store: Store, session: SessionRecord
) -> None:
    root = talk.turn()
    for _ in range(20):
        store.set_tip(session.id, root)
        talk.turn()
    assert talk.kept() == {1, 21, *range(21 - KEEP_BRANCHES, 21)}


def test_each_model_is_thinned_on_its_own(
    talk: Talk, store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    for n in range(4):
        header = make_header(f"old{n}", tokens_seen=n + 1, fingerprint="0" * 64)
        store.save_snapshot(session.id, f"old{n}", dump, header=header)
    for _ in range(20):
        talk.turn()
    assert {f"old{n}" for n in range(4)} <= {row.chain for row in store.snapshot_chains(session.id)}


def test_thinning_one_session_leaves_what_another_one_uses(
    talk: Talk, store: Store, session: SessionRecord, make_header: MakeHeader, dump: StateDump
) -> None:
    messages = [talk.turn() for _ in range(2)]
    branch = store.branch(session.id, messages[1], "side")
    assert {row.chain for row in store.snapshot_chains(branch.id)} == {"chain1", "chain2"}
    for _ in range(30):
        talk.turn()
    assert 2 not in talk.kept()
    assert store.load_snapshot(branch.id, "chain2", header=make_header("chain2", tokens_seen=200)) == dump
    assert store.verify() == []


def test_a_state_that_another_session_saved_is_found_and_then_shared(
    store: Store, session: SessionRecord, dump: StateDump, make_header: MakeHeader
) -> None:
    other = store.create_session("other")
    store.save_snapshot(session.id, "ab", dump, header=make_header("ab"))
    assert store.has_snapshot(other.id, "ab")
    assert store.load_snapshot(other.id, "ab", header=make_header("ab")) == dump
    store.delete(session.id)
    store.purge_deleted(older_than_s=0)
    assert store.load_snapshot(other.id, "ab", header=make_header("ab")) == dump


def test_a_state_whose_message_is_not_known_yet_counts_as_the_newest() -> None:
    states = [Saved(f"c{n}", 100 * n, float(n), n) for n in range(1, 5)] + [Saved("new", 500, 9.0, None)]
    removed = superfluous(
        states, tip_path=frozenset(range(1, 5)), parents={1: None, **{n: n - 1 for n in range(2, 5)}}
    )
    assert removed == set()
    assert superfluous([], tip_path=frozenset(), parents={}) == set()


def test_the_disk_use_is_the_files_sizes(talk: Talk, store: Store, session: SessionRecord) -> None:
    talk.turn()
    usage = store.disk_usage(session.id)
    size = (store.paths.snapshots / "chain1.safetensors").stat().st_size
    assert (usage.snapshots, usage.snapshot_count, usage.transcript) == (size, 1, len("chain1"))
    total = store.disk_usage()
    assert total.snapshots == size
    assert total.transcript >= store.paths.database.stat().st_size
    assert total.total == total.snapshots + total.transcript


def test_a_state_file_without_a_row_is_reported_and_cleared_an_hour_later(store: Store) -> None:
    orphan = store.paths.snapshots / "dead.safetensors"
    partial = store.paths.snapshots / ".partial" / "x.safetensors.1-0"
    partial.parent.mkdir()
    for path in (orphan, partial):
        path.write_bytes(b"x")
    store.purge_deleted(older_than_s=0)
    assert store.verify() == []
    assert orphan.exists()
    for path in (orphan, partial):
        os.utime(path, (0, 0))
    assert any("no session uses" in sentence for sentence in store.verify())
    store.purge_deleted(older_than_s=0)
    Store.open(store.paths).close()
    assert not orphan.exists()
    assert not partial.exists()
