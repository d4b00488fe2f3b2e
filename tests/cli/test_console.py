"""The streams: progress that repaints on a terminal and stays readable in a log, questions to people only."""

from __future__ import annotations

import io

import pytest

from infinichat.cli.console import Console
from tests.cli.conftest import Terminal


def console(*, terminal: bool, typed: str = "") -> Console:
    make = Terminal if terminal else io.StringIO
    return Console(stdin=make(typed), stdout=make(), stderr=make())


def written(stream: object) -> str:
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_progress_on_a_terminal_repaints_one_line_and_makes_room_for_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = console(terminal=True)
    screen.progress("reading 10 %")
    screen.progress("done 9 %")
    screen.line("hello")
    assert written(screen.stderr) == "\rreading 10 %\rdone 9 %    \r        \r"
    assert written(screen.stdout) == "hello\n"


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 109.0, 111.0, 112.0, 122.0])
    monkeypatch.setattr("infinichat.cli.console.time.monotonic", lambda: next(clock))
    log = console(terminal=False)
    for percent in (1, 2, 3, 4, 5):
        log.progress(f"{percent} %")
    assert written(log.stderr) == "3 %\n5 %\n"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = console(terminal=True)
    screen.progress("1 %")
    screen.status("done")
    assert written(screen.stderr) == "done\n"


def test_nothing_that_is_written_can_command_the_terminal() -> None:
    screen = console(terminal=True)
    screen.write("\x1b[2J")
    screen.status("\x1b]0;x\x07")
    screen.raw("\x1b[1m")
    assert written(screen.stdout) == "␛[2J␛[1m"
    assert "\x1b" not in written(screen.stderr)


def test_exact_text_goes_to_a_pipe_as_it_is() -> None:
    pipe = console(terminal=False)
    pipe.raw("\x1b[1m")
    assert written(pipe.stdout) == "\x1b[1m"


def test_piped_text_is_read_and_typed_text_is_not() -> None:
    assert console(terminal=False, typed="piped").piped_text() == "piped"
    assert console(terminal=True, typed="typed").piped_text() == ""


@pytest.mark.parametrize(
    ("terminal", "typed", "default", "answer"),
    [
        (True, "y\n", False, True),
        (True, "\n", True, True),
        (True, "no\n", True, False),
        (False, "y\n", True, False),
    ],
)
def test_only_a_person_can_say_yes(terminal: bool, typed: str, default: bool, answer: bool) -> None:
    assert console(terminal=terminal, typed=typed).confirm("Fetch?", default=default) is answer
