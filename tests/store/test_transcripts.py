from __future__ import annotations

import hashlib
import json
import threading

import pytest

from infinichat.errors import SessionNotFoundError, UsageError
from infinichat.messages import Message
from infinichat.paths import Paths
from infinichat.store import SessionRecord, Store
from infinichat.store.transcripts import message_id


def say(store: Store, session: SessionRecord, content: str, role: str = "user", chain: str = "c") -> Message:
    return store.append(session.id, role=role, content=content, reason="complete", chain=chain)  # type: ignore[arg-type]


def test_an_appended_message_is_read_back_word_for_word(store: Store, session: SessionRecord) -> None:
    written = store.append(
        session.id, role="user", content="Hello\r\n ", reason="complete", chain="c1", title=None, model="smol"
    )
    assert store.message(written.id) == written
    assert store.path(session.id) == [written]
    assert (written.content, written.parent, written.model) == ("Hello\r\n ", None, "smol")
    assert store.session("notes").tip == written.id


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\0",
        "a\0b\0",
        "\x1b[31mred\x1b[0m",
        "".join(map(chr, range(32))) + "\x7f\x85\u2028",
        "[bold]",
        "e\u0301",
        "🐶",
    ],
    ids=["empty", "nul", "nuls", "ansi", "controls", "markup", "decomposed", "emoji"],
)
def test_control_characters_are_data(store: Store, session: SessionRecord, content: str) -> None:
    say(store, session, content)
    assert store.path(session.id)[0].content == content
    assert store.verify() == []


def test_a_lone_surrogate_becomes_the_replacement_character(store: Store, session: SessionRecord) -> None:
    assert say(store, session, "a\ud800b").content == "a\ufffdb"


def test_a_document_of_a_million_characters_is_kept_whole(store: Store, session: SessionRecord) -> None:
    book = "It was a dark and stormy night; the rain fell in torrents. " * 17_000
    store.append(session.id, role="document", content=book, reason="complete", chain="c", title="bulwer.txt")
    assert store.path(session.id)[0].content == book


def test_the_id_is_the_hash_of_the_documented_list() -> None:
    text = '["infinichat-message-1",null,"user","Grüße \\"x\\"",null,"abc"]'
    assert json.loads(text)[3] == 'Grüße "x"'
    expected = hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert message_id(parent=None, role="user", content='Grüße "x"', title=None, chain="abc") == expected


