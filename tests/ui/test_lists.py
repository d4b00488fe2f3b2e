"""The screens beside the chat by keys: sessions, checkpoints, memory, help, palette, themes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infinichat.config import Settings, UiSettings, load_settings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import ModelNotFoundError
from infinichat.paths import Paths
from infinichat.protocols import Engine
from infinichat.store import Store
from infinichat.ui.worker import Progress
from tests.ui.acting import (
    ListCatalog,
    handled,
    idle,
    press,
    say,
    screen_text,
    shows,
    shows_no,
    toasts,
    wait_until,
)

Make = Callable[..., Any]
Running = Callable[..., Any]


def fill(store: Store) -> dict[str, str]:
    """Three sessions with a few words each; ids by name."""
    ids = {}
    for name, words in (("dogs", "Biscuit is a beagle"), ("sea", "the lighthouse keeper"), ("tea", "oolong")):
        record = store.create_session(name)
        store.append(record.id, role="user", content=words, reason="complete", chain="")
        ids[name] = record.id
    return ids


async def open_list(pilot: Any) -> None:
    await press(pilot, "f2")
    await wait_until(pilot, lambda: pilot.app.screen.id == "sessions" and pilot.app.screen._records)


async def test_every_word_ever_said_is_found_and_enter_goes_to_it(
    make: Make, running: Running, store: Store
) -> None:
    ids = fill(store)
    app = make()
    async with running(app) as pilot:
        await open_list(pilot)
        await press(pilot, *"lighth")
        await shows(pilot, "Words")
        await shows(pilot, "the lighthouse keeper")
        await shows_no(pilot, "oolong")
        await press(pilot, "down", "enter")
        await wait_until(pilot, lambda: app.screen is app.chat and app.chat.session_id == ids["sea"])
        await idle(pilot)
        await shows(pilot, "the lighthouse keeper")


@pytest.mark.parametrize("query", ['"', "a OR", "(", "*", "NEAR(", "x:y", "'; DROP", "\\"])
async def test_a_search_for_anything_never_fails(
    make: Make, running: Running, store: Store, query: str
) -> None:
    fill(store)
    app = make()
    async with running(app) as pilot:
        await open_list(pilot)
        app.screen.query_one("#search").value = query
        await handled(pilot)
        assert app.is_running
        assert app.screen.id == "sessions"


async def test_a_session_is_renamed_pinned_deleted_and_brought_back(
    make: Make, running: Running, store: Store
) -> None:
    ids = fill(store)
    app = make()
    async with running(app) as pilot:
        await open_list(pilot)
        await press(pilot, *"tea")
        await wait_until(pilot, lambda: list(app.screen._records) == [ids["tea"]])
        await press(pilot, "ctrl+r")
        await shows(pilot, "Rename the session")
        await press(pilot, "ctrl+u", *"best tea", "enter")
        await wait_until(pilot, lambda: store.session(ids["tea"]).name == "best tea")
        await press(pilot, "ctrl+t")
        await wait_until(pilot, lambda: store.session(ids["tea"]).pinned and "★" in screen_text(app))
        await press(pilot, "ctrl+d")
        await wait_until(pilot, lambda: store.find_session("best tea") is None)
        await wait_until(pilot, lambda: "Ctrl+Z brings it back" in toasts(app))
        await press(pilot, "ctrl+z")
        await wait_until(pilot, lambda: store.find_session("best tea") is not None)


async def test_a_name_that_is_taken_is_refused_with_a_sentence(
    make: Make, running: Running, store: Store
) -> None:
    ids = fill(store)
    app = make()
    async with running(app) as pilot:
        await say(pilot, "/rename dogs")
        await shows(pilot, "! ")
        assert store.session(ids["dogs"]).name == "dogs"
        assert app.chat.prompt.text == "/rename dogs"


async def test_deleting_the_open_session_goes_to_another_one(
    make: Make, running: Running, store: Store
) -> None:
    record = store.create_session("open")
    fill(store)
    app = make(session=record)
    async with running(app) as pilot:
        await open_list(pilot)
        await press(pilot, *"open")
        await wait_until(pilot, lambda: list(app.screen._records) == [record.id])
        await press(pilot, "ctrl+d")
        await wait_until(pilot, lambda: store.find_session("open") is None)
        await press(pilot, "escape")
        await wait_until(pilot, lambda: app.chat.session_id != record.id)
        await idle(pilot)


async def test_a_new_session_is_one_key_away(make: Make, running: Running, store: Store) -> None:
    app = make()
    async with running(app) as pilot:
        first = app.chat.session_id
        await press(pilot, "ctrl+n")
        await wait_until(pilot, lambda: app.chat.session_id != first and app.chat.report is not None)
        await say(pilot, "hi")
        await idle(pilot)
        assert [m.content for m in store.path(app.chat.session_id)] == ["hi", "Hello!"]
        assert store.path(first) == []


async def test_switching_the_session_while_it_answers_keeps_the_partial_answer(
    make: Make, running: Running, store: Store
) -> None:
    ids = fill(store)
    app = make(ScriptedEngine(["word " * 200], tokens_per_s=150))
    async with running(app) as pilot:
        first = app.chat.session_id
        await say(pilot, "go")
        await shows(pilot, "word word")
        await say(pilot, "/open dogs")
        await wait_until(pilot, lambda: app.chat.session_id == ids["dogs"] and app.chat.report is not None)
        assert store.path(first)[-1].reason == "stopped"
        await shows_no(pilot, "word word")


# -- checkpoints


async def open_models(pilot: Any) -> None:
    await press(pilot, "f3")
    await wait_until(pilot, lambda: pilot.app.screen.id == "models" and pilot.app.screen._entries)


async def test_the_checkpoints_say_what_they_are(make: Make, running: Running) -> None:
    app = make(ScriptedEngine(["x"], name="small-infini"))
    async with running(app, (110, 24)) as pilot:
        await open_models(pilot)
        await shows(pilot, "in use", "installed", "available", "memory trained", "sliding window", "98.4 MB")
        await shows(pilot, "passkey at 1M 94 %")
        await press(pilot, "down")
        await shows(pilot, "forgets what leaves the window")


async def test_switching_streams_the_session_into_the_other_checkpoint(
    make: Make, running: Running, store: Store
) -> None:
    def load(model: str | None, progress: Progress) -> Engine:
        return ScriptedEngine([f"I am {model}."], name=model or "small-infini")

    app = make(load)
    async with running(app) as pilot:
        await say(pilot, "who?")
        await idle(pilot)
        seen = app.chat.status.status.tokens_seen
        await open_models(pilot)
        await press(pilot, "down", "enter")
        await wait_until(pilot, lambda: app.chat.engine_info.name == "plain")
        await wait_until(pilot, lambda: not app.chat.turns._turns)
        assert store.session(app.chat.session_id).model == "plain"
        assert app.chat.status.status.tokens_seen == seen
        await say(pilot, "and now?")
        await idle(pilot)
        assert store.path(app.chat.session_id)[-1].content == "I am plain."
        assert store.path(app.chat.session_id)[-1].model == "plain"


async def test_what_a_checkpoint_took_goes_back_when_another_one_is_in_use(
    make: Make, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[ScriptedEngine] = []
    closed_then: list[list[bool]] = []
    monkeypatch.setattr(
        "infinichat.ui.worker._give_back_memory",
        lambda: closed_then.append([engine.closed for engine in engines]),
    )

    def load(model: str | None, progress: Progress) -> Engine:
        engines.append(ScriptedEngine(["x"], name=model or "small-infini"))
        return engines[-1]

    app = make(load)
    async with running(app) as pilot:
        assert closed_then == []
        await say(pilot, "/model plain")
        await idle(pilot)
        await wait_until(pilot, lambda: closed_then == [[True, False]])


async def test_a_checkpoint_that_is_not_here_is_pulled_and_then_used(make: Make, running: Running) -> None:
    catalog = ListCatalog(go_on=False)
    engines = {}

    def load(model: str | None, progress: Progress) -> Engine:
        engines[model] = ScriptedEngine(["x"], name=model or "small-infini")
        return engines[model]

    app = make(load, catalog=catalog)
    async with running(app) as pilot:
        await open_models(pilot)
        await press(pilot, "down", "down", "enter")
        await shows(pilot, "fetching large-infini.gguf")
        catalog.go_on.set()
        await wait_until(pilot, lambda: app.chat.engine_info.name == "large-infini")
        assert catalog.pulled == ["large-infini"]


async def test_a_pull_is_stopped_with_escape_and_the_next_escape_leaves(make: Make, running: Running) -> None:
    catalog = ListCatalog(go_on=False)
    app = make(catalog=catalog)
    async with running(app) as pilot:
        await open_models(pilot)
        await press(pilot, "down", "down", "p")
        await shows(pilot, "fetching")
        await press(pilot, "escape")
        await wait_until(pilot, lambda: "pulling again goes on" in toasts(app))
        assert app.screen.id == "models"
        await press(pilot, "escape")
        await wait_until(pilot, lambda: app.screen is app.chat)
        assert catalog.pulled == []


async def test_the_first_start_without_weights_shows_what_can_be_fetched(make: Make) -> None:
    def load(model: str | None, progress: Progress) -> Engine:
        raise ModelNotFoundError("The base weights are not on this machine.")

    app = make(load)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: app.screen.id == "models")
        await handled(pilot)
        await press(pilot, "escape")
        await shows(pilot, "The base weights are not on this machine.")


async def test_a_model_that_cannot_be_loaded_leaves_the_one_there_is(
    make: Make, running: Running, store: Store
) -> None:
    def load(model: str | None, progress: Progress) -> Engine:
        if model == "broken":
            raise ModelNotFoundError("There is no model 'broken'.")
        return ScriptedEngine(["still here"], name="small-infini")

    app = make(load)
    async with running(app) as pilot:
        await say(pilot, "/model broken")
        await shows(pilot, "There is no model 'broken'.")
        await idle(pilot)
        await shows(pilot, "● small-infini")
        await say(pilot, "hi")
        await idle(pilot)
        assert store.path(app.chat.session_id)[-1].content == "still here"


# -- memory, help, palette, themes


async def test_the_memory_screen_has_the_layers_and_the_honest_words(make: Make, running: Running) -> None:
    app = make(ScriptedEngine(["x"]))
    async with running(app, (100, 40)) as pilot:
        await say(pilot, "hi")
        await idle(pilot)
        await press(pilot, "f4")
        await wait_until(pilot, lambda: app.screen.id == "memory")
        await shows(pilot, "saturation", "18", "lossy")


async def test_an_untrained_memory_says_so_everywhere(make: Make, running: Running) -> None:
    app = make(ScriptedEngine(["x"], trained=False))
    async with running(app, (100, 40)) as pilot:
        await shows(pilot, "memory off")
        await shows(pilot, "forgets")
        await press(pilot, "f4")
        await shows(pilot, "sliding window")


async def test_help_has_every_command_and_escape_leaves_it(make: Make, running: Running) -> None:
    app = make()
    async with running(app, (100, 70)) as pilot:
        await press(pilot, "f1")
        await shows(pilot, "Commands")
        await shows(pilot, "/read FILE…", "/regenerate", "/export", "Ctrl+Q")
        await press(pilot, "escape")
        await wait_until(pilot, lambda: app.screen is app.chat)


async def test_the_palette_runs_a_command(make: Make, running: Running) -> None:
    app = make()
    async with running(app) as pilot:
        await press(pilot, "ctrl+p")
        await wait_until(pilot, lambda: app.screen is not app.chat)
        await press(pilot, *"memory")
        await shows(pilot, "layer by layer")
        await press(pilot, "enter")
        await wait_until(pilot, lambda: app.screen.id == "memory")


async def test_a_theme_is_kept_for_the_next_start(make: Make, running: Running, paths: Paths) -> None:
    app = make()
    async with running(app) as pilot:
        await say(pilot, "/theme nord")
        await wait_until(pilot, lambda: load_settings(paths).ui.theme == "nord")
    again = make(settings=Settings(ui=UiSettings(theme="nord")))
    async with running(again):
        assert again.theme == "nord"


async def test_keys_are_remapped_by_the_key_map(make: Make, running: Running, paths: Paths) -> None:
    paths.keymap.parent.mkdir(parents=True)
    paths.keymap.write_text('sessions = "f9"\n')
    app = make()
    async with running(app) as pilot:
        await press(pilot, "f9")
        await wait_until(pilot, lambda: app.screen.id == "sessions")
