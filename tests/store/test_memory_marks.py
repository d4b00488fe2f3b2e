"""What was written to the memory when: kept per message and model, read along the selected branch."""

from __future__ import annotations

from infinichat.messages import LayerMemory
from infinichat.store import SessionRecord, Store


def layer(written: int, *, number: int = 18) -> LayerMemory:
    return LayerMemory(number, written, norm=written / 2, saturation=written / 100, gate=0.5)


def turn(store: Store, session: SessionRecord, text: str, written: int, *, fingerprint: str = "f") -> str:
    """A question and its answer, after which the memory holds ``written``."""
    store.append(session.id, role="user", content=text, reason="complete", chain="")
    answer = store.append(session.id, role="assistant", content=f"re {text}", reason="stop", chain="")
    store.mark_memory(answer.id, fingerprint, tokens_seen=10 * written, layers=[layer(written)])
    return answer.id


def shown(store: Store, session: SessionRecord, **options: int) -> list[tuple[str, int]]:
    return [(mark.words, mark.added) for mark in store.memory_marks(session.id, "f", **options)]


def test_every_turn_has_what_it_added_in_order(store: Store, session: SessionRecord) -> None:
    for text, written in (("one", 3), ("two", 3), ("three", 8)):
        turn(store, session, text, written)
    assert shown(store, session) == [("one", 3), ("two", 0), ("three", 5)]
    last = store.memory_marks(session.id, "f")[-1]
    assert (last.role, last.tokens_seen, last.layers) == ("assistant", 80, (layer(8),))
    assert last.created == store.path(session.id)[-1].created


def test_another_branch_and_another_model_have_their_own(store: Store, session: SessionRecord) -> None:
    first = turn(store, session, "one", 3)
    turn(store, session, "two", 5)
    store.set_tip(session.id, first)
    turn(store, session, "else", 10)
    turn(store, session, "other model", 99, fingerprint="g")
    assert shown(store, session) == [("one", 3), ("else", 7)]
    branch = store.branch(session.id, first)
    assert shown(store, branch) == [("one", 3)]


def test_a_mark_is_replaced_and_a_document_is_called_by_its_title(
    store: Store, session: SessionRecord
) -> None:
    book = store.append(
        session.id, role="document", content="long", reason="complete", chain="", title="moby.txt"
    )
    store.mark_memory(book.id, "f", tokens_seen=4, layers=[layer(1), layer(2, number=20)])
    store.mark_memory(book.id, "f", tokens_seen=9, layers=[layer(4), layer(2, number=20)])
    assert shown(store, session) == [("moby.txt", 6)]


def test_of_a_part_of_the_conversation_the_first_turn_is_left_out(
    store: Store, session: SessionRecord
) -> None:
    for number in range(1, 6):
        turn(store, session, str(number), number * number)
    assert shown(store, session, limit=4) == [("5", 9)]
    assert shown(store, session, limit=10) == [("1", 1), ("2", 3), ("3", 5), ("4", 7), ("5", 9)]


def test_marks_go_with_the_messages_they_belong_to(store: Store, session: SessionRecord) -> None:
    answer = turn(store, session, "one", 3)
    store.delete(session.id)
    store.purge_deleted(older_than_s=0)
    again = store.create_session("notes")
    store.append(again.id, role="user", content="one", reason="complete", chain="")
    assert store.append(again.id, role="assistant", content="re one", reason="stop", chain="").id == answer
    assert shown(store, again) == []
