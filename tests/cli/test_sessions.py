"""``sessions``, ``backup``, ``restore`` and ``verify``: the whole output of each verb, then the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from infinichat.cli.main import main
from infinichat.paths import Paths
from infinichat.store import Store


@pytest.fixture
def store(paths: Paths) -> Iterator[Store]:
    with Store.open(paths) as opened:
        yield opened


@pytest.fixture
def notes(store: Store) -> str:
    """A session of two turns and a document; its id."""
    session = store.create_session("notes", model="tiny").id
    store.append(session, role="user", content="My dog is called Biscuit.", reason="complete", chain="a")
    store.append(session, role="assistant", content="OK \x1b[31m", reason="stopped", chain="b", model="tiny")
    store.append(
        session, role="document", content="Call me Ishmael.", title="moby.txt", reason="complete", chain="c"
    )
    store.set_tokens_seen(session, 1234)
    return session


def out(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(list(words)) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_without_sessions_the_list_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "sessions", "list") == (
        "",
        'there are no sessions yet. Next: infinichat, or infinichat ask "…"\n',
    )
    assert out(capsys, "sessions", "list", "--json") == ("[]\n", "")


def test_the_list_shows_every_session(notes: str, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.set_pinned(store.create_session("zoo").id, True)
    expected = (
        "NAME   TITLE  MESSAGES  TOKENS  USED\n"
        "* zoo                0       0  just now\n"
        "notes                3   1,234  just now\n"
    )
    assert out(capsys, "sessions", "list") == (expected, "")
    assert out(capsys, "sessions")[0] == expected
    rows = json.loads(out(capsys, "sessions", "list", "--json", "--query", "notes")[0])
    assert [(row["id"], row["name"], row["tokens_seen"], row["messages"]) for row in rows] == [
        (notes, "notes", 1234, 3)
    ]


def test_show_prints_the_words_and_obeys_none_of_them(notes: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, status = out(capsys, "sessions", "show", "notes")
    lines = text.splitlines()
    assert lines[0].endswith("] you:")
    assert lines[1] == "My dog is called Biscuit."
    assert lines[4:6] == ["OK ␛[31m", "(stopped)"]
    assert lines[7].endswith("] document: moby.txt, 16 characters")
    assert status == "notes: 3 messages, 1,234 tokens seen\n"


def test_show_json_has_every_word_exactly(
    notes: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = json.loads(out(capsys, "sessions", "show", "notes", "--json")[0])
    assert (shown["id"], shown["name"], shown["model"], shown["tokens_seen"]) == (
        notes,
        "notes",
        "tiny",
        1234,
    )
    assert [(m["role"], m["content"], m["reason"]) for m in shown["messages"]] == [
        ("user", "My dog is called Biscuit.", "complete"),
        ("assistant", "OK \x1b[31m", "stopped"),
        ("document", "Call me Ishmael.", "complete"),
    ]
    assert [m["parent"] for m in shown["messages"]] == [None, *[m["id"] for m in shown["messages"][:-1]]]
    last = json.loads(out(capsys, "sessions", "show", notes[:8], "--json", "--limit", "1")[0])
    assert [m["title"] for m in last["messages"]] == ["moby.txt"]


def test_an_unknown_session_is_a_failure_that_names_near_ones(
    notes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, error = out(capsys, "sessions", "show", "note", status=1)
    assert text == ""
    assert "note" in error
    assert "notes" in error
    assert error.count("\n") == 1


def test_search_finds_words_in_every_session(
    notes: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    other = store.create_session("other").id
    store.append(other, role="user", content="A biscuit, please.", reason="complete", chain="x")
    text, _ = out(capsys, "sessions", "search", "biscuit")
    assert [line.split()[0] for line in text.splitlines()] == ["other", "notes"]
    assert "you: My dog is called Biscuit." in text
    hits = json.loads(out(capsys, "sessions", "search", "biscuit", "--session", "notes", "--json")[0])
    assert [(hit["session"], hit["role"]) for hit in hits] == [("notes", "user")]
    start, end = hits[0]["matches"][0]
    assert hits[0]["snippet"][start:end] == "Biscuit"
    assert out(capsys, "sessions", "search", 'no"thing*') == (
        "",
        "nothing was ever said with 'no\"thing*' in it\n",
    )


def test_rename_delete_and_undelete(notes: str, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "sessions", "rename", "notes", "diary") == ("", "'notes' is now 'diary'\n")
    deleted = out(capsys, "sessions", "delete", "diary")[1]
    assert deleted == (
        f"deleted 'diary'; within 30 days it comes back with: infinichat sessions undelete {notes[:8]}\n"
    )
    assert store.sessions() == []
    assert "diary" in out(capsys, "sessions", "list", "--deleted")[0]
    assert out(capsys, "sessions", "undelete", "diary") == ("", "'diary' is back\n")
    assert [record.id for record in store.sessions()] == [notes]


def test_delete_deletes_nothing_when_one_name_is_wrong(
    notes: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    out(capsys, "sessions", "delete", "notes", "nope", status=1)
    assert [record.name for record in store.sessions()] == ["notes"]


def test_an_export_can_be_imported_word_for_word(
    notes: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.json"
    assert out(capsys, "sessions", "export", "notes", "-o", str(file)) == ("", f"wrote {file}\n")
    name = out(capsys, "sessions", "import", str(file))[0].strip()
    assert [m.content for m in store.path(store.session(name).id)] == [m.content for m in store.path(notes)]


def test_export_to_a_pipe_is_exact_and_the_ending_chooses_the_format(
    notes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "OK \x1b[31m" in out(capsys, "sessions", "export", "notes", "--format", "markdown")[0]
    json.loads(out(capsys, "sessions", "export", "notes")[0])
    out(capsys, "sessions", "export", "notes", "-o", str(tmp_path / "a.md"))
    assert "Biscuit" in (tmp_path / "a.md").read_text()
    assert "cannot be written" in out(capsys, "sessions", "export", "notes", "-o", str(tmp_path), status=1)[1]


def test_branch_goes_on_from_a_message(notes: str, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first = store.path(notes)[0]
    assert out(capsys, "sessions", "branch", "notes", first.id[:8], "--name", "other")[0] == "other\n"
    assert store.path(store.session("other").id) == [first]
    whole = out(capsys, "sessions", "branch", "notes")[0].strip()
    assert store.path(store.session(whole).id) == store.path(notes)
    assert "no message" in out(capsys, "sessions", "branch", "notes", "zzz", status=1)[1]


def test_a_backup_restores_everything_and_keeps_the_old_aside(
    notes: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "all.zip"
    written = json.loads(out(capsys, "backup", str(file), "--json")[0])
    assert written == {"file": str(file), "bytes": file.stat().st_size, "sessions": 1}
    assert "exists" in out(capsys, "backup", str(file), status=2)[1]
    store.create_session("later")
    store.close()
    assert "--replace" in out(capsys, "restore", str(file), status=2)[1]
    assert "restored 1 session" in out(capsys, "restore", str(file), "--replace")[1]
    assert "notes" in out(capsys, "sessions", "list")[0]
    assert "no file" in out(capsys, "restore", "nope.zip", status=2)[1]


def test_verify_says_that_all_is_well_or_what_is_not(
    notes: str, store: Store, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert out(capsys, "verify")[0] == "1 session: every message and every saved state is as it was written\n"
    store.close()
    import sqlite3

    with sqlite3.connect(paths.database) as connection:
        connection.execute("UPDATE messages SET content = 'My dog is called Rex.' WHERE role = 'user'")
    connection.close()
    text, error = out(capsys, "verify", status=1)
    assert text.count("\n") >= 1
    assert "fault" in error
    assert json.loads(out(capsys, "verify", "--json", status=1)[0])["faults"]


@pytest.mark.parametrize("verb", ["show", "export"])
def test_an_answer_that_a_crash_cut_off_is_shown(
    verb: str, notes: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    record = store.session(notes)
    store.append(record.id, role="user", content="And then?", reason="complete", chain="c9")
    store.write_draft(
        record.id,
        parent=store.session(notes).tip,
        content="Then the light went",
        ids=[1, 2],
        prompt_ids=[],
        model="m",
        fingerprint="f",
    )
    assert "Then the light went" in out(capsys, "sessions", verb, notes)[0]
