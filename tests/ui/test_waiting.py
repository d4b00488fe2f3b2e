"""A message that was sent before it could be answered is on disk: killed or closed, the next start answers
it."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from infinichat.bench.terminal import Terminal
from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import DiskError
from infinichat.paths import Paths
from infinichat.protocols import Engine
from infinichat.store import Store
from infinichat.ui.worker import Progress
from tests.ui.acting import handled, idle, notes, press, say, shows, wait_until

Make = Callable[..., Any]
Running = Callable[..., Any]

NEVER_LOADS = """
import sys, time
from pathlib import Path
from infinichat.paths import Paths
from infinichat.ui.app import run_app
run_app(session="s", paths=Paths(*map(Path, sys.argv[1:])), load_engine=lambda *_: time.sleep(600))
"""


def waiting(paths: Paths) -> list[str]:
    with sqlite3.connect(paths.database) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM waiting ORDER BY key")]


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process in a pseudo-terminal")
async def test_killed_while_the_model_loads_the_next_start_shows_and_answers_what_was_sent(
    make: Make, running: Running, store: Store, paths: Paths
) -> None:
    record = store.create_session("s")
    folders = (paths.data, paths.config, paths.cache, paths.state)
    environ = {"TERM": "xterm-256color", "PYTHONPATH": ":".join(sys.path)}
    with Terminal([sys.executable, "-c", NEVER_LOADS, *map(str, folders)], environ) as terminal:
        terminal.until("Message…")
        for text in (b"My dog is Biscuit.", b"Who is Biscuit?"):
            terminal.write(text)
            terminal.until(text.split()[-1].decode())
            terminal.forget()
            terminal.write(b"\r")
            terminal.until("waiting: the model is loading")
            terminal.forget()
        # Leaving the block kills it.
    assert store.path(record.id) == []
    app = make(ScriptedEngine(["Your dog."]), session=record)
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "My dog is Biscuit.", "Who is Biscuit?", "Your dog.")
        await idle(pilot)
        assert [(m.role, m.content) for m in store.path(record.id)] == [
            ("user", "My dog is Biscuit."),
            ("user", "Who is Biscuit?"),
            ("assistant", "Your dog."),
        ]
        assert store.session(record.id).title == "My dog is Biscuit."
    assert waiting(paths) == []


async def test_what_is_taken_back_or_answered_no_longer_waits(make: Make, store: Store, paths: Paths) -> None:
    loaded = threading.Event()

    def load(model: str | None, progress: Progress) -> Engine:
        loaded.wait(60)
        return ScriptedEngine(["Hello!"])

    app = make(load)
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "first")
        await say(pilot, "second")
        assert waiting(paths) == ["first", "second"]
        await press(pilot, "escape")
        assert waiting(paths) == ["first"]
        loaded.set()
        await idle(pilot)
        assert waiting(paths) == []
        assert [m.content for m in store.path(app.chat.session_id)] == ["first", "Hello!"]
        assert app.chat.prompt.text == "second"


async def test_what_waits_when_the_app_is_left_is_kept_and_what_no_model_can_answer_is_given_back(
    make: Make, store: Store, paths: Paths
) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def load(model: str | None, progress: Progress) -> Engine:
        loading.set()
        loaded.wait(60)
        raise MemoryError

    app = make(load)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, loading.is_set)
        await say(pilot, "kept")
    threading.Timer(0.2, loaded.set).start()
    app.services.worker.close()
    assert waiting(paths) == ["kept"]

    loaded.set()
    app = make(load)
    async with app.run_test(size=(80, 24)) as pilot:
        await say(pilot, "nobody answers")
        await idle(pilot)
        assert app.chat.prompt.text == "nobody answers"
    assert waiting(paths) == ["kept"]


async def test_an_edit_waits_too(make: Make, running: Running, store: Store, paths: Paths) -> None:
    record = store.create_session("s")
    store.append(record.id, role="user", content="befor", reason="complete", chain="")
    store.append(record.id, role="assistant", content="?", reason="stop", chain="")
    engine = ScriptedEngine(["Hello!"], tokens_per_s=20)
    app = make(engine, session=record)
    async with running(app) as pilot:
        await say(pilot, "/edit before")
        await wait_until(pilot, lambda: waiting(paths) == ["before"])
        await idle(pilot)
    assert waiting(paths) == []


async def test_a_message_that_cannot_be_kept_returns_to_the_prompt(
    make: Make, running: Running, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise DiskError("The disk is full.")

    app = make()
    async with running(app) as pilot:
        monkeypatch.setattr(Store, "put_waiting", full)
        await say(pilot, "hello")
        await handled(pilot)
        assert app.chat.prompt.text == "hello"
        assert notes(app) == ["The disk is full."]
