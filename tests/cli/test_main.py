"""The entry point: which command runs, what a mistake says, how each way of ending looks to a script."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infinichat import __version__
from infinichat.cli import main as entry
from infinichat.cli.commands import APP, COMMANDS, load_module
from infinichat.cli.context import Context
from infinichat.cli.main import command_parser, main
from infinichat.errors import CancelledError, DiskError

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, home: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "INFINICHAT_HOME": str(home), "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-m", "infinichat", *words],
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"infinichat {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command.name}" in out and command.help in out for command in COMMANDS)


@pytest.mark.parametrize("command", [APP, *COMMANDS], ids=lambda command: command.name or "app")
def test_every_command_has_a_module_with_arguments_and_help(
    command: entry.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load_module(command)
    parser = command_parser(command)
    module.add_arguments(parser)
    assert callable(module.run)
    assert main([*([command.name] if command.name else []), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: infinichat {command.name}".rstrip())


def test_an_unknown_command_is_wrong_usage_with_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sesions", "list"]) == 2
    assert capsys.readouterr().err == (
        "infinichat: there is no command 'sesions'; near: sessions. Next: infinichat --help\n"
    )


def test_a_question_instead_of_a_command_is_pointed_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["what is a monad?"]) == 2
    assert "infinichat ask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["locate", "--jsn"],
            "'--jsn' is not an argument here; near: --json. Next: infinichat locate --help",
        ),
        (["locate", "--js"], "'--js' is not an argument here"),
        (["ask", "hi", "--seed", "x"], "argument --seed: 'x' is not a whole number of at least 0"),
        (["ask", "hi", "--temperature", "99"], "argument --temperature: '99' is not a number from 0 to 10"),
        (["sessions", "frob"], "invalid choice: 'frob'"),
        (["read", "a.txt"], "the following arguments are required: --session"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_options_may_stand_before_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    ask = importlib.import_module("infinichat.cli.ask")
    monkeypatch.setattr(ask, "run", lambda args, context: seen.append(args) or 0)
    assert main(["--model", "sessions", "--session", "t", "ask", "hello"]) == 0
    assert (seen[0].model, seen[0].session, seen[0].text) == ("sessions", "t", "hello")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (DiskError("the disk is full.\x1b[2J"), 1, "infinichat: the disk is full.␛[2J\n"),
        (CancelledError("stopped"), 130, "stopped\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_way_to_end_has_its_status(
    error: BaseException,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: argparse.Namespace, context: Context) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("infinichat.cli.locate"), "run", fail)
    monkeypatch.setattr(entry, "_silence_stdout", lambda: None)
    assert main(["locate"]) == status
    assert capsys.readouterr() == ("", words)


def test_a_fault_is_one_sentence_and_a_traceback_in_the_log(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace, context: Context) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(importlib.import_module("infinichat.cli.locate"), "run", fail)
    assert main(["locate"]) == 1
    error = capsys.readouterr().err
    log = own_home / "state" / "infinichat.log"
    assert error.startswith("infinichat: a fault in infinichat itself (ZeroDivisionError: oh)")
    assert str(log) in error
    assert "Traceback" not in error
    assert "ZeroDivisionError: oh" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    script = f'"{sys.executable}" -m infinichat locate | true; echo "${{PIPESTATUS[0]}}"'
    env = {**os.environ, "INFINICHAT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    # Whether the reader is gone before the write is a race; both ends are quiet.
    assert done.stdout.strip() in {"0", "141"}


def test_an_output_that_cannot_take_a_character_gets_its_number(tmp_path: Path) -> None:
    home = tmp_path / "höme"
    done = run("locate", "data", home=home, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.strip()) == (0, str(home / "data").replace("ö", "\\xf6"))


def test_locate_prints_one_path_or_all(own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["locate", "database"]) == 0
    assert capsys.readouterr().out == f"{own_home / 'data' / 'infinichat.db'}\n"
    assert main(["locate"]) == 0
    out = capsys.readouterr().out
    assert "settings" in out
    assert "(not made yet)" in out
    assert not own_home.exists()
