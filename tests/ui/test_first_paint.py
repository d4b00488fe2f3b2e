"""What is typed before the app has begun: sent at the first paint, when neither transcript nor model is
there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.store import Store
from tests.ui.acting import handled, idle, notes, press, shows, wait_until

Make = Callable[..., Any]


@pytest.mark.parametrize("steps", [0, 1])
async def test_a_message_that_is_faster_than_the_transcript_or_the_model_is_answered_below_it(
    make: Make, store: Store, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = store.create_session()
    store.append(record.id, role="user", content="once", reason="complete", chain="")
    store.append(record.id, role="assistant", content="upon a time", reason="stop", chain="")
    app = make(ScriptedEngine(["Hello!"]), session=record)
    held: list[Callable[[], Any]] = []
    later = app.chat.call_after_refresh

    def hold(callback: Callable[[], Any], *args: Any) -> Any:
        ours = getattr(callback, "__name__", "") in ("_begin", "load")
        return held.append(callback) if ours else later(callback, *args)

    monkeypatch.setattr(app.chat, "call_after_refresh", hold)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: held)
        for _ in range(steps):
            app.chat.call_later(held.pop(0))
            await wait_until(pilot, lambda: held)
        await press(pilot, "h", "i", "enter")
        await shows(pilot, "upon a time", "hi")
        monkeypatch.undo()
        for begin in held:
            app.chat.call_later(begin)
        await handled(pilot)
        await idle(pilot)
        assert [m.content for m in store.path(record.id)] == ["once", "upon a time", "hi", "Hello!"]
        await shows(pilot, "upon a time", "hi", "Hello!")
        assert not [note for note in notes(app) if "streamed again" not in note]
        assert app.chat.prompt.text == ""
