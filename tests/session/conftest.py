"""Sessions on a scripted engine with greedy decoding, here and in another home to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infinichat.config import Settings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.messages import SamplingOptions
from infinichat.paths import Paths
from infinichat.session import ChatSession, answering, open_session

GREEDY = Settings(sampling=SamplingOptions(temperature=0))

Open = Callable[..., ChatSession]


@pytest.fixture(autouse=True)
def every_id_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are not held back, so that a test can stop an answer after a given one."""
    monkeypatch.setattr(answering, "FLUSH_EVERY_S", 0.0)


@pytest.fixture
def opened(paths: Paths) -> Iterator[Open]:
    """``opened("name", engine)``: a session with greedy decoding; what is still open is closed at the end."""
    sessions: list[ChatSession] = []

    def call(
        name: str | None = "notes", engine: ScriptedEngine | None = None, **options: object
    ) -> ChatSession:
        options.setdefault("paths", paths)
        session = open_session(
            name,
            engine=engine or ScriptedEngine(),
            settings=GREEDY,
            **options,  # type: ignore[arg-type]
        )
        sessions.append(session)
        return session

    yield call
    for session in sessions:
        session.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[[str], Paths]:
    """Another home, for a conversation to compare with."""

    def call(name: str) -> Paths:
        root = tmp_path / name
        return Paths(root / "data", root / "config", root / "cache", root / "state")

    return call
