"""What the tests of the screens do again and again: wait, type, look at the screen, and a list of
checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from textual._context import visible_screen_stack
from textual.pilot import Pilot
from textual.strip import Strip

from infinichat.errors import CancelledError
from infinichat.protocols import CancelFlag
from infinichat.ui.app import InfiniChatApp
from infinichat.ui.catalog import CatalogEntry, PullReport
from infinichat.ui.window import PAGE

NOW = 1_760_000_000.0

ENTRIES = (
    CatalogEntry(
        "small-infini",
        installed=True,
        trained=True,
        description="A small model with a recall memory in layer 18.",
        size=105_000_000,
        default=True,
        recall={"passkey at 1M": 0.94, "8 facts": 0.91},
    ),
    CatalogEntry("plain", installed=True, trained=False, description="A plain model.", size=98_400_000),
    CatalogEntry("large-infini", installed=False, trained=True, description="Larger.", size=260_000_000),
)


class ListCatalog:
    """Checkpoints from a list. A pull reports that it has begun, and is complete when ``go_on`` is set."""

    def __init__(self, *, go_on: bool = True) -> None:
        self.go_on = threading.Event()
        if go_on:
            self.go_on.set()
        self.pulled: list[str] = []

    def entries(self) -> list[CatalogEntry]:
        return list(ENTRIES)

    def pull(self, name: str, *, report: PullReport, cancel: CancelFlag) -> None:
        report(f"fetching {name}.gguf", 1_000_000, 3_000_000)
        while not self.go_on.wait(0.01):
            if cancel.is_set():
                raise CancelledError("stopped")
        self.pulled.append(name)


async def wait_until(pilot: Pilot[Any], true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Let the app run until this holds. (``pilot.pause()`` guesses from the processor's idleness, and on a
    loaded machine an app that was not given the processor looks idle.)"""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain; the screen:\n{screen_text(pilot.app)}"
        await asyncio.sleep(0.01)


async def shows(pilot: Pilot[Any], *texts: str) -> None:
    """Wait until all of these are on the screen."""
    await wait_until(pilot, lambda: all(text in screen_text(pilot.app) for text in texts))


async def shows_no(pilot: Pilot[Any], text: str) -> None:
    """Wait until this is off the screen."""
    await wait_until(pilot, lambda: text not in screen_text(pilot.app))


async def handled(pilot: Pilot[Any]) -> None:
    """Wait until the app has done what was asked of it before: a mark goes the way of a key, through the
    queue of the app, of what has the focus and of everything around it up to the screens, three times, for
    what that asked of others."""
    app = pilot.app
    for _ in range(3):
        focused = [app.focused, *app.focused.ancestors] if app.focused is not None else []
        for pump in [app, *focused, *app.screen_stack]:
            if pump.is_running:
                passed = asyncio.Event()
                pump.call_later(passed.set)
                await _while_running(pump, passed)


async def _while_running(pump: Any, passed: asyncio.Event) -> None:
    while pump.is_running and not passed.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(passed.wait(), 0.1)


async def still(pilot: Pilot[Any]) -> None:
    """Wait until the screen no longer changes by itself and everything on it is mounted and laid out."""
    same, seen = 0, ""
    while same < 5:
        await handled(pilot)
        await asyncio.sleep(0.05)
        ready = all(w.is_mounted and not w._layout_required for w in pilot.app.screen.walk_children())
        now = screen_text(pilot.app) if ready else ""
        same, seen = (same + 1 if now and now == seen else 0), now


async def press(pilot: Pilot[Any], *keys: str) -> None:
    """Press keys; each one is handled before the next."""
    for key in keys:
        await pilot.press(key)
        await handled(pilot)


async def click(pilot: Pilot[Any], widget: Any, *, offset: tuple[int, int]) -> None:
    """Click on a widget, and wait until that is handled."""
    await wait_until(pilot, lambda: widget.region.area)
    await pilot.click(widget, offset=offset)
    await handled(pilot)


async def page_mounted(pilot: Pilot[Any], count: int = PAGE) -> None:
    """Wait until the newest page of a long session is mounted and laid out, and the app has settled on it."""
    transcript = pilot.app.chat.transcript  # type: ignore[attr-defined]
    await wait_until(
        pilot,
        lambda: (
            len(transcript.entries) == count
            and not transcript._paging
            and all(entry.region.area for entry in transcript.entries)
            and transcript.scroll_y == transcript.max_scroll_y > 0
        ),
    )
    await handled(pilot)


async def idle(pilot: Pilot[Any]) -> None:
    """Wait until nothing is being answered, read or loaded, and the screen shows it."""
    chat = pilot.app.chat  # type: ignore[attr-defined]
    await handled(pilot)
    await wait_until(pilot, lambda: not chat.turns._turns and chat.turns.running is None)
    await handled(pilot)


async def say(pilot: Pilot[Any], text: str) -> None:
    """Put a text into the prompt and press Enter. (Typing key by key is tested once and is slow.)"""
    pilot.app.chat.prompt.set_text(text)  # type: ignore[attr-defined]
    await handled(pilot)
    if pilot.app.chat.completions.is_open:  # type: ignore[attr-defined]
        await press(pilot, "escape")
    await press(pilot, "enter")


def strips(app: Any) -> list[Strip]:
    """The lines of the screen as they go to the terminal."""
    # Without it a dialog is rendered, and kept rendered, on nothing.
    visible_screen_stack.set(app._background_screens)
    return list(app.screen._compositor.render_strips())


def screen_text(app: Any) -> str:
    """What a person reads on the screen."""
    return "\n".join(strip.text.rstrip() for strip in strips(app))


def toasts(app: Any) -> str:
    """What the notifications say, unwrapped."""
    return "\n".join(notification.message for notification in app._notifications)


def notes(app: InfiniChatApp) -> list[str]:
    """The app's own sentences in the conversation."""
    from infinichat.ui.widgets.entry import Note

    return [note.sentence for note in app.chat.transcript.query(Note)]
