"""The app under test: a real store, a real session, a scripted engine, a fixed clock, no blinking cursor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from infinichat.config import Settings, UiSettings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.paths import Paths
from infinichat.store import SessionRecord, Store
from infinichat.ui.app import InfiniChatApp, make_app
from infinichat.ui.worker import LoadEngine
from tests.ui.acting import NOW, ListCatalog, wait_until

MakeApp = Callable[..., InfiniChatApp]


@pytest.fixture
def store(paths: Paths) -> Iterator[Store]:
    with Store.open(paths) as opened:
        yield opened


@pytest.fixture
def make(paths: Paths, store: Store) -> Iterator[MakeApp]:
    """``make(engine or load function, session=..., catalog=..., model=...)``; the workers end with the
    test."""
    made: list[InfiniChatApp] = []

    def build(
        engine: ScriptedEngine | LoadEngine | None = None,
        *,
        session: SessionRecord | None = None,
        catalog: ListCatalog | None = None,
        model: str | None = None,
        settings: Settings | None = None,
    ) -> InfiniChatApp:
        engine = engine if engine is not None else ScriptedEngine(["Hello!"])
        load: LoadEngine = (
            (lambda _model, _progress: engine) if isinstance(engine, ScriptedEngine) else engine
        )
        app = make_app(
            store,
            session or store.create_session(),
            paths=paths,
            settings=settings or Settings(ui=UiSettings(theme="infinichat")),
            model=model,
            load_engine=load,
            catalog=catalog or ListCatalog(),
        )
        app.chat.services = app.services = replace(app.services, now=lambda: NOW, rss=lambda: 312_000_000)
        app.animation_level = "none"
        made.append(app)
        return app

    yield build
    for app in made:
        app.services.worker.close()


@asynccontextmanager
async def _running(app: InfiniChatApp, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Pilot[None]]:
    async with app.run_test(size=size) as pilot:
        app.chat.prompt.cursor_blink = False
        await wait_until(pilot, lambda: app.chat.report is not None or app.chat.status.status.problem)
        yield pilot


@pytest.fixture
def running() -> Callable[..., object]:
    """``async with running(app, size) as pilot``: the model is loaded (or has failed to load)."""
    return _running
