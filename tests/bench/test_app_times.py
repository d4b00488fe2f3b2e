"""Measuring the app from outside: a real process in a terminal of its own, and what is made of the times."""

from __future__ import annotations

import sys

import pytest

from infinichat.errors import InfiniChatError
from infinichat.ui.measure import Terminal, measure_keys, measure_start, quantile, summary


def test_quantiles_are_times_that_were_measured() -> None:
    times = [float(n) for n in range(1, 101)]
    assert (quantile(times, 0.5), quantile(times, 0.95), quantile(times, 1.0)) == (50.0, 95.0, 100.0)
    assert quantile([3.0], 0.5) == 3.0
    assert summary([0.001, 0.003]) == {"p50_ms": 1.0, "p95_ms": 3.0, "max_ms": 3.0, "n": 2}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_start_is_timed_until_the_prompt_and_until_the_words() -> None:
    times = measure_start(rounds=1, messages=6)
    assert 0 < times.prompt[0] <= times.words[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_keys_are_timed_while_nothing_happens_and_while_an_answer_streams() -> None:
    times = measure_keys(keys=3, messages=6)
    assert {name: len(phase) for name, phase in times.phases.items()} == {"idle": 3, "streaming": 3}
    assert all(t > 0 for phase in times.phases.values() for t in phase)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_an_app_that_ends_is_a_sentence_with_its_last_words() -> None:
    terminal = Terminal([sys.executable, "-c", "print('no disk left')"], {})
    try:
        with pytest.raises(InfiniChatError, match="no disk left"):
            terminal.until("Message")
    finally:
        terminal.close()
