"""A process in a pseudo-terminal of its own: bytes in, bytes out, and when they came. Linux and macOS."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Self

from infinichat.errors import InfiniChatError, UsageError

WIDTH, HEIGHT = 120, 40
PATIENCE_S = 300.0
"""For what is waited for: a small model reads 1,000 messages in a minute."""


def require_terminal() -> None:
    """Raise ``UsageError`` where there are no pseudo-terminals."""
    if sys.platform == "win32":
        raise UsageError("Measuring the app needs a pseudo-terminal. Next: measure on Linux or macOS.")


class Terminal:
    """A running process and what it has painted since the last ``forget``. A context manager."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.started = time.monotonic()
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environ)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        self.seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        os.write(self.file, data)

    def until(self, text: str | re.Pattern[bytes], *, patience_s: float = PATIENCE_S) -> float:
        """Read until this has been painted since the last ``forget``; returns when, ``time.monotonic``.

        Raises ``InfiniChatError`` when it does not come.
        """
        pattern = re.compile(re.escape(text.encode())) if isinstance(text, str) else text
        end = time.monotonic() + patience_s
        while not pattern.search(self.seen):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.file], [], [], left)[0]:
                raise InfiniChatError(
                    f"waited {patience_s:.0f} s in vain for {pattern.pattern!r}; {self._tail()}"
                )
            try:
                self.seen += os.read(self.file, 65536)
            except OSError as error:
                raise InfiniChatError(f"the app ended before {pattern.pattern!r}; {self._tail()}") from error
        return time.monotonic()

    def listen(self, seconds: float) -> None:
        """Read what comes for so long, so that the app is never held up by a full terminal."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.file], [], [], left)[0]:
                self.seen += os.read(self.file, 65536)

    def processor(self) -> list[float]:
        """Seconds of processor time that the process has used, in a list; empty where that is not told."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return []
        return [(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")]

    def forget(self) -> None:
        self.seen = b""

    def close(self) -> None:
        """End the process, by force: what it was asked to do is over."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.file)

    def _tail(self) -> str:
        return f"the end of what it painted: {self.seen[-300:]!r}"
