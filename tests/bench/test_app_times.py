"""``bench start`` and ``bench ui``: real processes in terminals, and what is made of the times."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from infinichat.bench import app_times
from infinichat.bench.app_times import Model, quantile, summary
from infinichat.bench.terminal import Terminal
from infinichat.errors import InfiniChatError, ModelNotFoundError, UsageError
from tests.bench.test_bench import parsed, run

needs_a_terminal = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def environ(self: Model) -> dict[str, str]:
        raise ModelNotFoundError("The weights are not here. Next: infinichat models pull.")

    monkeypatch.setattr(Model, "environ", environ)


def measured(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert run(parsed(*argv, "--json")) == 0
    return json.loads(capsys.readouterr().out)


def test_quantiles_are_times_that_were_measured() -> None:
    times = [float(n) for n in range(1, 101)]
    assert (quantile(times, 0.5), quantile(times, 0.95), quantile(times, 1.0)) == (50.0, 95.0, 100.0)
    assert quantile([3.0], 0.5) == 3.0
    assert summary([0.001, 0.003]) == {"p50_ms": 1.0, "p95_ms": 3.0, "max_ms": 3.0, "n": 2}


@needs_a_terminal
def test_the_start_is_timed_until_the_prompt_and_until_the_words(
    no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measured(capsys, "start", "--rounds", "1", "--messages", "5")
    rows = {row["phase"]: row for row in document["rows"]}
    assert next(iter(rows)) == "imports"
    assert 0 < rows["imports"]["p50_ms"] < rows["prompt"]["p50_ms"] <= rows["words"]["p50_ms"]
    assert {row["messages"] for row in document["rows"]} == {6}
    assert "first token" not in rows
    imports, without = document["notes"]
    assert "textual" in imports
    assert "The weights are not here" in without


@needs_a_terminal
def test_the_first_token_is_timed_where_there_is_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Model, "environ", lambda self: {})
    monkeypatch.setattr(app_times, "_APP", (sys.executable, "-c", app_times._SCRIPTED))
    document = measured(capsys, "start", "--rounds", "2", "--messages", "2")
    row = document["rows"][-1]
    assert (row["phase"], row["n"]) == ("first token", 2)
    assert row["first_token_s"] > 0


@needs_a_terminal
def test_a_model_that_cannot_be_loaded_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = app_times._SCRIPTED.replace("progress: engine)", "progress: 1 / 0)")
    monkeypatch.setattr(app_times, "_APP", (sys.executable, "-c", broken))
    with app_times._home(0) as environ, pytest.raises(InfiniChatError, match="could not load its model"):
        app_times._first_token(environ, [])


@needs_a_terminal
def test_keys_are_timed_by_length_while_nothing_happens_and_while_an_answer_streams(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = measured(capsys, "ui", "--keys", "3", "--messages", "2,6", "--threads", "1")
    assert (document["task"], document["threads"]) == ("ui", 1)
    assert [(row["messages"], row["phase"], row["n"]) for row in document["rows"]] == [
        (2, "idle", 3),
        (2, "streaming", 3),
        (6, "idle", 3),
        (6, "streaming", 3),
    ]
    assert all(0 < row["p50_ms"] <= row["max_ms"] for row in document["rows"])


@needs_a_terminal
def test_the_table_has_a_line_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    run(parsed("ui", "--keys", "2", "--messages", "2"))
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].split() == ["engine", "what", "messages", "median", "95", "%", "longest", "times"]
    assert [line.split()[1] for line in shown[3:]] == ["idle", "streaming"]


def test_what_cannot_be_measured_is_refused_before_anything_starts() -> None:
    for argv in (["start", "--messages", "2,4"], ["ui", "--plot", "x.png"]):
        with pytest.raises(UsageError):
            run(parsed(*argv))


@needs_a_terminal
def test_an_app_that_ends_is_a_sentence_with_its_last_words() -> None:
    with (
        Terminal([sys.executable, "-c", "print('no disk left')"], dict(os.environ)) as terminal,
        pytest.raises(InfiniChatError, match="no disk left"),
    ):
        terminal.until("Message")
