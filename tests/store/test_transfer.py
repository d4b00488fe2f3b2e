from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from infinichat.errors import UsageError
from infinichat.paths import Paths
from infinichat.store import SessionRecord, Store, transfer


@pytest.fixture
def talked(store: Store, session: SessionRecord) -> SessionRecord:
    """A tree with two branches, a document, control characters and an answer that was stopped."""

    def say(role: str, content: str, chain: str, reason: str = "complete", title: str | None = None) -> str:
        return store.append(
            session.id,
            role=role,  # type: ignore[arg-type]
            content=content,
            reason=reason,  # type: ignore[arg-type]
            chain=chain,
            title=title,
            model="smol",
        ).id

    store.set_title(session.id, "About\na dog")
    store.set_system(session.id, "Be brief.\nBe kind.")
    say("document", "# Chapter 1\n```\ncode\n```\n````\n", "c1", title="book.md")
    question = say("user", "Who is \0 \x1b[31m Biscuit?", "c2")
    say("assistant", "A dog.", "c3", "stop")
    store.set_tip(session.id, question)
    say("assistant", "A bis", "c4", "stopped")
    return store.session("notes")


def shape(store: Store, session_id: str) -> list[Any]:
    exported = json.loads(store.export_session(session_id, "json"))
    return [exported["messages"], {k: v for k, v in exported["session"].items() if k != "name"}]


def test_an_import_has_the_same_tree_words_and_ids(
    store: Store, talked: SessionRecord, tmp_path: Any
) -> None:
    text = store.export_session(talked.id, "json")
    other = Paths(tmp_path / "d", tmp_path / "c", tmp_path / "ca", tmp_path / "s")
    with Store.open(other) as target:
        imported = target.import_session(text)
        assert (imported.name, imported.title, imported.system) == ("notes", talked.title, talked.system)
        assert imported.tip == talked.tip
        assert shape(target, imported.id) == shape(store, talked.id)
        assert target.path(imported.id) == store.path(talked.id)
        tip = imported.tip
        assert tip is not None
        assert len(target.siblings(tip, imported.id)) == 2
        assert len(target.search("biscuit")) == 1
        assert target.verify() == []


def test_an_import_beside_the_original_gets_a_free_name_and_shares_its_rows(
    store: Store, talked: SessionRecord
) -> None:
    imported = store.import_session(store.export_session(talked.id, "json"))
    assert imported.name == "notes-2"
    assert store.path(imported.id) == store.path(talked.id)
    assert store.verify() == []


def test_an_export_edited_by_hand_becomes_a_sound_tree(store: Store, talked: SessionRecord) -> None:
    document = json.loads(store.export_session(talked.id, "json"))
    document["messages"][0]["content"] = "Another book"
    imported = store.import_session(json.dumps(document))
    assert store.path(imported.id)[0].content == "Another book"
    assert imported.tip != talked.tip
    assert store.verify() == []


def test_markdown_is_the_selected_branch_and_a_document_cannot_forge_turns(
    store: Store, talked: SessionRecord
) -> None:
    assert store.export_session(talked.id, "markdown") == (
        "# About a dog\n\n> Be brief.\n> Be kind.\n\n"
        "## Document: book.md\n\n`````text\n# Chapter 1\n```\ncode\n```\n````\n\n`````\n\n"
        "## You\n\nWho is \0 \x1b[31m Biscuit?\n\n"
        "## Answer (stopped)\n\nA bis\n"
    )


def test_an_unknown_format_is_refused(store: Store, session: SessionRecord) -> None:
    with pytest.raises(UsageError, match="'pickle' is not an export format"):
        store.export_session(session.id, "pickle")  # type: ignore[arg-type]


def test_an_empty_session_can_be_exported_and_imported(store: Store, session: SessionRecord) -> None:
    imported = store.import_session(store.export_session(session.id, "json"))
    assert (imported.name, imported.tip, imported.messages) == ("notes-2", None, 0)
    assert store.export_session(imported.id, "markdown") == "# notes-2\n"


def change(document: dict[str, Any], **messages: Any) -> dict[str, Any]:
    document["messages"][0] |= messages
    return document


