"""What a process that has ended had sent is said when the session is opened or shown."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from infinichat.cli.main import main
from infinichat.engine.scripted import ScriptedEngine
from infinichat.paths import Paths
from infinichat.session import open_session, recover_interrupted
from infinichat.store import Store
from infinichat.store import waiting as waiting_module


@pytest.fixture
def dead(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store whose messages are sent by a process that has ended."""
    gone = {"pid": 1, "start": "another boot:1", "host": socket.gethostname()}
    monkeypatch.setattr(waiting_module, "this_process", lambda: gone)
    with Store.open(paths) as store:
        yield store


def words(store: Store, session_id: str) -> list[str]:
    return [message.content for message in store.path(session_id)]


def test_an_edit_takes_its_place_and_the_old_branch_stays(dead: Store) -> None:
    session = dead.create_session().id
    first = dead.append(session, role="user", content="befor", reason="complete", chain="")
    dead.append(session, role="assistant", content="?", reason="stop", chain="")
    dead.put_waiting(session, "before", instead_of=first.id)
    dead.put_waiting(session, "and after")
    last = recover_interrupted(dead, session)
    assert last is not None
    assert (last.role, words(dead, session)) == ("user", ["before", "and after"])
    [before, _] = dead.path(session)
    assert dead.siblings(first.id, session) == [first.id, before.id]
    assert recover_interrupted(dead, session) is None


def test_what_was_said_and_answered_in_part_is_not_said_again(dead: Store) -> None:
    session = dead.create_session().id
    said = dead.put_waiting(session, "go")
    message = dead.append(session, role="user", content="go", reason="complete", chain="", waited=said)
    answer = {"content": "going", "ids": (5,), "prompt_ids": (), "model": "m", "fingerprint": "f"}
    dead.write_draft(session, parent=message.id, **answer)  # type: ignore[arg-type]
    cut = recover_interrupted(dead, session)
    assert cut is not None
    assert (cut.role, cut.reason) == ("assistant", "interrupted")
    assert words(dead, session) == ["go", "going"]


def test_opening_the_session_says_it_and_a_model_can_answer(dead: Store) -> None:
    session = dead.create_session("s").id
    dead.put_waiting(session, "hello?")
    with open_session("s", engine=ScriptedEngine(["Yes."]), store=dead) as opened:
        assert [m.content for m in opened.messages()] == ["hello?"]
        for _ in opened.regenerate():
            pass
    assert words(dead, session) == ["hello?", "Yes."]
    assert dead.session(session).title == "hello?"


def test_showing_the_session_has_it_without_a_model(dead: Store, capsys: pytest.CaptureFixture[str]) -> None:
    dead.put_waiting(dead.create_session("s").id, "hello?")
    assert main(["sessions", "show", "s"]) == 0
    assert "hello?" in capsys.readouterr().out
