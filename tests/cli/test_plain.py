"""The chat line by line: messages, slash commands, stopping; from a pipe and typed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from infinichat.cli.context import Context
from infinichat.cli.plain_commands import SLASH_COMMANDS
from infinichat.paths import Paths
from infinichat.protocols import Engine
from infinichat.store import Store
from tests.cli.conftest import ROOT, SCRIPT, Result, Run


def chat(run: Run, *lines: str, session: str = "t", **engine: object) -> Result:
    return run("--plain", "--session", session, stdin="".join(f"{line}\n" for line in lines), **engine)


def said(paths: Paths, name: str = "t") -> list[str]:
    with Store.open(paths) as store:
        return [message.content for message in store.path(store.session(name).id)]


def test_every_line_from_a_pipe_is_answered_in_turn(run: Run, paths: Paths) -> None:
    result = chat(run, "Hello", "", "And?", replies=["Hi.", "Bye."])
    assert (result.status, result.out, result.err) == (0, "Hi.\nBye.\n", "")
    assert said(paths) == ["Hello", "Hi.", "And?", "Bye."]


def test_without_a_terminal_the_plain_chat_is_used_by_itself(run: Run) -> None:
    assert run(stdin="Hello\n", replies=["Hi."]).out == "Hi.\n"


def test_the_last_session_goes_on_and_new_starts_another(run: Run, paths: Paths) -> None:
    chat(run, "Hello", session="t", replies=["Hi."])
    run("--plain", stdin="again\n", replies=["x", "y"])
    run("--plain", "--new", stdin="fresh\n", replies=["z"])
    assert said(paths, "t") == ["Hello", "Hi.", "again", "y"]
    with Store.open(paths) as store:
        assert len(store.sessions()) == 2


def test_quotation_marks_hold_a_message_of_several_lines(run: Run, paths: Paths) -> None:
    chat(run, '"""', "one", "", "/two", '"""', "three", '"""', "open", replies=["a", "b", "c"])
    assert said(paths)[::2] == ["one\n\n/two", "three", "open"]


def test_two_slashes_send_a_text_that_begins_with_one(run: Run, paths: Paths) -> None:
    chat(run, "//etc/passwd", replies=["a"])
    assert said(paths) == ["/etc/passwd", "a"]


def test_help_names_every_command(run: Run) -> None:
    out = chat(run, "/help").out
    assert all(f"/{command.name}" in out and command.help in out for command in SLASH_COMMANDS)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/regenrate", "there is no command '/regenrate'; near: /regenerate"),
        ("/open", "'/open' needs an argument: /open NAME"),
        ("/open nowhere", "nowhere"),
        ("/read nope.txt", "There is no file 'nope.txt'"),
        ('/read "a', "has an open quotation mark"),
        ("/version 3", "there is no answer yet"),
        ("/edit x", "there is no message to edit"),
        ("/history ten", "'ten' is not a number of messages"),
    ],
)
def test_a_mistake_is_a_sentence(run: Run, line: str, sentence: str) -> None:
    result = chat(run, line)
    assert result.status != 0
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_regenerate_versions_and_going_back(run: Run, paths: Paths) -> None:
    result = chat(run, "Hello", "/regenerate", "/version", "/version 1", replies=["one", "two"])
    assert result.out.startswith("one\ntwo\n")
    assert "version 2 of 2" in result.err
    assert "version 1 of 2" in result.err
    assert said(paths) == ["Hello", "one"]


def test_edit_says_something_else_instead(run: Run, paths: Paths) -> None:
    chat(run, "Helo", "/edit Hello", replies=["one"])
    assert said(paths) == ["Hello", "one"]


