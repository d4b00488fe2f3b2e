"""``bench start`` and ``bench ui``: how fast the app feels, measured from outside, in a terminal of its own.

start     from starting Python to the first paint with a prompt, to the newest message of a long session, and
          to the first words of an answer in a new one; and what importing the app takes
ui        from a key's bytes going into the terminal to its letter coming out, by length of the transcript,
          while the app does nothing, reads the transcript into the model, or streams an answer. Letters that
          no answer contains are typed, so what comes out is known to be the key

Nothing of the user's is touched: the sessions are made in a temporary home, and weights are only read. Only
the processes that are measured import the app; this one does not.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infinichat.bench.peers import Say
from infinichat.bench.report import Report, Row, machine_now
from infinichat.bench.terminal import Terminal, require_terminal
from infinichat.errors import InfiniChatError, ModelError
from infinichat.paths import Paths
from infinichat.store import Store

EngineKind = Literal["scripted", "real"]

_APP = (sys.executable, "-m", "infinichat")
_PROMPT = "Message…"
_LONG, _NEW = "measured", "new"  # sessions

# One after another, then the prompt is emptied: a letter that comes out was typed just now.
LETTERS = "абвгдежзиклмнопрстуфхцчшщъыьэюя"
_KEY_EVERY_S = 0.12  # a fast typist
READ_FOR_LONG = 500
"""Messages that a model reads for longer than the keys of a phase take."""
_CTRL_U, _ENTER = b"\x15", b"\r"

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

_IMPORTS = """
import time
begin = time.perf_counter()
import infinichat.ui.app
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds, one each time: how long ``phase`` took in a session of ``messages`` messages."""

    engine: str
    messages: int
    phase: str
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class Model:
    """Which checkpoint answers (``None``: the default one), and on how many threads."""

    name: str | None = None
    threads: int | None = None

    def environ(self) -> dict[str, str]:
        """For an app in another home. Raises ``ModelError`` when the weights are not on this machine."""
        from infinichat.model.registry import Registry

        environ = {"INFINICHAT_BASE_WEIGHTS": str(Registry().base_weights(self.name))}
        if self.threads is not None:
            environ["INFINICHAT_ENGINE_THREADS"] = str(self.threads)
        return environ

    def options(self) -> list[str]:
        """Of the command line; a name is looked up here, because the other home has no checkpoints."""
        from infinichat.model.registry import Registry

        return [] if self.name is None else ["--model", str(Registry().entry(self.name).path)]


def measure_start(*, messages: int, rounds: int, model: Model | None = None, say: Say) -> Report:
    """``bench start``: the app is started ``rounds`` times on a session with so many messages, and as often
    on a new one to which "Hi" is said at the first paint. Raises ``InfiniChatError``."""
    require_terminal()
    model = model or Model()
    notes: list[str] = []
    messages = _whole_pairs(messages)
    imports = Wait("infinichat", messages, "imports", [])
    prompt = Wait("infinichat", messages, "prompt", [])
    processor = Wait("infinichat", messages, "prompt, processor", [])
    words = Wait("infinichat", messages, "words", [])
    first = Wait("infinichat", 0, "first token", [])
    with _home(messages) as environ:
        for number in range(rounds):
            say(f"start: round {number + 1} of {rounds}")
            imports.seconds.append(_import_seconds(environ))
            with Terminal([*_APP, "--session", _LONG], environ) as terminal:
                prompt.seconds.append(terminal.until(_PROMPT) - terminal.started)
                processor.seconds.extend(terminal.processor())
                words.seconds.append(terminal.until(f"answer {messages - 1}.") - terminal.started)
        notes.append(f"imports: {_import_shares(environ)}")
        try:
            environ, options = environ | model.environ(), model.options()
        except ModelError as error:
            notes.append(f"without first token: {error}")
        else:
            say("first token: the engine's choices are made first, as on this machine's first start")
            _first_token(environ, options)
            for number in range(rounds):
                say(f"first token: round {number + 1} of {rounds}")
                first.seconds.append(_first_token(environ, options))
    return _report("start", [imports, prompt, processor, words, first], model, notes)


def measure_ui(
    *, messages: Sequence[int], keys: int, engine: EngineKind, model: Model | None = None, say: Say
) -> Report:
    """``bench ui``: ``keys`` letters in each phase, for each length of the transcript.

    ``engine`` is "scripted" (no model at all) or "real". Raises ``InfiniChatError``.
    """
    require_terminal()
    model = model or Model()
    waits: list[Wait] = []
    for count in map(_whole_pairs, messages):
        say(f"ui: a session of {count:,} messages")
        with _home(count) as environ:
            command = [sys.executable, "-c", _SCRIPTED]
            if engine == "real":
                environ |= model.environ()
                command = [*_APP, "--session", _LONG, *model.options()]
            with Terminal(command, environ) as terminal:
                waits += _phases(terminal, engine, count, keys)
    return _report("ui", waits, model, [])


def _phases(terminal: Terminal, engine: EngineKind, messages: int, keys: int) -> list[Wait]:
    waits = []
    terminal.until(f"answer {messages - 1}.")
    if engine == "real" and messages >= READ_FOR_LONG:
        terminal.until("reading the transcript")
        waits.append(Wait(engine, messages, "reading", _type(terminal, keys)))
    # The memory is measured when all has been read.
    terminal.until(re.compile(rb"memory [^\n]{0,80}%"))
    terminal.listen(1.0)
    waits.append(Wait(engine, messages, "idle", _type(terminal, keys)))
    terminal.write(b"Write a story of 2000 words about a lighthouse.")
    terminal.listen(0.5)
    terminal.forget()
    terminal.write(_ENTER)
    terminal.until("answering")
    waits.append(Wait(engine, messages, "streaming", _type(terminal, keys)))
    return waits


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


def _first_token(environ: dict[str, str], options: list[str]) -> float:
    """Seconds from starting Python to the first words of an answer, in a session that is new each time."""
    with Terminal([*_APP, "--new", *options], environ) as terminal:
        terminal.until(_PROMPT)
        terminal.write(b"Hi")
        terminal.listen(0.05)  # what comes in one piece may be taken for a paste
        terminal.write(_ENTER)
        took = terminal.until(re.compile(b"answering|no model")) - terminal.started
        if b"answering" not in terminal.seen:
            raise InfiniChatError("the app could not load its model. Next: infinichat doctor")
        return took


def _import_seconds(environ: dict[str, str]) -> float:
    """What ``import infinichat.ui.app`` takes in a fresh interpreter."""
    return float(_python(["-c", _IMPORTS], environ).stdout)


def _import_shares(environ: dict[str, str]) -> str:
    """The packages that take most of it: "textual 150 ms, rich 40 ms, …". Timing each import makes all of
    them slower, so the shares are told apart and not the sum."""
    took: Counter[str] = Counter()
    for line in _python(["-X", "importtime", "-c", "import infinichat.ui.app"], environ).stderr.splitlines():
        fields = re.fullmatch(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)", line)
        if fields is not None:
            took[fields[2].partition(".")[0]] += int(fields[1])
    return ", ".join(f"{name} {us / 1000:.0f} ms" for name, us in took.most_common(6))


def _python(arguments: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True)
    if done.returncode:
        raise InfiniChatError(f"the app cannot be imported: {done.stderr.strip().splitlines()[-1:]}")
    return done


def _whole_pairs(messages: int) -> int:
    """So that the last message is an answer, whose words are waited for."""
    return messages + messages % 2


@contextmanager
def _home(messages: int) -> Iterator[dict[str, str]]:
    """The environment of an app in a home of its own, with one long session in it."""
    with tempfile.TemporaryDirectory(prefix="infinichat-bench-") as folder:
        home = Path(folder)
        paths = Paths(home / "data", home / "config", home / "cache", home / "state")
        with Store.open(paths) as store:
            record = store.create_session(_LONG)
            for number in range(messages):
                if number % 2:
                    words = f"The **answer** {number}.\n\n- `one`\n- two\n\nThat was answer {number}."
                    store.append(record.id, role="assistant", content=words, reason="stop", chain="")
                else:
                    words = f"question {number}?"
                    store.append(record.id, role="user", content=words, reason="complete", chain="")
        environ = {key: value for key, value in os.environ.items() if not key.startswith("INFINICHAT_")}
        environ |= {
            "INFINICHAT_HOME": str(home),
            "INFINICHAT_SAMPLING_MAX_TOKENS": "4000",
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
        }
        yield environ


def _report(task: str, waits: Sequence[Wait], model: Model, notes: list[str]) -> Report:
    rows = tuple(
        Row(
            engine=wait.engine,
            weights="",
            history=None,
            first_token_s=statistics.median(wait.seconds) if wait.phase == "first token" else None,
            extra={"phase": wait.phase, "messages": wait.messages, **summary(wait.seconds)},
        )
        for wait in waits
        if wait.seconds
    )
    machine = machine_now()
    return Report(task, "cpu", model.threads or machine["cores"], rows, machine, tuple(notes))


def quantile(times: Sequence[float], share: float) -> float:
    """The smallest time that at least ``share`` of the times do not exceed."""
    return sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]


def summary(times: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median, 95th percentile, longest; and how many."""
    ms = [1000 * t for t in times]
    return {
        "p50_ms": round(quantile(ms, 0.5), 1),
        "p95_ms": round(quantile(ms, 0.95), 1),
        "max_ms": round(max(ms), 1),
        "n": len(ms),
    }
