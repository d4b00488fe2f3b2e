"""The command line with a scripted engine: in this process, and in another one that can be interrupted."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infinichat.cli.main import main
from infinichat.config import Settings
from infinichat.engine.scripted import ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """What a command line left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


class Pipe:
    """Standard input that a text was piped into; ``None`` is a closed one."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines(keepends=True)
        self.closed = False

    def isatty(self) -> bool:
        return False

    def read(self) -> str:
        return "".join(self.lines)

    def __iter__(self) -> Any:
        return iter(self.lines)


class Terminal(io.StringIO):
    """A stream with a person at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("ask", "hello", replies=[...])``: one command line; every one gets a fresh engine."""

    def call(*words: str, replies: Sequence[str] = (), stdin: str = "", **engine: Any) -> Result:
        def factory(model: str | None, settings: Settings) -> ScriptedEngine:
            return ScriptedEngine(replies, name=model or "scripted", **engine)

        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", Pipe(stdin))
        status = main(words, engine_factory=factory)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


SCRIPT = """
import sys
from infinichat.cli.main import main
from infinichat.engine.scripted import ScriptedEngine
options = {options!r}
sys.exit(main(sys.argv[1:], engine_factory=lambda model, settings: ScriptedEngine(**options)))
"""


@pytest.fixture
def start(own_home: Path) -> Callable[..., subprocess.Popen[str]]:
    """``start("ask", "hello", replies=[...], tokens_per_s=20)``: the same in a process of its own."""

    def call(*words: str, stdin: int = subprocess.DEVNULL, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(options=options), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call
