"""``ask``: the answer on stdout, everything else on stderr; stopping keeps what was said."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

import pytest

from infinichat.cli.ask import question
from infinichat.errors import UsageError
from infinichat.paths import Paths
from infinichat.store import Store
from tests.cli.conftest import Run

Start = Callable[..., "subprocess.Popen[str]"]


def transcript(paths: Paths, name: str) -> list[tuple[str, str, str]]:
    with Store.open(paths) as store:
        return [(m.role, m.content, m.reason) for m in store.path(store.session(name).id)]


def test_the_answer_is_the_whole_of_stdout(run: Run, paths: Paths) -> None:
    result = run("ask", "--session", "t", "My dog is called Biscuit.", replies=["OK."])
    assert (result.status, result.out, result.err) == (0, "OK.\n", "")
    assert transcript(paths, "t") == [
        ("user", "My dog is called Biscuit.", "complete"),
        ("assistant", "OK.", "stop"),
    ]


def test_json_has_the_promised_keys(run: Run) -> None:
    result = run("ask", "--session", "t", "Hello", "--json", replies=["Hi."])
    assert result.status == 0
    assert set(result.json) >= {
        "session",
        "text",
        "tokens_in",
        "tokens_out",
        "tokens_seen",
        "tokens_per_s",
        "first_token_s",
        "reason",
    }
    assert (result.json["session"], result.json["text"], result.json["reason"]) == ("t", "Hi.", "stop")
    assert result.json["tokens_out"] == 3
    assert result.json["tokens_seen"] == result.json["tokens_in"] + 3


def test_a_session_goes_on_in_the_next_process(run: Run, paths: Paths) -> None:
    for turn in range(3):
        run("ask", "--session", "t", f"Question {turn}", replies=["one", "two", "three"])
    assert [content for role, content, _ in transcript(paths, "t") if role == "assistant"] == [
        "one",
        "two",
        "three",
    ]


def test_without_a_session_a_new_one_is_made_and_continue_finds_it(run: Run, paths: Paths) -> None:
    first = run("ask", "one", "--json", replies=["a", "b"]).json["session"]
    second = run("ask", "two", "--json", replies=["a", "b"]).json["session"]
    again = run("ask", "--continue", "three", "--json", replies=["a", "b"]).json
    assert first != second == again["session"]
    assert again["text"] == "b"


def test_stdin_is_put_after_the_text(run: Run, paths: Paths) -> None:
    run("ask", "Review this.", "--session", "t", stdin="a = 1\nb = 2\n", replies=["Fine."])
    run("ask", "--session", "u", stdin="only this\n", replies=["Fine."])
    assert transcript(paths, "t")[0][1] == "Review this.\n\na = 1\nb = 2"
    assert transcript(paths, "u")[0][1] == "only this"


@pytest.mark.parametrize(("text", "piped"), [("", ""), ("  ", "\n\n")])
def test_nothing_to_ask_is_wrong_usage(text: str, piped: str) -> None:
    with pytest.raises(UsageError, match="nothing to ask"):
        question(text, piped)


def test_escape_sequences_in_an_answer_are_shown_not_obeyed(run: Run, paths: Paths) -> None:
    answer = "\x1b]0;owned\x07\x1b[2J done"
    assert run("ask", "--session", "t", "x", replies=[answer]).out == "␛]0;owned␇␛[2J done\n"
    assert run("ask", "--session", "u", "x", "--json", replies=[answer]).json["text"] == answer
    assert transcript(paths, "t")[1][1] == answer


def test_options_change_this_call_only(run: Run) -> None:
    result = run("ask", "--session", "t", "x", "--max-tokens", "2", "--temperature", "0", replies=["abcdef"])
    assert result.out == "ab\n"
    assert "reached its limit" in result.err
    assert run("ask", "--session", "u", "x", replies=["abcdef"]).out == "abcdef\n"


def test_a_failing_engine_is_one_sentence_and_the_message_stays(run: Run, paths: Paths) -> None:
    result = run("ask", "--session", "t", "Hello", replies=["never"], fail_feed_at=0)
    assert result.status == 1
    assert result.out == ""
    assert result.err.startswith("infinichat: The scripted engine was told to fail here.")
    assert transcript(paths, "t") == [("user", "Hello", "complete")]


def test_the_system_prompt_belongs_to_a_new_session(run: Run, paths: Paths) -> None:
    run("ask", "--session", "t", "--system", "Be brief.", "Hello", replies=["Hi."])
    with Store.open(paths) as store:
        assert store.session("t").system == "Be brief."


def wait_for_text(process: subprocess.Popen[str], length: int) -> str:
    assert process.stdout is not None
    return process.stdout.read(length)


def test_ctrl_c_stops_the_answer_and_keeps_it(start: Start, paths: Paths) -> None:
    process = start("ask", "--session", "t", "Count", replies=["0123456789" * 50], tokens_per_s=50)
    begun = wait_for_text(process, 5)
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    said = begun + rest
    _, content, reason = transcript(paths, "t")[1]
    assert (content, reason) == (said.rstrip("\n"), "stopped")
    assert 5 <= len(content) < 500


def test_a_reader_that_goes_away_stops_the_answer_and_keeps_it(start: Start, paths: Paths) -> None:
    process = start("ask", "--session", "t", "Count", replies=["0123456789" * 50], tokens_per_s=50)
    wait_for_text(process, 5)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    _, content, reason = transcript(paths, "t")[1]
    assert reason == "stopped"
    assert 5 <= len(content) < 500


def test_kill_9_during_an_answer_loses_no_message(start: Start, run: Run, paths: Paths) -> None:
    process = start("ask", "--session", "t", "Count", replies=["0123456789" * 50], tokens_per_s=50)
    wait_for_text(process, 60)
    process.kill()
    process.wait(timeout=30)
    result = run("ask", "--session", "t", "And now?", "--json", replies=["", "Fine."])
    assert result.status == 0
    rows = transcript(paths, "t")
    assert rows[0] == ("user", "Count", "complete")
    assert rows[1][0] == "assistant"
    assert rows[1][2] == "interrupted"
    assert ("0123456789" * 50).startswith(rows[1][1])
    assert len(rows[1][1]) > 10
    assert [role for role, _, _ in rows[2:]] == ["user", "assistant"]


def test_a_session_in_use_is_refused_with_a_sentence(start: Start, run: Run) -> None:
    process = start("ask", "--session", "t", "Count", replies=["0123456789" * 50], tokens_per_s=50)
    wait_for_text(process, 5)
    result = run("ask", "--session", "t", "Me too", replies=["no"])
    other = run("ask", "--session", "u", "Me too", replies=["yes"])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert result.status == 1
    assert str(process.pid) in result.err
    assert json.dumps(other.out) == json.dumps("yes\n")