@pytest.mark.parametrize(
    "changed",
    [{"parent": "b" * 64}, {"role": "assistant"}, {"content": "Hello "}, {"title": ""}, {"chain": "d"}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_field_takes_part_in_the_id(changed: dict[str, str]) -> None:
    fields: dict[str, str | None] = {
        "parent": "a" * 64, "role": "user", "content": "Hello", "title": None, "chain": "c"
    }  # fmt: skip
    assert message_id(**fields) != message_id(**(fields | changed))  # type: ignore[arg-type]


def test_the_same_words_at_the_same_place_are_one_node(store: Store, session: SessionRecord) -> None:
    first = say(store, session, "Hello")
    store.set_tip(session.id, None)
    assert say(store, session, "Hello") == first
    assert store.session(session.id).messages == 1
    assert store.siblings(first.id, session.id) == [first.id]


def test_the_newest_reason_wins_on_the_same_node(store: Store, session: SessionRecord) -> None:
    stopped = store.append(
        session.id, role="document", content="half", reason="stopped", chain="c", title="t"
    )
    store.set_tip(session.id, None)
    again = store.append(session.id, role="document", content="half", reason="complete", chain="c", title="t")
    assert (again.id, again.reason) == (stopped.id, "complete")
    assert store.set_reason(again.id, "error").reason == "error"


def test_two_sessions_that_begin_alike_share_rows_but_not_transcripts(store: Store) -> None:
    a, b = store.create_session("a"), store.create_session("b")
    assert say(store, a, "Hello").id == say(store, b, "Hello").id
    say(store, a, "only a")
    assert [m.content for m in store.path(b.id)] == ["Hello"]


def test_a_shared_message_has_a_time_of_its_own_in_each_session(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = store.create_session("a"), store.create_session("b")
    for session, now in ((a, 1000.0), (b, 2000.0)):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda now=now: now)
            assert say(store, session, "Hello").created == now
    assert [store.path(s.id)[0].created for s in (a, b)] == [1000.0, 2000.0]
    assert store.search("hello", session_id=a.id)[0].created == 1000.0
    assert store.message(store.path(a.id)[0].id).created == 1000.0


def test_path_runs_from_the_root_to_the_tip(store: Store, session: SessionRecord) -> None:
    written = [say(store, session, f"m{n}") for n in range(30)]
    assert store.path(session.id) == written
    assert [m.parent for m in written] == [None, *(m.id for m in written[:-1])]
    assert store.session("notes").messages == 30


def test_path_pages_backwards_without_gap_or_overlap(store: Store, session: SessionRecord) -> None:
    written = [say(store, session, f"m{n}") for n in range(25)]
    pages = [store.path(session.id, limit=10)]
    while pages[0][0].parent is not None:
        pages.insert(0, store.path(session.id, limit=10, before=pages[0][0].id))
    assert [len(page) for page in pages] == [5, 10, 10]
    assert [m for page in pages for m in page] == written
    assert store.path(session.id, limit=10, before=written[0].id) == []
    assert store.path(session.id, limit=0) == []


def test_an_edit_is_a_sibling_and_nothing_is_overwritten(store: Store, session: SessionRecord) -> None:
    question = say(store, session, "question")
    first = say(store, session, "one", "assistant", "x1")
    store.set_tip(session.id, question.id)
    second = say(store, session, "two", "assistant", "x2")
    assert (
        store.siblings(first.id, session.id) == store.siblings(second.id, session.id) == [first.id, second.id]
    )
    assert [m.content for m in store.path(session.id)] == ["question", "two"]
    store.set_tip(session.id, first.id)
    assert [m.content for m in store.path(session.id)] == ["question", "one"]


def test_siblings_have_the_same_role_and_belong_to_the_session(store: Store) -> None:
    a, b = store.create_session("a"), store.create_session("b")
    mine = say(store, a, "mine")
    say(store, b, "not known in a")
    store.set_tip(a.id, None)
    say(store, a, "a document", "document")
    assert store.siblings(mine.id, a.id) == [mine.id]


def test_the_newest_descendant_ends_the_branch_that_was_written_last(
    store: Store, session: SessionRecord
) -> None:
    root = say(store, session, "root")
    left = say(store, session, "left", "assistant")
    say(store, session, "left end")
    store.set_tip(session.id, root.id)
    say(store, session, "right", "assistant")
    right_end = say(store, session, "right end")
    store.set_tip(session.id, left.id)
    late = say(store, session, "left again")
    assert store.newest_descendant(root.id, session.id) == late.id
    assert store.newest_descendant(right_end.id, session.id) == right_end.id


def test_a_tip_outside_the_session_is_refused(store: Store, session: SessionRecord) -> None:
    other = store.create_session("other")
    foreign = say(store, other, "foreign")
    with pytest.raises(UsageError, match=f"no message {foreign.id[:12]} in this session"):
        store.set_tip(session.id, foreign.id)
    with pytest.raises(UsageError, match="expected the id of one"):
        store.message("nonsense")


def test_an_unknown_session_role_or_reason_is_refused_before_anything_is_written(
    store: Store, session: SessionRecord
) -> None:
    with pytest.raises(SessionNotFoundError, match="sessions list"):
        store.append("0" * 32, role="user", content="x", reason="complete", chain="c")
    with pytest.raises(UsageError, match="role 'robot'"):
        store.append(session.id, role="robot", content="x", reason="complete", chain="c")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'tired'"):
        store.append(session.id, role="user", content="x", reason="tired", chain="c")  # type: ignore[arg-type]
    assert store.path(session.id) == []


def test_a_message_survives_the_store_being_opened_again(paths: Paths) -> None:
    with Store.open(paths) as store:
        session = store.create_session("notes")
        written = say(store, session, "Hello")
    with Store.open(paths) as store:
        assert store.path(store.session("notes").id) == [written]


def test_many_threads_may_write_and_read_at_once(store: Store) -> None:
    sessions = [store.create_session(f"s{n}") for n in range(6)]
    failures: list[BaseException] = []

    def talk(session: SessionRecord) -> None:
        try:
            for n in range(15):
                say(store, session, f"{session.name} {n}")
                assert store.session(session.id).messages == n + 1
                store.sessions()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=talk, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [store.session(session.id).messages for session in sessions] == [15] * 6
    assert store.verify() == []
