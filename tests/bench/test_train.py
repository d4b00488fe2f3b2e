"""``bench train``: a real step of each kind in a process of its own, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infinichat.bench import train as bench_train
from infinichat.bench.report import plot
from infinichat.bench.train import WAYS, Job, Sizes, measured, table, train
from infinichat.bench.train_worker import measure
from infinichat.cli import bench
from infinichat.cli.console import Console
from infinichat.cli.context import Context
from infinichat.cli.parser import Parser
from infinichat.errors import UsageError
from infinichat.paths import default_paths

SMALL = Sizes(hidden=16, layers=1, vocabulary=32, segment=64, truncate=1, limit=60)


def job(way: str, tokens: int) -> Job:
    return Job(way, tokens, 16, 1, 32, 64, 1, 1)


def test_all_of_ours_have_the_same_loss() -> None:
    found = {way: measure(job(way, 256)) for way in WAYS}
    assert found["type1"]["loss"] == pytest.approx(found["type2"]["loss"], rel=1e-4)
    assert found["type1"]["loss"] == pytest.approx(found["type2-full"]["loss"], rel=1e-4)
    assert all(each["seconds"] > 0 and each["peak_mb"] > each["step_mb"] >= 0 for each in found.values())


def test_a_step_runs_in_a_process_of_its_own() -> None:
    found = measured(job("type2-full", 192), 60)
    assert isinstance(found, dict)
    assert found["peak_mb"] > 50
    failed = measured(replace(job("type2", 64), hidden=15), 60)
    assert isinstance(failed, str)
    assert failed.startswith("it failed: infinichat.errors.ConfigError: ")


def fake(found: dict[tuple[str, int], Any]) -> Any:
    return lambda job, limit: found[job.way, job.tokens]


def numbers(seconds: float, peak: float) -> dict[str, float]:
    return {"seconds": 2 * seconds, "cpu_seconds": seconds, "peak_mb": peak, "step_mb": peak / 2, "loss": 3.0}


def test_what_would_take_too_long_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answers = {
        ("sdpa", 64): numbers(10.0, 400),
        ("sdpa", 128): "more than 60 s",
        ("type2", 64): numbers(5.0, 300),
        ("type2", 128): numbers(20.0, 301),
        ("type1", 64): numbers(31.0, 350),
    }
    monkeypatch.setattr(bench_train, "measured", fake(answers))
    parser = Parser()
    parser.add_argument("--model")
    bench.add_arguments(parser)
    picture = tmp_path / "p.png"
    argv = ["train", "--lengths", "64,128", "--ways", "sdpa,type2,type1", "--limit", "60"]
    args = parser.parse_all([*argv, "--threads", "1", "--json", "--plot", str(picture)])
    assert bench.run(args, Context(default_paths(), Console())) == 0
    out = json.loads(capsys.readouterr().out)
    assert [(row["engine"], row["history"], row["rss_mb"]) for row in out["rows"]] == [
        ("sdpa", 64, 400),
        ("type2", 64, 300),
        ("type2", 128, 301),
        ("type1", 64, 350),
    ]
    assert out["rows"][0]["step_mb"] == 200
    assert "sdpa at 128 tokens and more left out: more than 60 s" in out["notes"][0]
    # Nothing was tried: twice as much takes at least twice as long.
    assert "type1 at 128 tokens and more left out: at least 124 s" in out["notes"][1]
    assert picture.stat().st_size > 1000


def test_the_table_has_a_row_for_each_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = {("sdpa", 64): numbers(2.0, 400), ("sdpa", 128): "gone", ("type2", 64): numbers(1.0, 300)}
    answers |= {("type2", 128): numbers(2.0, 300)}
    monkeypatch.setattr(bench_train, "measured", fake(answers))
    report = train(lengths=(128, 64), ways=("sdpa", "type2"), sizes=SMALL, threads=1, say=lambda _: None)
    lines = table(report).splitlines()
    assert "| 64 | 400 MB (200) | 32 | 300 MB (150) | 64 |" in lines
    assert "| 128 | left out |  | 300 MB (150) | 64 |" in lines
    assert lines[-1].startswith("note: sdpa at 128")
    plot(report, tmp_path / "p.png")
    with pytest.raises(UsageError, match="'typo'; expected some of sdpa"):
        train(lengths=(64,), ways=("typo",), sizes=SMALL, threads=1, say=lambda _: None)
