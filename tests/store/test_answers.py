from __future__ import annotations

import pytest

from infinichat.errors import DatabaseError, UsageError
from infinichat.messages import Message
from infinichat.store import Feed, SessionRecord, Store
from infinichat.store.answers import pack_ids, unpack_ids

FP = "f" * 64


@pytest.fixture
def question(store: Store, session: SessionRecord) -> Message:
    return store.append(session.id, role="user", content="question", reason="complete", chain="q")


def write_draft(store: Store, session: SessionRecord, parent: str | None, content: str) -> None:
    store.write_draft(
        session.id,
        parent=parent,
        content=content,
        ids=[5, 6],
        prompt_ids=[1, 2],
        model="smol",
        fingerprint=FP,
    )


def test_ids_are_little_endian_32_bit_integers() -> None:
    assert pack_ids([1, 258, 2**31 - 1]) == bytes([1, 0, 0, 0, 2, 1, 0, 0, 255, 255, 255, 127])
    assert unpack_ids(pack_ids([0, 49151])) == (0, 49151)
    assert unpack_ids(pack_ids([])) == ()


@pytest.mark.parametrize("ids", [[-1], [2**31], [1.5]])
def test_what_is_no_token_id_is_refused(ids: list[int]) -> None:
    with pytest.raises(UsageError, match="from 0 to 2147483647"):
        pack_ids(ids)


def test_half_an_id_is_damage() -> None:
    with pytest.raises(DatabaseError, match="7 bytes, expected a multiple of 4"):
        unpack_ids(b"1234567")


def test_a_session_has_one_draft_and_the_newest_text_is_in_it(
    store: Store, session: SessionRecord, question: Message
) -> None:
    assert store.draft(session.id) is None
    write_draft(store, session, question.id, "I th")
    write_draft(store, session, question.id, "I think")
    draft = store.draft(session.id)
    assert draft is not None
    assert (draft.session_id, draft.parent, draft.content) == (session.id, question.id, "I think")
    assert (draft.ids, draft.prompt_ids, draft.model, draft.fingerprint) == ((5, 6), (1, 2), "smol", FP)
    store.clear_draft(session.id)
    assert store.draft(session.id) is None


def test_a_committed_answer_is_the_tip_has_its_feeds_and_leaves_no_draft(
    store: Store, session: SessionRecord, question: Message
) -> None:
    write_draft(store, session, question.id, "I th")
    feeds = [Feed("decode", (5, 6, 7), "a")]
    answer = store.commit_answer(
        session.id, content="I think", reason="stop", chain="a", model="smol", feeds=feeds, fingerprint=FP
    )
    assert (answer.role, answer.parent, answer.reason, answer.model) == (
        "assistant",
        question.id,
        "stop",
        "smol",
    )
    assert store.path(session.id) == [question, answer]
    assert store.feeds(answer.id, FP) == feeds
    assert store.draft(session.id) is None


def test_the_feeds_of_a_draft_that_became_an_answer_belong_to_the_drafts_model(
    store: Store, session: SessionRecord, question: Message
) -> None:
    write_draft(store, session, question.id, "I th")
    feeds = [Feed("decode", (5, 6), "a")]
    answer = store.commit_answer(
        session.id, content="I th", reason="interrupted", chain="a", model="smol", feeds=feeds
    )
    assert store.feeds(answer.id, FP) == feeds


def test_feeds_without_a_known_model_are_refused_and_nothing_is_written(
    store: Store, session: SessionRecord, question: Message
) -> None:
    with pytest.raises(UsageError, match="fingerprint"):
        store.commit_answer(
            session.id, content="x", reason="stop", chain="a", model="m", feeds=[Feed("decode", (1,), "a")]
        )
    assert store.path(session.id) == [question]


def test_feeds_are_kept_per_model_and_an_empty_list_is_not_unknown(store: Store, question: Message) -> None:
    assert store.feeds(question.id, FP) is None
    store.write_feeds(question.id, FP, [])
    store.write_feeds(question.id, "other", [Feed("prefill", (1, 2), "x")])
    assert store.feeds(question.id, FP) == []
    assert store.feeds(question.id, "other") == [Feed("prefill", (1, 2), "x")]


def test_feeds_written_again_replace_and_grow(store: Store, question: Message) -> None:
    a, b, c = (Feed("prefill", (n, n + 1), f"chain{n}") for n in range(3))
    for feeds in (
        [a],
        [a, b],
        [a, b, c],
        [c],
        [a, Feed("decode", (9,), "chain1")],
        [Feed("prefill", (7,), "chain0")],
    ):
        store.write_feeds(question.id, FP, feeds)
        assert store.feeds(question.id, FP) == feeds


def test_a_wrong_mode_is_refused_and_the_old_feeds_stay(store: Store, question: Message) -> None:
    old = [Feed("prefill", (1,), "x")]
    store.write_feeds(question.id, FP, old)
    with pytest.raises(UsageError, match="mode 'guess'"):
        store.write_feeds(question.id, FP, [Feed("guess", (1,), "y")])  # type: ignore[arg-type]
    assert store.feeds(question.id, FP) == old
