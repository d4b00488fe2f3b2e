"""Many sessions at once: rows by their number, each state measured, and nothing asked twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infinichat.bench import batch as batch_module
from infinichat.bench.batch import Sizes, batch, table
from infinichat.engine.generate import InfiniEngine
from infinichat.errors import UsageError
from tests.bench.test_bench import parsed, run
from tests.engine.conftest import MakeEngine, make_engine, make_model

__all__ = ["make_engine", "make_model"]

SIZES = Sizes(sessions=(3, 1), history=30, tokens=4, rounds=2)


@pytest.fixture
def engine(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> InfiniEngine:
    made = make_engine()
    monkeypatch.setattr(batch_module, "load_engine", lambda *_, **__: made)
    return made


def test_each_number_of_sessions_has_a_row_of_what_it_costs(engine: InfiniEngine) -> None:
    fed: list[tuple[int, ...]] = []
    feed_each = engine.feed_each

    def counted(caches: list[object], ids: list[int]) -> None:
        fed.append(tuple(sorted(engine.tokens_seen(cache) for cache in caches)))
        feed_each(caches, ids)  # type: ignore[arg-type]

    engine.feed_each = counted  # type: ignore[method-assign, assignment]
    report = batch(None, sizes=SIZES, threads=None, say=lambda _: None)
    assert [row.extra["sessions"] for row in report.rows] == [1, 3]
    # Two rounds of 4 tokens each; the first session also answers alone.
    assert [len(step) for step in fed] == [1] * 4 + [3] * 4 + [1] * 4 + [3] * 4
    assert fed[4] == (31, 31, 35)
    one, three = report.rows
    assert (
        one.state_mb == three.state_mb == pytest.approx(engine.state_bytes(engine_state(engine)) / 1e6, 0.2)
    )
    assert one.extra["gain"] == 1
    assert three.tokens_per_s
    assert three.extra["session_ms"] == pytest.approx(3000 / three.tokens_per_s)
    assert "| 3 | " in table(report)
    assert report.as_json()["rows"][1]["sessions"] == 3


def engine_state(engine: InfiniEngine) -> object:
    state = engine.new_state()
    for _ in engine.feed(state, list(range(40))):
        pass
    return state


def test_the_command_passes_its_options_on(
    engine: InfiniEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Sizes] = []

    def measured(*_: object, sizes: Sizes, **__: object) -> object:
        asked.append(sizes)
        return batch(None, sizes=replace(SIZES, rounds=1), threads=None, say=lambda _: None)

    monkeypatch.setattr(batch_module, "batch", measured)
    args = ["batch", "--sessions", "1,3", "--histories", "30", "--tokens", "4", "--rounds", "2"]
    assert run(parsed(*args)) == 0
    assert asked == [Sizes((1, 3), 30, 4, 2)]
    assert "times that of 1" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--histories has several"):
        run(parsed("batch", "--histories", "1,2"))
    with pytest.raises(UsageError, match="draws nothing"):
        run(parsed("batch", "--plot", "x.png"))
