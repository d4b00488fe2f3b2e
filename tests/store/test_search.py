from __future__ import annotations

import pytest

from infinichat.store import SearchHit, SessionRecord, Store
from infinichat.store.search import OVERLAP, PASSAGE, match_expression, passages, search


def say(
    store: Store, session: SessionRecord, content: str, role: str = "user", title: str | None = None
) -> str:
    return store.append(
        session.id, role=role, content=content, reason="complete", chain="c", title=title  # type: ignore[arg-type]
    ).id  # fmt: skip


def found(store: Store, query: str) -> list[str]:
    return [store.message(hit.message_id).content for hit in store.search(query)]


def matched(hit: SearchHit) -> list[str]:
    return [hit.snippet[start:end] for start, end in hit.matches]


def test_a_hit_says_where_and_what(store: Store, session: SessionRecord) -> None:
    message = say(store, session, "My dog is called Biscuit, and Biscuit likes ham.")
    (hit,) = store.search("BISCUIT")
    assert (hit.session_id, hit.session_name, hit.message_id, hit.role) == (
        session.id,
        "notes",
        message,
        "user",
    )
    assert hit.snippet == "My dog is called Biscuit, and Biscuit likes ham."
    assert matched(hit) == ["Biscuit", "Biscuit"]


def test_every_word_must_be_there_and_the_last_may_be_a_beginning(
    store: Store, session: SessionRecord
) -> None:
    say(store, session, "My dog is called Biscuit.")
    say(store, session, "My cat is called Tiger.")
    assert found(store, "called dog") == ["My dog is called Biscuit."]
    assert found(store, "called bis") == ["My dog is called Biscuit."]
    assert found(store, "bis called") == []
    assert found(store, "bis ") == []
    assert len(found(store, "my called")) == 2
    assert found(store, "b") == []


def test_quoted_words_are_a_phrase(store: Store, session: SessionRecord) -> None:
    say(store, session, "one two three")
    assert found(store, '"two three"') == ["one two three"]
    assert found(store, '"three two"') == []
    assert found(store, 'one "two three"') == ["one two three"]


def test_accents_and_case_do_not_matter(store: Store, session: SessionRecord) -> None:
    say(store, session, "Die Größe der Straße in Ærø, café")
    assert len(found(store, "GROSSE")) == 0
    assert len(found(store, "grösse cafe")) == 0
    assert len(found(store, "große CAFE")) == 1
    assert len(found(store, "grosse")) + len(found(store, "große")) == 1


def test_chinese_and_japanese_are_found_by_any_part(store: Store, session: SessionRecord) -> None:
    say(store, session, "私の犬の名前はビスケットです。")
    (hit,) = store.search("犬の名前")
    assert hit.snippet == "私の犬の名前はビスケットです。"
    assert "".join(matched(hit)) == "犬の名前"
    assert len(found(store, "ケット")) == 1
    assert found(store, "前名") == []


