"""Threads: the smallest count that is not clearly beaten, and a wait that does not fight other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from infinichat.engine import threads


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_candidates_are_powers_of_two_and_all_cores() -> None:
    assert threads.candidates(1) == [1]
    assert threads.candidates(2) == [1, 2]
    assert threads.candidates(6) == [1, 2, 4, 6]
    assert threads.candidates(96) == [1, 2, 4, 8, 16]


def sleeper(seconds: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that takes as long as its thread count says, on a clock of its own."""
    clock = [0.0]
    count = [1]
    monkeypatch.setattr(threads, "set_threads", lambda n: count.__setitem__(0, n))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += seconds[count[0]]

    sleeper.work = work  # type: ignore[attr-defined]
    sleeper.count = count  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 0.6, 4: 0.35}, 4),
        ({1: 1.0, 2: 0.6, 4: 0.58}, 2),  # hardly faster: leave the cores to others
        ({1: 1.0, 2: 10.0, 4: 0.1}, 1),  # slower with two: more is not even tried
        ({1: 1.0, 2: 0.9, 4: 0.5}, 1),
    ],
)
def test_more_threads_are_taken_only_when_clearly_faster(
    seconds: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper(seconds, monkeypatch)
    assert threads.fastest_threads(sleeper.work, [1, 2, 4]) == chosen  # type: ignore[attr-defined]
    assert sleeper.count == [chosen]  # type: ignore[attr-defined]


def test_set_threads_is_repeatable() -> None:
    threads.set_threads(2)
    threads.set_threads(1)
    assert torch.get_num_threads() == 1


def test_there_is_at_least_one_core() -> None:
    assert 1 <= threads.available_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("user", [None, "77"])
def test_the_wait_is_set_before_torch_and_never_over_the_users(user: str | None) -> None:
    code = (
        "import os; from infinichat.engine.threads import prepare_environment as p; p();"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    env = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    env |= {} if user is None else {"GOMP_SPINCOUNT": user}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (user or threads.WAITING["GOMP_SPINCOUNT"])


def test_it_is_too_late_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    threads.prepare_environment()
    assert "GOMP_SPINCOUNT" not in os.environ
