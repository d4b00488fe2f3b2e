"""The line above the prompt that says what is going on: reading, replaying, answering, pulling. Empty
otherwise."""

from __future__ import annotations

import time

from textual.content import Content
from textual.widgets import Static

from infinichat.messages import PrefillProgress
from infinichat.text import figures
from infinichat.text.harmless import one_line

_STAGES = {
    "prompt": "reading your message",
    "replay": "reading the transcript again",
    "document": "reading",
}

# A prompt that is read faster than this needs no progress line. Seconds.
_PATIENCE = 0.3

# A fast model reports hundreds of segments a second, and nobody reads that fast.
_EVERY_S = 0.1

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class ActivityLine(Static):
    """One line, hidden while nothing happens."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(markup=False, id=id)
        self.display = False
        self._since = 0.0
        self._painted = 0.0
        self._text = ""
        self._frame = 0

    def on_mount(self) -> None:
        self._spinner = self.set_interval(0.12, self._spin, pause=True)

    def begin(self, text: str) -> None:
        """Something has begun; the line appears with it."""
        self._since = time.monotonic()
        self._say(f"{text} · esc stops")

    def progress(self, event: PrefillProgress) -> None:
        """Tokens stream into the model."""
        now = time.monotonic()
        if (event.stage == "prompt" and now - self._since < _PATIENCE) or now - self._painted < _EVERY_S:
            return
        self._painted = now
        self._say(describe(event, self.app.size.width - 4))

    def done(self) -> None:
        """Nothing is going on."""
        self.display = False
        self._text = ""
        self._spinner.pause()

    def _say(self, text: str) -> None:
        if self.display and text == self._text:
            return
        self._text = text
        self.display = True
        if self.app.animation_level != "none":
            self._spinner.resume()
        self._paint()

    def _spin(self) -> None:
        self._frame = (self._frame + 1) % len(_FRAMES)
        self._paint()

    def _paint(self) -> None:
        line = Content.assemble((_FRAMES[self._frame], "$text-accent"), " ", self._text)
        # The line is one row high whatever it says: no need to lay the screen out again.
        self.update(line, layout=False)


def describe(event: PrefillProgress, width: int) -> str:
    """ "reading moby.txt ▰▰▰▱▱▱▱▱▱▱ 31 %  38.2k of 123k tokens  1,203 tok/s  1 min left"."""
    fraction = event.done / max(1, event.total)
    what = _STAGES[event.stage] + (f" {one_line(event.title, 24)}" if event.title else "")
    parts = [f"{what} {figures.bar(fraction, 10)} {figures.percent(fraction)}"]
    if event.seconds_left is not None and event.done < event.total:
        parts.append(f"{figures.duration(event.seconds_left)} left")
    if event.tokens_per_s > 0:
        parts.append(f"{event.tokens_per_s:,.0f} tok/s")
    parts.append(f"{figures.tokens(event.done)} of {figures.tokens(event.total)} tokens")
    parts.append("esc stops")
    while len(parts) > 1 and len("  ".join(parts)) > width:
        parts.pop(-2 if len(parts) > 2 else -1)
    return "  ".join(parts)
