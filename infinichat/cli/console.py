"""The three standard streams, with this project's rules: text to stdout, status and progress to stderr.

Everything written through here is made harmless first (see ``text/harmless.py``). Progress is one line that
repaints itself on a terminal, and an occasional plain line elsewhere, so that logs stay readable. No colour
is used, so there is nothing that ``NO_COLOR`` would have to switch off.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from infinichat.cli.text import to_json
from infinichat.text.harmless import columns, visible

# Exit statuses beside 0, 1 and 2: ended by Ctrl+C; the reader of the pipe went away.
INTERRUPTED = 130
PIPE_CLOSED = 141

# Seconds between progress lines where the line cannot repaint itself.
_PLAIN_INTERVAL = 10.0


class Console:
    """What a command prints through and reads from."""

    def __init__(
        self, *, stdin: TextIO | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.stdin = stdin or sys.stdin
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self._painted = 0  # columns of the progress line that is on the screen now
        self._last_plain: float | None = None  # when the last plain progress line was printed

    def __repr__(self) -> str:
        return f"Console(interactive={self.interactive}, live={self.live})"

    @property
    def interactive(self) -> bool:
        """A person types and reads here."""
        return self.stdin.isatty() and self.stdout.isatty()

    @property
    def live(self) -> bool:
        """stderr is a terminal that can repaint a line."""
        return self.stderr.isatty() and os.environ.get("TERM", "") != "dumb"

    def write(self, text: str) -> None:
        """Text to stdout at once, without a newline; the progress line goes away first."""
        self.clear_progress()
        self.stdout.write(visible(text))
        self.stdout.flush()

    def line(self, text: str = "") -> None:
        self.write(text + "\n")

    def raw(self, text: str) -> None:
        """Exact text to a file or pipe; a terminal still gets the harmless form."""
        self.clear_progress()
        self.stdout.write(visible(text) if self.stdout.isatty() else text)
        self.stdout.flush()

    def json(self, value: Any) -> None:
        self.clear_progress()
        self.stdout.write(to_json(value) + "\n")
        self.stdout.flush()

    def status(self, text: str) -> None:
        """A sentence about what is going on, to stderr."""
        self.clear_progress()
        self.stderr.write(visible(text) + "\n")
        self.stderr.flush()

    def fail(self, text: str) -> None:
        self.status(f"infinichat: {text}")

    def progress(self, text: str) -> None:
        """Repaint the progress line; elsewhere print a line for every ten seconds that the work takes."""
        if self.live:
            line = visible(text)[: max(20, _width(self.stderr) - 1)]
            blank = " " * max(0, self._painted - columns(line))
            self.stderr.write(f"\r{line}{blank}")
            self.stderr.flush()
            self._painted = columns(line)
            return
        now = time.monotonic()
        if self._last_plain is None:
            self._last_plain = now
        elif now - self._last_plain >= _PLAIN_INTERVAL:
            self.status(text)
            self._last_plain = now

    def end_progress(self) -> None:
        """Leave the progress line on the screen and go to the next line."""
        if self._painted:
            self._painted = 0
            self.stderr.write("\n")
            self.stderr.flush()

    def clear_progress(self) -> None:
        """Take the progress line off the screen: the work is done."""
        self._last_plain = None
        if self._painted:
            self.stderr.write("\r" + " " * self._painted + "\r")
            self.stderr.flush()
            self._painted = 0

    def piped_text(self) -> str:
        """What was piped into the command; "" when a person is typing or stdin is closed."""
        if self.stdin.closed or self.stdin.isatty():
            return ""
        return self.stdin.read()

    def confirm(self, question: str, *, default: bool) -> bool:
        """A yes-or-no question on stderr; without a person at the keyboard the answer is no."""
        if not (self.stdin.isatty() and self.stderr.isatty()):
            return False
        self.clear_progress()
        self.stderr.write(f"{visible(question)} [{'Y/n' if default else 'y/N'}] ")
        self.stderr.flush()
        answer = self.stdin.readline().strip().lower()
        return default if not answer else answer.startswith("y")


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def log_traceback(log: Path, text: str) -> bool:
    """Append a traceback to the log file; ``False`` when the log itself cannot be written."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(log, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(time.strftime("%Y-%m-%d %H:%M:%S ") + text)
    except OSError:
        return False
    return True
