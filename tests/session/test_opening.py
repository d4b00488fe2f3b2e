"""Opening: which session, which engine, which system text, and what is left behind when it does not work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from infinichat.config import Settings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import ModelNotFoundError, SessionLockedError, UsageError
from infinichat.paths import Paths
from infinichat.session import ChatSession, open_session, recover_interrupted
from infinichat.store import Store
from tests.session.talking import said, transcript

Open = Callable[..., ChatSession]


class Loader:
    """Stands in for ``engine.load``: makes scripted engines and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.engines: list[ScriptedEngine] = []
        self.missing: set[str] = set()

    def load_engine(self, model: str | None, settings: Settings, **options: Any) -> ScriptedEngine:
        self.asked.append(model)
        if model in self.missing:
            raise ModelNotFoundError(f"No checkpoint {model!r}. Next: infinichat models list.")
        self.engines.append(ScriptedEngine(name=model or "the-default"))
        return self.engines[-1]


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    module = ModuleType("infinichat.engine.load")
    module.load_engine = loader.load_engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "infinichat.engine.load", module)
    return loader


def test_a_session_is_made_when_there_is_none_and_found_when_there_is(opened: Open) -> None:
    first = opened("trip")
    said(first.send("Hi"))
    first.close()
    assert opened("trip").id == first.id


def test_without_a_name_it_is_the_last_one_used(opened: Open) -> None:
    opened("one").close()
    two = opened("two")
    two.close()
    again = opened(None)
    assert again.name == "two"
    again.close()
    opened("one").close()
    assert opened(None).name == "one"


def test_the_first_session_gets_a_name(opened: Open) -> None:
    assert opened(None).name == "chat-1"
    assert opened(None, new=True).name == "chat-2"


def test_new_with_a_name_that_is_taken_is_refused(opened: Open) -> None:
    opened("one").close()
    with pytest.raises(UsageError, match="one"):
        opened("one", new=True)


def test_the_model_is_the_asked_one_then_the_sessions_then_the_settings(paths: Paths, loader: Loader) -> None:
    settings = Settings(model="from-settings")
    open_session("s", paths=paths, settings=settings).close()
    open_session("s", model="asked", paths=paths, settings=settings).close()
    open_session("s", paths=paths, settings=settings).close()
    assert loader.asked == ["from-settings", "asked", "asked"]
    assert [engine.closed for engine in loader.engines] == [True, True, True]


def test_the_default_model_is_remembered_by_its_name(paths: Paths, loader: Loader) -> None:
    with open_session("s", paths=paths) as session:
        assert session.record.model == "the-default"


def test_a_path_is_remembered_from_any_folder(
    paths: Paths, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.gguf"
    file.touch()
    monkeypatch.chdir(tmp_path)
    with open_session("s", model="weights.gguf", paths=paths) as session:
        assert session.record.model == str(file)
    with open_session("s", model="owner/name", paths=paths) as session:
        assert session.record.model == "owner/name"


def test_an_engine_that_was_given_is_not_closed(opened: Open) -> None:
    engine = ScriptedEngine()
    opened("s", engine).close()
    assert not engine.closed


def test_after_a_switch_a_loaded_engine_is_closed_and_the_new_one_belongs_to_the_session(
    paths: Paths, loader: Loader
) -> None:
    new = ScriptedEngine(name="b")
    with open_session("s", paths=paths) as session:
        list(session.switch_model(new))
        assert loader.engines[0].closed
        assert not new.closed
    assert new.closed


def test_a_model_that_cannot_be_loaded_leaves_no_empty_session(paths: Paths, loader: Loader) -> None:
    loader.missing = {"gone"}
    with pytest.raises(ModelNotFoundError):
        open_session("s", model="gone", paths=paths)
    with Store.open(paths) as store:
        assert store.sessions() == []


def test_a_checkpoint_that_was_removed_is_named_with_the_session_and_the_way_out(
    paths: Paths, loader: Loader
) -> None:
    open_session("s", model="gone", paths=paths).close()
    loader.missing = {"gone"}
    with pytest.raises(ModelNotFoundError, match="'s' was last used with the checkpoint 'gone'.*--model"):
        open_session("s", paths=paths)
    open_session("s", model="other", paths=paths).close()  # and the lock is free again


def test_the_system_text_belongs_to_a_session_without_messages(opened: Open) -> None:
    session = opened("s", system="Be brief.")
    session.close()
    session = opened("s", system="Be kind.")
    assert session.record.system == "Be kind."
    said(session.send("Hi"))
    session.close()
    opened("s", system="Be kind.").close()
    with pytest.raises(UsageError, match="another system text.*new session"):
        opened("s", system="Be brief.")
    assert opened("s").record.system == "Be kind."


def test_a_store_that_was_given_stays_open(paths: Paths) -> None:
    with Store.open(paths) as store:
        open_session("s", engine=ScriptedEngine(), store=store, settings=Settings()).close()
        assert [record.name for record in store.sessions()] == ["s"]


def test_a_refused_session_leaves_everything_as_it_was(opened: Open, paths: Paths) -> None:
    session = opened("s")
    said(session.send("Hi"))
    before = transcript(session)
    with pytest.raises(SessionLockedError):
        opened("s", system="other")
    said(session.send("still here"))
    assert transcript(session)[: len(before)] == before


def test_another_process_is_refused_with_the_pid(opened: Open, own_home: Path) -> None:
    session = opened("s")
    code = (
        "from infinichat.session import open_session\n"
        "from infinichat.engine.scripted import ScriptedEngine\n"
        "open_session('s', engine=ScriptedEngine())\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 1
    assert "SessionLockedError: The session 's' is open in process" in done.stderr
    assert session.messages() == []


def test_recovering_leaves_a_session_alone_that_is_open(opened: Open) -> None:
    session = opened("s")
    message = session.store.append(session.id, role="user", content="Hi", reason="complete", chain="x")
    session.store.write_draft(
        session.id, parent=message.id, content="a", ids=[97], prompt_ids=[], model="m", fingerprint="f"
    )
    assert recover_interrupted(session.store, session.id) is None
    assert session.store.draft(session.id) is not None
    session.close()
    with Store.open(session.store.paths) as store:
        found = recover_interrupted(store, session.id)
        assert found is not None
        assert (found.content, found.reason) == ("a", "interrupted")
        assert recover_interrupted(store, session.id) is None