def test_continue_goes_on_from_the_limit(run: Run, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINICHAT_SAMPLING_MAX_TOKENS", "3")
    result = chat(run, "Hello", "/continue", replies=["abcdef"])
    assert "/continue goes on" in result.err
    assert said(paths) == ["Hello", "abcdef"]


def test_read_memory_model_and_history(run: Run, paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("words " * 10)
    result = chat(run, f'/read "{tmp_path / "a b.txt"}"', "/memory", "/model", "/history 1")
    assert "read a b.txt" in result.err
    assert "still in the exact window" in result.out
    assert "scripted, 0 parameters, float32 on cpu" in result.out
    assert "document: a b.txt, 60 characters" in result.out


def test_sessions_search_open_new_rename_and_export(run: Run, paths: Paths, tmp_path: Path) -> None:
    chat(run, "My dog is Biscuit", session="dogs", replies=["OK"])
    file = tmp_path / "out.md"
    result = chat(
        run,
        "/sessions",
        "/search biscuit",
        "/new cats",
        "miau",
        "/open dogs",
        f"/export {file}",
        "/rename pets",
        replies=["purr"],
    )
    assert result.status == 0
    assert "dogs" in result.out
    assert "My dog is Biscuit" in result.out
    assert said(paths, "cats") == ["miau", "purr"]
    assert "Biscuit" in file.read_text()
    assert said(paths, "pets") == ["My dog is Biscuit", "OK"]


def test_another_model_takes_the_session_over(run: Run, paths: Paths) -> None:
    result = chat(run, "Hello", "/model other", "And?", "/model", replies=["Yes."])
    assert result.out.startswith("Yes.\nYes.\nother, ")
    assert said(paths) == ["Hello", "Yes.", "And?", "Yes."]


def test_quit_ends_it(run: Run, paths: Paths) -> None:
    assert chat(run, "/quit", "never said", replies=["x"]).status == 0
    assert said(paths) == []


def test_a_failure_ends_a_piped_chat(run: Run, paths: Paths) -> None:
    result = chat(run, "one", "two", replies=["abc"], fail_at=0)
    assert result.status == 1
    assert result.err.startswith("infinichat: The scripted engine was told to fail")
    assert said(paths)[:1] == ["one"]


def _at_a_terminal(inside: int) -> None:
    # Ctrl+C reaches a process only at its controlling terminal, and only when it does not inherit from a
    # shell's background job that the signal is ignored.
    fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Typist:
    """The plain chat on a pseudo-terminal."""

    def __init__(self, **options: object) -> None:
        self.screen = ""
        self.fd, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(options=options), "--plain", "--session", "t"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=lambda: _at_a_terminal(inside),
        )
        os.close(inside)

    def until(self, pattern: str, *, again: str = "") -> str:
        """What is shown until ``pattern`` is; ``again`` is typed when nothing has come for five seconds."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.screen):
            assert time.monotonic() < deadline, self.screen
            if not select.select([self.fd], [], [], 5.0)[0]:
                self.type(again)
            else:
                try:
                    self.screen += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    break
        assert re.search(pattern, self.screen), self.screen
        seen, self.screen = self.screen, ""
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def status(self) -> int:
        return self.process.wait(timeout=30)


def test_a_person_stops_an_answer_with_ctrl_c_and_leaves_with_ctrl_d(own_home: Path, paths: Paths) -> None:
    typist = Typist(replies=["0123456789" * 50, "Fine."], tokens_per_s=50)
    assert "session t, 0 messages, model scripted" in typist.until("you: $")
    typist.type("Count\n")
    typist.until("01234")
    typist.type("\x03")
    assert "(stopped; /continue goes on)" in typist.until("you: $")
    typist.type("half a line")
    typist.until("half a line")  # the line editor is waiting for keys now
    typist.type("\x03")
    # Python looks at signals when its wait for a key is interrupted: one that comes a moment before that wait
    # begins is seen at the next key. A person presses again.
    typist.until("leaves\\)[\r\n]+.*you: $", again="\x03")
    typist.type("/nonsense\n")
    assert "there is no command '/nonsense'" in typist.until("you: $")
    typist.type("And?\n")
    assert "Fine." in typist.until("you: $")
    typist.type("\x04")
    assert typist.status() == 0
    words = said(paths)
    assert [words[0], *words[2:]] == ["Count", "And?", "Fine."]
    assert ("0123456789" * 50).startswith(words[1])


def test_the_plain_chat_starts_before_the_app_is_imported(own_home: Path) -> None:
    code = SCRIPT.format(options={"replies": ["Hi."]}).replace("sys.exit(", "status = (")
    code += "\nsys.exit(status or bool({'torch', 'textual'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--plain"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="Hello\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Hi.\n")


def test_a_session_that_is_open_elsewhere_is_refused_before_a_model_is_loaded(
    run: Run, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(self: Context, model: str | None) -> Engine:
        raise AssertionError("a model was loaded for a session that cannot be opened")

    monkeypatch.setattr(Context, "load_engine", loaded)
    with Store.open(paths) as store:
        record = store.create_session("busy")
        with store.lock(record.id):
            result = run("--plain", "--session", "busy", stdin="hello\n")
    assert result.status == 1
    assert "The session 'busy' is open in" in result.err
    assert "all other sessions stay usable" in result.err