HOSTILE = [
    *(
        "",
        " ",
        '"',
        '""',
        '"""',
        "*",
        "-",
        "AND",
        "OR",
        "NOT",
        "NEAR(a b)",
        "a AND",
        "(",
        ")",
        "a(b",
        "text:",
        "^a",
    ),
    *(
        "text:a",
        "{text}: a",
        "a + b",
        "a*",
        "'",
        "';--",
        "\0",
        "a\0b",
        "\x1b[2J",
        "%",
        "\\",
        '"' * 9_999,
        "\ud800",
    ),
    *("a" * 100_000, "a " * 50_000, "\ufffe", "col : x", "-text : a", "NEAR", "a NEAR/3 b", "…", "🐶"),
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_any_string_is_safe_to_search_for(store: Store, session: SessionRecord, query: str) -> None:
    say(store, session, "a b text near not and or col")
    assert isinstance(store.search(query), list)
    assert isinstance(store.sessions(query=query), list)
    assert store.verify() == []


def test_operators_are_words(store: Store, session: SessionRecord) -> None:
    say(store, session, "to be or not to be")
    assert found(store, "be OR not") == ["to be or not to be"]
    assert found(store, "be NOT or") == ["to be or not to be"]
    assert found(store, "zebra OR be") == []


def test_what_has_no_letter_finds_nothing() -> None:
    assert match_expression("... -- !") is None
    assert match_expression('a "b') == '"a" "b"'


def test_marks_in_the_text_cannot_be_taken_for_matches(store: Store, session: SessionRecord) -> None:
    say(store, session, "\x02deadbeef< hello \x02> <b>world</b>")
    (hit,) = store.search("hello")
    assert matched(hit) == ["hello"]
    assert "<b>world</b>" in hit.snippet


def test_a_book_is_one_hit_with_a_short_snippet(store: Store, session: SessionRecord) -> None:
    words = "the quick brown fox jumps over the lazy dog. " * 22_000
    book = words[:500_000] + "Here sleeps Queequeg. " + words[500_000:]
    message = say(store, session, book, "document", title="whale.txt")
    (hit,) = store.search("queequeg")
    assert (hit.message_id, hit.title) == (message, "whale.txt")
    assert "Here sleeps Queequeg." in hit.snippet
    assert len(hit.snippet) < 300
    assert len(store.search("lazy")) == 1
    assert [h.message_id for h in store.search("whale")] == [message]


def test_a_word_without_end_still_gives_a_short_snippet(store: Store, session: SessionRecord) -> None:
    say(store, session, "x" * 9_000 + " needle " + "y" * 9_000)
    (hit,) = store.search("needle")
    assert len(hit.snippet) < 300
    assert matched(hit) == ["needle"]


def test_passages_together_hold_every_character_and_every_phrase() -> None:
    text = "".join(f"word{n} " for n in range(10_000))
    pieces = list(passages(text))
    assert all(len(piece) <= PASSAGE for piece in pieces)
    rebuilt = pieces[0] + "".join(piece[OVERLAP:] for piece in pieces[1:])
    assert rebuilt == text
    for n in range(9_999):
        assert any(f"word{n} word{n + 1}" in piece for piece in pieces)
    assert list(passages("")) == [""]
    assert [len(piece) for piece in passages("x" * (PASSAGE + 1))] == [PASSAGE, OVERLAP + 1]


def test_the_newest_message_comes_first_and_there_are_at_most_limit(
    store: Store, session: SessionRecord
) -> None:
    ids = [say(store, session, f"hello {n}") for n in range(5)]
    assert [hit.message_id for hit in store.search("hello", limit=3)] == ids[:1:-1]
    assert store.search("hello", limit=0) == []


def test_a_search_in_one_session_stays_there(store: Store, session: SessionRecord) -> None:
    other = store.create_session("other")
    say(store, session, "hello here")
    say(store, other, "hello there")
    assert [hit.session_name for hit in store.search("hello", session_id=other.id)] == ["other"]
    store.delete(other.id)
    assert [hit.session_name for hit in store.search("hello")] == ["notes"]
    assert [hit.session_name for hit in store.search("hello", session_id=other.id)] == ["other"]


def test_a_shared_message_is_one_hit_in_the_session_used_last(store: Store, session: SessionRecord) -> None:
    message = say(store, session, "hello")
    side = store.branch(session.id, message, "side")
    assert [hit.session_name for hit in store.search("hello")] == ["side"]
    store.touch(session.id)
    assert [hit.session_name for hit in store.search("hello")] == ["notes"]
    assert [hit.session_name for hit in store.search("hello", session_id=side.id)] == ["side"]


def test_system_messages_are_not_searched(store: Store, session: SessionRecord) -> None:
    say(store, session, "secret instruction", "system")
    assert store.search("instruction") == []
    assert store.verify() == []


def test_a_beginning_that_is_in_every_message_is_looked_up_once(store: Store) -> None:
    """For each hit anew, 50 hits among 100,000 messages took 0.4 seconds."""
    record = store.create_session()
    for number in range(60):
        store.append(record.id, role="user", content=f"word{number} words", reason="complete", chain="")
    asked: list[str] = []
    with store._database.read() as connection:
        connection.set_trace_callback(asked.append)
        hits = search(connection, "wor")
        connection.set_trace_callback(None)
    assert len(hits) == 50
    assert hits[0].snippet == "word59 words"
    assert hits[0].matches == ((0, 6), (7, 12))
    assert sum("snippet(" in statement for statement in asked) == 1
