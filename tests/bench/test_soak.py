"""The soak: flat rows, goes on where it was stopped, and says when a number is not finite."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infinichat.bench import soak as soak_module
from infinichat.bench.report import plot
from infinichat.bench.soak import _next_mark, soak
from infinichat.engine.generate import InfiniEngine
from infinichat.errors import UsageError
from tests.engine.conftest import MakeEngine, make_engine, make_model

__all__ = ["make_engine", "make_model"]


@pytest.fixture
def engine(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> InfiniEngine:
    made = make_engine()
    monkeypatch.setattr(soak_module, "load_engine", lambda *_, **__: made)
    return made


def run(folder: Path, tokens: int, **options: Any) -> Any:
    return soak(None, tokens=tokens, folder=folder, say=lambda _: None, **options)


def test_rows_come_by_decade_and_the_state_stays_as_small(engine: InfiniEngine, tmp_path: Path) -> None:
    report = run(tmp_path, 12_000)
    assert [row.history for row in report.rows] == [10, 100, 1000, 10_000, 12_000]
    full = report.rows[2:]
    assert len({row.state_mb for row in full}) == 1
    assert report.rows[0].state_mb < full[0].state_mb
    # A snapshot is the state and a header; both as large after 12,000 tokens as after 1,000.
    disk = [row.extra["disk_mb"] for row in full]
    assert max(disk) - min(disk) < 1e-4
    assert disk[0] >= full[0].state_mb
    assert all(row.extra["finite"] for row in report.rows)
    assert all(
        row.tokens_per_s
        and row.rss_mb
        and row.extra["decode_ms"]
        and row.extra["cpu_ms"]
        and row.extra["resume_s"]
        for row in report.rows
    )
    assert "every number finite" in report.notes


def test_a_young_conversation_answers_beside_the_old_one(
    engine: InfiniEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, now = list[int](), [0.0]

    def clock() -> float:
        now[0] += 1e-6
        return now[0]

    monkeypatch.setattr(
        soak_module, "time", SimpleNamespace(perf_counter=clock, process_time=clock, monotonic=clock)
    )
    generate = engine.generate

    def slow_where_old(state: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(state.tokens_seen)
        for one in generate(state, *arguments, **options):
            now[0] += 0.03 if state.tokens_seen > 9000 else 0.01
            yield one

    engine.generate = slow_where_old  # type: ignore[method-assign]
    report = run(tmp_path, 10_000)
    *early, last = report.rows
    assert not any("to_young" in row.extra for row in early)
    assert last.extra["to_young"] == pytest.approx(3, rel=0.01)
    # The two take turns, with as many tokens in the last segment.
    old, young = seen[-2], seen[-1]
    assert old > 9000 > young >= 4096
    assert (old - young) % engine.info.segment == 0
    assert "3.00 times as long as after 4,096" in report.notes[0]


def test_time_memory_state_and_disk_are_in_one_picture(
    engine: InfiniEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    plot(run(tmp_path, 1000), tmp_path / "soak.png")
    axes = [axis for axis in drawn[0].axes if axis.lines]
    for words in ("reading", "answering", "resident memory", "state", "disk"):
        (axis,) = [axis for axis in axes if axis.get_title().startswith(words) or words in axis.get_title()]
        assert list(axis.lines[0].get_xdata()) == [10, 100, 1000]
        assert (axis.get_xscale(), axis.get_ylim()[0]) == ("log", 0)


def test_a_stopped_soak_goes_on_and_reaches_the_same_state(engine: InfiniEngine, tmp_path: Path) -> None:
    run(tmp_path / "whole", 3000)
    run(tmp_path / "parts", 2000)
    fed: list[int] = []
    feed = engine.feed
    engine.feed = lambda state, ids, **o: fed.append(len(ids)) or feed(state, ids, **o)  # type: ignore
    report = run(tmp_path / "parts", 3000)
    assert sum(fed) == 1000
    assert [row.history for row in report.rows] == [10, 100, 1000, 2000, 3000]
    (whole,) = (tmp_path / "whole").glob("*.safetensors")
    (parts,) = (tmp_path / "parts").glob("*.safetensors")
    assert whole.read_bytes() == parts.read_bytes()
    run(tmp_path / "parts", 1000, restart=True)
    assert sum(fed) == 2000


def test_a_number_that_is_not_finite_is_seen(engine: InfiniEngine, tmp_path: Path) -> None:
    feed = engine.feed

    def poisoned(state: Any, ids: Any, **options: Any) -> Any:
        yield from feed(state, ids, **options)
        with torch.inference_mode():
            state.states[0].k.content[0, 0, 0] = float("nan")

    engine.feed = poisoned  # type: ignore[method-assign]
    report = run(tmp_path, 1000)
    assert not any(row.extra["finite"] for row in report.rows)
    assert "a number was NOT finite" in report.notes


def test_a_text_is_streamed_over_and_over(engine: InfiniEngine, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Call me Ishmael. ")
    assert "book.txt, 17 tokens over and over" in run(tmp_path, 1000, text=book).notes[0]
    book.write_text("")
    with pytest.raises(UsageError, match="no text"):
        run(tmp_path, 1000, text=book)
    with pytest.raises(UsageError, match="cannot be read"):
        run(tmp_path, 1000, text=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("tokens", "mark"), [(0, 10), (1, 10), (9, 10), (10, 100), (999, 1000), (1000, 10_000), (10**6, 10**7)]
)
def test_marks_are_powers_of_ten(tokens: int, mark: int) -> None:
    assert _next_mark(tokens) == mark
