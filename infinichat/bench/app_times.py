"""How fast the app feels, measured from outside: a real process in a terminal of its own.

``start`` is the time from starting Python to the first paint with a prompt, and to the newest message of a
long session. ``keys`` is the time from a key's bytes going into the terminal to its letter coming out, while
the app does something: nothing, reading the transcript into the model, or streaming an answer. Letters that
no answer contains are typed, so what comes out is known to be the key.

    python -m infinichat.ui.measure start --rounds 10
    python -m infinichat.ui.measure keys --engine real

Needs a pseudo-terminal (Linux, macOS). Nothing of the user's is touched: the sessions are made in a temporary
home, and the model's weights are only read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infinichat.errors import InfiniChatError, UsageError
from infinichat.paths import Paths
from infinichat.store import Store

MESSAGES = 1000
WIDTH, HEIGHT = 120, 40
_PATIENCE_S = 300.0  # for what a step waits for: reading 1,000 messages into a model takes a minute
_PROMPT = "Message…"
_SESSION = "measured"

# One after another, then the prompt is emptied: a letter that comes out was typed just now.
LETTERS = "абвгдежзиклмнопрстуфхцчшщъыьэюя"
_KEY_EVERY_S = 0.12  # a fast typist
_CTRL_U, _ENTER, _CTRL_Q = b"\x15", b"\r", b"\x11"

# The app with an engine that answers for ever at the speed of a small model, without torch.
_SCRIPTED = """
import sys
from infinichat.config import Settings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.paths import default_paths
from infinichat.ui.app import run_app
reply = "Some **words** of an answer, with `code` and a list:\\n\\n- one\\n- two\\n\\n" * 2000
engine = ScriptedEngine([reply], tokens_per_s=120)
sys.exit(run_app(session="measured", paths=default_paths(), load_engine=lambda model, progress: engine))
"""


@dataclass(frozen=True, slots=True)
class StartTimes:
    """Seconds from the start of the process, one each per round: ``prompt`` until the first paint with the
    prompt in it, ``words`` until the newest of ``messages`` messages. ``processor`` is the processor time
    until the first paint, which other work on the machine lengthens less (Linux; else empty)."""

    messages: int
    prompt: list[float]
    words: list[float]
    processor: list[float]


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """Seconds from a key to its letter on the screen, by what the app did meanwhile; a session of
    ``messages`` messages is open."""

    messages: int
    engine: str
    phases: dict[str, list[float]]


class Terminal:
    """A process in a pseudo-terminal: bytes in, bytes out, and when they came."""

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

    def write(self, data: bytes) -> None:
        os.write(self.file, data)

    def until(self, text: str | re.Pattern[bytes], *, patience_s: float = _PATIENCE_S) -> float:
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


def measure_start(
    *, rounds: int = 10, messages: int = MESSAGES, on_round: Callable[[int], None] = lambda _: None
) -> StartTimes:
    """Start the app ``rounds`` times on a session with so many messages. Raises ``InfiniChatError``."""
    prompt: list[float] = []
    words: list[float] = []
    processor: list[float] = []
    with _home(messages) as environ:
        for number in range(rounds):
            on_round(number)
            command = [sys.executable, "-m", "infinichat", "--session", _SESSION]
            terminal = Terminal(command, environ)
            try:
                prompt.append(terminal.until(_PROMPT) - terminal.started)
                processor += terminal.processor()
                words.append(terminal.until(f"answer {messages - 1}.") - terminal.started)
            finally:
                terminal.close()
    return StartTimes(messages, prompt, words, processor)


def measure_keys(*, engine: str = "scripted", keys: int = 150, messages: int = MESSAGES) -> KeyTimes:
    """Type ``keys`` letters in each phase. ``engine`` is "scripted", or "real" for the default checkpoint.

    Raises ``InfiniChatError``.
    """
    phases: dict[str, list[float]] = {}
    with _home(messages) as environ:
        real = engine == "real"
        command = [sys.executable, "-c", _SCRIPTED]
        if real:
            environ |= _weights()
            command = [sys.executable, "-m", "infinichat", "--session", _SESSION]
        terminal = Terminal(command, environ)
        try:
            terminal.until(f"answer {messages - 1}.")
            if real:
                terminal.until("reading the transcript")
                phases["reading"] = _type(terminal, keys)
                # The memory is measured when all has been read.
                terminal.until(re.compile(rb"memory [^\n]{0,80}%"))
            terminal.listen(1.0)
            phases["idle"] = _type(terminal, keys)
            terminal.write(b"Write a story of 2000 words about a lighthouse.")
            terminal.listen(0.5)
            terminal.forget()
            terminal.write(_ENTER)
            terminal.until("answering")
            phases["streaming"] = _type(terminal, keys)
        finally:
            terminal.close()
    return KeyTimes(messages, engine, phases)


def _type(terminal: Terminal, keys: int) -> list[float]:
    times = []
    for number in range(keys):
        letter = LETTERS[number % len(LETTERS)]
        if number % len(LETTERS) == 0:
            terminal.write(_CTRL_U)
            terminal.listen(0.5)
        terminal.forget()
        pressed = time.monotonic()
        terminal.write(letter.encode())
        times.append(terminal.until(letter) - pressed)
        terminal.listen(max(0.0, _KEY_EVERY_S - times[-1]))
    terminal.write(_CTRL_U)
    terminal.listen(0.3)
    terminal.forget()
    return times


@contextmanager
def _home(messages: int) -> Iterator[dict[str, str]]:
    """The environment of an app in a home of its own, with one long session in it."""
    if sys.platform == "win32":
        raise UsageError("Measuring the app needs a pseudo-terminal. Next: measure on Linux or macOS.")
    with tempfile.TemporaryDirectory(prefix="infinichat-measure-") as folder:
        home = Path(folder)
        paths = Paths(home / "data", home / "config", home / "cache", home / "state")
        with Store.open(paths) as store:
            record = store.create_session(_SESSION)
            for number in range(messages):
                role, text = ("user", f"question {number}?")
                if number % 2:
                    role, text = (
                        "assistant",
                        f"The **answer** {number}.\n\n- `one`\n- two\n\nThat was answer {number}.",
                    )
                store.append(
                    record.id,
                    role="assistant" if role == "assistant" else "user",
                    content=text,
                    reason="stop" if role == "assistant" else "complete",
                    chain="",
                )
        environ = {key: value for key, value in os.environ.items() if not key.startswith("INFINICHAT_")}
        environ |= {
            "INFINICHAT_HOME": str(home),
            "INFINICHAT_SAMPLING_MAX_TOKENS": "4000",
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
        }
        yield environ


def _weights() -> dict[str, str]:
    """Where the user's base weights are, for the app in the other home."""
    from infinichat.model.registry import Registry

    return {"INFINICHAT_BASE_WEIGHTS": str(Registry().base_weights())}


