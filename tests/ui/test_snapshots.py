"""How the screens look, as SVG. ``pytest tests/ui/test_snapshots.py --snapshot-update`` after a change that
was looked at. Everything on them is fixed: words, clock, memory in use, no blinking cursor, no answer that
streams while the picture is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from infinichat.config import Settings, UiSettings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.messages import PrefillProgress
from infinichat.store import SessionRecord, Store
from tests.ui.acting import NOW, ListCatalog, still, wait_until
from tests.ui.acting import press as press_keys

Make = Callable[..., Any]
Compare = Callable[..., bool]
Steps = Callable[[Pilot[Any]], Awaitable[None]]

ANSWER = """Of course. **Biscuit** is a *beagle*, and this is what you told me:

- he is `4` years old
- he likes long walks

```python
def age(born: int, now: int) -> int:
    return now - born
```
"""


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("time.time", lambda: NOW - 7200)
    # No cursor blinks: a picture would have it or not, as time has it.
    monkeypatch.setattr(TextArea, "_toggle_cursor_blink_visible", lambda self: None)
    monkeypatch.setattr(Input, "_toggle_cursor", lambda self: None)


def talk(store: Store) -> SessionRecord:
    """A session with a question, a document and two versions of an answer."""
    record = store.create_session("dogs", model="small-infini")
    store.set_title(record.id, "Biscuit the beagle")

    def add(role: str, content: str, reason: str = "complete", title: str | None = None) -> Any:
        return store.append(
            record.id, role=role, content=content, reason=reason, chain="", title=title, model="small-infini"
        )

    add("document", "It was the best of beagles. " * 400, title="beagles.txt")
    asked = add("user", "What do you know about Biscuit?\n[b]not markup[/b] \x1b[31mnot red")
    add("assistant", "He is a dog.", "stop")
    store.set_tip(record.id, asked.id)
    add("assistant", ANSWER, "stopped")
    return store.session(record.id)


def snapshot(
    compare: Compare, app: Any, steps: Steps | None = None, *, size: tuple[int, int] = (80, 24)
) -> bool:
    async def run_before(pilot: Pilot[Any]) -> None:
        await wait_until(pilot, lambda: app.chat.query("#prompt"))
        entries = min(20, len(app.chat.store.path(app.chat.session_id)))
        await wait_until(pilot, lambda: app.chat.report is not None)
        await wait_until(pilot, lambda: len(app.chat.transcript.entries) >= entries)
        await still(pilot)
        if steps is not None:
            await steps(pilot)
        await still(pilot)

    return compare(app, terminal_size=size, run_before=run_before)


def engine(**kwargs: Any) -> ScriptedEngine:
    return ScriptedEngine(["x"], name="small-infini", **kwargs)


def press(*keys: str, until: str | None = None) -> Steps:
    async def steps(pilot: Pilot[Any]) -> None:
        await press_keys(pilot, *keys)
        if until is not None:
            await wait_until(pilot, lambda: until in (pilot.app.screen.id, type(pilot.app.screen).__name__))

    return steps


def test_an_empty_session(snap_compare: Compare, make: Make) -> None:
    assert snapshot(snap_compare, make(engine()))


def test_an_empty_session_of_an_untrained_checkpoint(snap_compare: Compare, make: Make) -> None:
    assert snapshot(snap_compare, make(engine(trained=False)))


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (40, 12)], ids=["80x24", "160x50", "40x12"])
def test_a_conversation(snap_compare: Compare, make: Make, store: Store, size: tuple[int, int]) -> None:
    assert snapshot(snap_compare, make(engine(), session=talk(store)), size=size)


@pytest.mark.parametrize("theme", ["infinichat-light", "ansi-dark", "gruvbox"])
def test_a_conversation_in_another_theme(snap_compare: Compare, make: Make, store: Store, theme: str) -> None:
    app = make(engine(), session=talk(store), settings=Settings(ui=UiSettings(theme=theme)))
    assert snapshot(snap_compare, app)


def test_a_conversation_without_colour(
    snap_compare: Compare, make: Make, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snapshot(snap_compare, make(engine(), session=talk(store)))


def test_the_cursor_on_a_message(snap_compare: Compare, make: Make, store: Store) -> None:
    assert snapshot(snap_compare, make(engine(), session=talk(store)), press("tab", "up"))


def test_commands_are_offered(snap_compare: Compare, make: Make, store: Store) -> None:
    assert snapshot(snap_compare, make(engine(), session=talk(store)), press("/", "r", "e"))


def test_a_long_message_is_being_written(snap_compare: Compare, make: Make, store: Store) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        pilot.app.chat.prompt.set_text("\n".join(f"line {i}" for i in range(6)))  # type: ignore[attr-defined]

    assert snapshot(snap_compare, make(engine(), session=talk(store)), steps)


def test_a_document_is_being_read(snap_compare: Compare, make: Make, store: Store) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        chat = pilot.app.chat  # type: ignore[attr-defined]
        chat.activity.begin("reading")
        chat.activity.progress(
            PrefillProgress("document", 38_200, 123_000, 1203.0, 70.0, title="moby dick.txt")
        )

    assert snapshot(snap_compare, make(engine(), session=talk(store)), steps)


def test_a_failure_says_the_next_step(snap_compare: Compare, make: Make, store: Store) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.app.chat.say(  # type: ignore[attr-defined]
            "weights.gguf is truncated: 1,000 of 98,362,432 bytes. Next: infinichat models pull", error=True
        )

    assert snapshot(snap_compare, make(engine(), session=talk(store)), steps)


def test_the_sessions(snap_compare: Compare, make: Make, store: Store) -> None:
    record = talk(store)
    other = store.create_session("lighthouse")
    store.append(other.id, role="user", content="Tell me about the sea", reason="complete", chain="")
    store.set_pinned(other.id, True)
    assert snapshot(snap_compare, make(engine(), session=record), press("f2", until="sessions"))


def test_a_search_in_the_sessions(snap_compare: Compare, make: Make, store: Store) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await press("f2", *"beagle", until="sessions")(pilot)
        await wait_until(pilot, lambda: pilot.app.screen.query_one("#list").option_count > 1)  # type: ignore[attr-defined]

    assert snapshot(snap_compare, make(engine(), session=talk(store)), steps, size=(110, 24))


def test_the_checkpoints(snap_compare: Compare, make: Make) -> None:
    assert snapshot(snap_compare, make(engine(), catalog=ListCatalog()), press("f3", until="models"))


def test_a_checkpoint_is_being_pulled(snap_compare: Compare, make: Make) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await press("f3", until="models")(pilot)
        screen: Any = pilot.app.screen
        await wait_until(pilot, lambda: screen._entries)
        screen._progress("fetching large-infini.gguf", 31_000_000, 98_400_000)

    assert snapshot(snap_compare, make(engine(), catalog=ListCatalog()), steps)


def test_the_memory(snap_compare: Compare, make: Make, store: Store) -> None:
    app = make(engine(), session=talk(store))
    assert snapshot(snap_compare, app, press("f4", until="memory"), size=(100, 30))


def test_the_memory_of_an_untrained_checkpoint(snap_compare: Compare, make: Make) -> None:
    assert snapshot(snap_compare, make(engine(trained=False)), press("f4", until="memory"))


def test_the_help(snap_compare: Compare, make: Make) -> None:
    assert snapshot(snap_compare, make(engine()), press("f1", until="HelpScreen"))


def test_editing_a_message(snap_compare: Compare, make: Make, store: Store) -> None:
    app = make(engine(), session=talk(store))
    assert snapshot(snap_compare, app, press("tab", "up", "e", until="TextDialog"))