def session_with(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    document["session"] |= fields
    return document


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda d: d | {"format": "chatgpt"}, '"format": "infinichat-session"'),
    "a newer version": (lambda d: d | {"version": 2}, "version is 2, this infinichat reads versions 1 to 1"),
    "version true": (lambda d: d | {"version": True}, "version is True"),
    "a list": (lambda d: [d], "no .format."),
    "no messages": (lambda d: d | {"messages": None}, "no session or no messages"),
    "no session": (lambda d: d | {"session": []}, "no session or no messages"),
    "a number as message": (lambda d: d | {"messages": [1]}, "message 1 is no object"),
    "a forged role": (lambda d: change(d, role="admin"), "role 'admin'"),
    "a forged reason": (lambda d: change(d, reason="x"), "reason 'x'"),
    "words as a number": (lambda d: change(d, content=5), '"content" of message 1 is int, expected text'),
    "a title as a list": (lambda d: change(d, title=[]), '"title" of message 1 is list'),
    "a missing chain": (lambda d: change(d, chain=None), '"chain" of message 1 is NoneType'),
    "an endless chain": (lambda d: change(d, chain="x" * 200_000), "at most 100000"),
    "no time": (lambda d: change(d, created="now"), '"created" of message 1 is no time'),
    "endless time": (lambda d: change(d, created=1e999), "no JSON number|no time"),
    "its own parent": (
        lambda d: change(d, parent=d["messages"][0]["id"]),
        "parent of message 1 does not come",
    ),
    "a cycle": (
        lambda d: change(d, parent=d["messages"][1]["id"]),
        "parent of message 1 does not come before",
    ),
    "one id twice": (lambda d: d | {"messages": d["messages"][:1] * 2}, "same id as one before"),
    "a tip elsewhere": (lambda d: session_with(d, tip="0"), "tip '0' is none of its messages"),
    "a name of two lines": (lambda d: session_with(d, name="a\nb"), "cannot be a session's name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_in_an_import_is_named_and_nothing_is_stored(
    store: Store, talked: SessionRecord, name: str
) -> None:
    changed, message = REFUSED[name]
    text = json.dumps(changed(json.loads(store.export_session(talked.id, "json"))))
    with pytest.raises(UsageError, match=message):
        store.import_session(text)
    assert [s.name for s in store.sessions()] == ["notes"]


NO_EXPORTS = {
    "nothing": "",
    "half": "{",
    "a deep list": "[" * 500_000,
    "a deep object": '{"a":' * 500_000,
    "Markdown": "# Notes\n\n## You",
    "a long number": "9" * 10_000,
    "a lone surrogate": "\ud800",
    "no number": "NaN",
}


@pytest.mark.parametrize("name", NO_EXPORTS)
def test_what_is_no_export_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match=r"not an export that can be imported: .*\. Nothing was imported"):
        store.import_session(NO_EXPORTS[name])


def test_an_import_that_is_too_long_is_refused_before_it_is_read(
    store: Store, talked: SessionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = store.export_session(talked.id, "json")
    for limit, message in (
        ("MAX_TEXT", "characters, at most 3 are read"),
        ("MAX_MESSAGES", "messages, at most 3 are read"),
        ("MAX_CONTENT", '"content" of message 1 has'),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(transfer, limit, 3)
            with pytest.raises(UsageError, match=message):
                store.import_session(text)


def test_an_import_as_deep_as_a_long_conversation_works(store: Store, session: SessionRecord) -> None:
    document = json.loads(store.export_session(session.id, "json"))
    document["messages"] = [
        {
            "id": str(n), "parent": str(n - 1) if n else None, "role": "user", "content": f"m{n}",
            "reason": "complete", "created": n, "chain": "c",
        }
        for n in range(3000)
    ]  # fmt: skip
    document["session"]["tip"] = "2999"
    imported = store.import_session(json.dumps(document))
    assert imported.messages == 3000
    assert [m.content for m in store.path(imported.id, limit=2)] == ["m2998", "m2999"]
    store.delete(imported.id)
    assert store.purge_deleted(older_than_s=0) == 1
    assert store.verify() == []