def quantile(times: list[float], share: float) -> float:
    """The smallest time that at least ``share`` of the times do not exceed."""
    return sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]


def summary(times: list[float]) -> dict[str, float]:
    """Milliseconds: median, 95th percentile, longest; and how many."""
    ms = [1000 * t for t in times]
    return {
        "p50_ms": round(quantile(ms, 0.5), 1),
        "p95_ms": round(quantile(ms, 0.95), 1),
        "max_ms": round(max(ms), 1),
        "n": len(ms),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(
        prog="python -m infinichat.ui.measure", description="how fast the app feels"
    )
    parser.add_argument("task", choices=("start", "keys"))
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="start: how often")
    parser.add_argument("--keys", type=int, default=150, metavar="N", help="keys: how many in each phase")
    parser.add_argument("--messages", type=int, default=MESSAGES, metavar="N", help="in the session")
    parser.add_argument("--engine", choices=("scripted", "real"), default="scripted")
    args = parser.parse_args(argv)
    phases: dict[str, list[float]]
    if args.task == "start":
        took = measure_start(rounds=args.rounds, messages=args.messages)
        phases = {"prompt": took.prompt, "prompt, processor": took.processor, "words": took.words}
    else:
        phases = measure_keys(engine=args.engine, keys=args.keys, messages=args.messages).phases
    head = {"task": args.task, "messages": args.messages}
    if args.task == "keys":
        head["engine"] = args.engine
    print(
        json.dumps(
            {**head, "rows": [{"phase": name, **summary(t)} for name, t in phases.items() if t]}, indent=2
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
