from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from infinichat.errors import DiskError, SessionNotFoundError, UsageError
from infinichat.paths import Paths
from infinichat.protocols import StateDump
from infinichat.store import Feed, SessionRecord, SnapshotHeader, Store


def say(store: Store, session: SessionRecord, content: str) -> str:
    return store.append(session.id, role="user", content=content, reason="complete", chain="c").id


def names(store: Store, **options: object) -> list[str]:
    return [record.name for record in store.sessions(**options)]  # type: ignore[arg-type]


def test_a_new_session_is_empty_and_keeps_what_it_was_given(store: Store) -> None:
    made = store.create_session("notes", system="Be brief.", model="smol")
    assert store.session("notes") == made
    assert (made.system, made.model, made.tip, made.messages) == ("Be brief.", "smol", None, 0)
    assert (made.pinned, made.deleted_at, made.tokens_seen, made.title) == (False, None, 0, None)


def test_sessions_without_a_name_are_numbered_and_no_number_returns(store: Store) -> None:
    assert [store.create_session().name for _ in range(3)] == ["chat-1", "chat-2", "chat-3"]
    store.delete(store.session("chat-3").id)
    assert store.create_session().name == "chat-4"


def test_a_taken_name_is_refused_by_name(store: Store, session: SessionRecord) -> None:
    with pytest.raises(UsageError, match="named 'notes' already"):
        store.create_session("notes")
    other = store.create_session("other")
    with pytest.raises(UsageError, match="named 'notes' already"):
        store.rename(other.id, "notes")
    store.rename(session.id, "notes")  # its own name is no conflict


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[0m", "x" * 201, "\u202eevil"])
def test_a_name_that_a_list_could_not_show_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a session's name"):
        store.create_session(name)


def test_a_session_is_found_by_name_id_and_the_beginning_of_its_id(
    store: Store, session: SessionRecord
) -> None:
    for wanted in ("notes", " notes ", session.id, session.id[:6]):
        assert store.session(wanted).id == session.id
    assert store.find_session(session.id[:5]) is None


def test_a_name_goes_before_the_beginning_of_an_id(store: Store, session: SessionRecord) -> None:
    trap = store.create_session(session.id[:8])
    assert store.session(session.id[:8]).id == trap.id


def test_an_unknown_name_is_answered_with_the_names_near_it(store: Store, session: SessionRecord) -> None:
    with pytest.raises(SessionNotFoundError, match=r"named 'Note'. Near it: notes"):
        store.session("Note")
    with pytest.raises(SessionNotFoundError, match="sessions list"):
        store.session("entirely different")
    assert store.find_session("Note") is None


def test_pinned_sessions_come_first_then_the_newest_used(store: Store) -> None:
    a, b, c = (store.create_session(name) for name in "abc")
    assert names(store) == ["c", "b", "a"]
    store.touch(a.id)
    assert names(store) == ["a", "c", "b"]
    store.set_pinned(b.id, True)
    assert names(store) == ["b", "a", "c"]
    assert names(store, limit=2) == ["b", "a"]
    say(store, c, "hello")
    assert names(store) == ["b", "c", "a"]
    last = store.last_session()
    assert last is not None
    assert last.name == "c"


def test_the_list_is_searched_by_name_title_and_words(store: Store) -> None:
    a, b, c = (store.create_session(name) for name in ("alpha 50%", "beta", "gamma"))
    store.set_title(b.id, "A walk with Alphonse")
    say(store, c, "the alphabet")
    assert names(store, query="ALPH") == ["gamma", "beta", "alpha 50%"]
    assert names(store, query="50%") == ["alpha 50%"]
    assert names(store, query="%") == ["alpha 50%"]
    assert names(store, query="_") == names(store, query="'; DROP TABLE sessions; --") == []
    assert names(store, query="  ") == ["gamma", "beta", "alpha 50%"]
    store.delete(a.id)
    assert names(store, query="alph", deleted=True) == ["alpha 50%"]
    assert names(store, query="alph") == ["gamma", "beta"]


def test_what_is_set_is_read_back(store: Store, session: SessionRecord) -> None:
    store.set_title(session.id, "My \x1b title")
    store.set_model(session.id, "other")
    store.set_system(session.id, None)
    store.set_tokens_seen(session.id, 1_000_000)
    found = store.session("notes")
    assert (found.title, found.model, found.system, found.tokens_seen) == (
        "My \x1b title",
        "other",
        None,
        1_000_000,
    )


def test_a_deleted_session_can_be_brought_back_with_every_word(store: Store, session: SessionRecord) -> None:
    say(store, session, "hello")
    store.delete(session.id)
    assert names(store) == []
    assert store.find_session("notes") is None
    assert store.last_session() is None
    assert store.search("hello") == []
    assert store.session("notes", deleted=True).id == session.id
    assert [record.name for record in store.sessions(deleted=True)] == ["notes"]
    assert store.undelete(session.id).name == "notes"
    assert [m.content for m in store.path(store.session("notes").id)] == ["hello"]


def test_a_session_that_comes_back_to_find_its_name_taken_gets_a_number(
    store: Store, session: SessionRecord
) -> None:
    store.delete(session.id)
    store.create_session("notes")
    assert store.undelete(session.id).name == "notes-2"


def test_a_branch_shares_the_way_to_its_message_and_goes_its_own_way(
    store: Store, session: SessionRecord
) -> None:
    first = say(store, session, "one")
    say(store, session, "two")
    branch = store.branch(session.id, first, "side")
    assert (branch.name, branch.tip, branch.messages) == ("side", first, 1)
    say(store, branch, "side step")
    assert [m.content for m in store.path(branch.id)] == ["one", "side step"]
    assert [m.content for m in store.path(session.id)] == ["one", "two"]
    assert store.path(branch.id)[0] == store.path(session.id)[0]
    assert store.branch(session.id, first, None).name == "notes-2"


def test_purge_takes_what_nothing_shares_and_leaves_the_rest(
    store: Store, session: SessionRecord, dump: StateDump, make_header: Callable[..., SnapshotHeader]
) -> None:
    shared = say(store, session, "shared words")
    branch = store.branch(session.id, shared, "side")
    own = say(store, session, "private words")
    for message, chain in ((shared, "aa"), (own, "bb")):
        store.write_feeds(message, "f" * 64, [Feed("prefill", (1,), chain)])
        store.save_snapshot(session.id, chain, dump, header=make_header(chain))
    assert store.load_snapshot(branch.id, "aa", header=make_header("aa")) == dump
    store.delete(session.id)
    assert store.purge_deleted(older_than_s=3600) == 0
    assert store.purge_deleted(older_than_s=0) == 1
    assert [m.content for m in store.path(branch.id)] == ["shared words"]
    assert store.search("private") == []
    assert [hit.session_name for hit in store.search("shared")] == ["side"]
    assert [path.name for path in store.paths.snapshots.glob("*.safetensors")] == ["aa.safetensors"]
    assert list(store.paths.locks.iterdir()) == []
    assert store.verify() == []
    with pytest.raises(UsageError):
        store.message(own)
    with pytest.raises(SessionNotFoundError):
        store.path(session.id)


def test_purge_leaves_a_deleted_session_that_is_open_somewhere(store: Store, session: SessionRecord) -> None:
    with store.lock(session.id):
        store.delete(session.id)
        assert store.purge_deleted(older_than_s=0) == 0
    assert store.purge_deleted(older_than_s=0) == 1


def test_what_was_deleted_long_ago_goes_when_the_store_is_opened(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(paths) as store:
        old, recent, kept = (store.create_session(name) for name in ("old", "recent", "kept"))
        store.append(old.id, role="user", content="secret words", reason="complete", chain="c")
        now = time.time()
        for record, days in ((old, 31), (recent, 29)):
            with monkeypatch.context() as patch:
                patch.setattr("time.time", lambda then=now - days * 86400: then)
                store.delete(record.id)
    with Store.open(paths) as store:
        assert {record.name for record in store.sessions(deleted=True)} == {"old", "recent"}
    with Store.open(paths, keep_deleted_days=30) as store:
        assert {record.name for record in store.sessions(deleted=True)} == {"recent"}
        assert [record.name for record in store.sessions()] == [kept.name]
        assert store.verify() == []
    assert b"secret words" not in paths.database.read_bytes()


def test_a_disk_that_lets_nothing_be_removed_is_opened_nevertheless(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(paths) as store:
        store.delete(store.create_session("old").id)

    def refuse(*_: object, **__: object) -> int:
        raise DiskError("the disk is full")

    monkeypatch.setattr("infinichat.store.housekeeping.purge_due", refuse)
    with Store.open(paths, keep_deleted_days=0) as store:
        assert len(store.sessions(deleted=True)) == 1
