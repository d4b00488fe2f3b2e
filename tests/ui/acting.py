"""What the tests of the screens do again and again: wait, type, look at the screen, and a list of
checkpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from textual.pilot import Pilot
from textual.strip import Strip

from infinichat.errors import CancelledError
from infinichat.protocols import CancelFlag
from infinichat.ui.app import InfiniChatApp
from infinichat.ui.catalog import CatalogEntry, PullReport

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
    """Checkpoints from a list. A pull goes on in steps until it is cancelled or complete."""

    def __init__(self, *, steps: int = 3, step_s: float = 0.0) -> None:
        self.steps = steps
        self.step_s = step_s
        self.pulled: list[str] = []

    def entries(self) -> list[CatalogEntry]:
        return list(ENTRIES)

    def pull(self, name: str, *, report: PullReport, cancel: CancelFlag) -> None:
        for step in range(self.steps):
            if cancel.is_set():
                raise CancelledError("stopped")
            report(f"fetching {name}.gguf", step * 1_000_000, self.steps * 1_000_000)
            time.sleep(self.step_s)
        self.pulled.append(name)


async def wait_until(pilot: Pilot[Any], true: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Let the app run until this holds. (``pilot.pause()`` waits for an idle processor, which a streaming
    answer is not; it costs up to a second then.)"""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain; the screen:\n{screen_text(pilot.app)}"
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)


async def idle(pilot: Pilot[Any]) -> None:
    """Wait until nothing is being answered or read."""
    chat = pilot.app.chat  # type: ignore[attr-defined]
    await wait_until(pilot, lambda: not chat.turns.busy and chat.turns.running is None)


async def say(pilot: Pilot[Any], text: str) -> None:
    """Put a text into the prompt and press Enter. (Typing key by key is tested once and is slow.)"""
    pilot.app.chat.prompt.set_text(text)  # type: ignore[attr-defined]
    await asyncio.sleep(0.02)
    if pilot.app.chat.completions.is_open:  # type: ignore[attr-defined]
        await pilot.press("escape")
    await pilot.press("enter")
    await asyncio.sleep(0.02)


def strips(app: Any) -> list[Strip]:
    """The lines of the screen as they go to the terminal."""
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
