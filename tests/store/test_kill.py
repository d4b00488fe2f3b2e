from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infinichat.store import store as store_module

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills")

RUNNER = Path(__file__).with_name("crash_runner.py")
REPOSITORY = Path(store_module.__file__).parents[2]


def every_death(scenario: str, tmp_path: Path) -> list[dict[str, Any]]:
    """One report per call that the scenario was killed at; the last one ran to its end."""
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, str(RUNNER), scenario, str(tmp_path / "template"), str(work)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["call"] for report in reports] == list(range(len(reports)))
    assert all(report["killed"] for report in reports[:-1])
    assert reports[-1]["ended"]
    return reports


def test_a_first_start_killed_anywhere_keeps_what_it_promised(tmp_path: Path) -> None:
    reports = every_death("first_start", tmp_path)
    assert len(reports) > 40
    for report in reports:
        assert report["verify"] == [], report
        promised = report["promised"]
        if "session" in promised:
            assert report["session"], report
        if "Hello" in promised:
            assert report["path"] == ["Hello"], report
        if report["session"]:
            assert report["path"] in ([], ["Hello"]), report
            assert report["searchable"] == [1] * len(report["path"]), report
            assert report["goes_on"], report
    assert reports[-1]["promised"] == ["opened", "session", "Hello"]


def test_a_turn_killed_anywhere_loses_no_word_and_no_state(tmp_path: Path) -> None:
    reports = every_death("a_turn", tmp_path)
    assert len(reports) > 100
    stages = [["Hello"], ["Hello", "question"], ["Hello", "question", "An answer."]]
    for report in reports:
        promised = report["promised"]
        assert report["verify"] == [], report
        assert report["path"] in stages, report
        assert report["searchable"] == [1] * len(report["path"]), report
        assert all(report["states"]), report
        assert len(report["states"]) >= 4, report
        assert report["goes_on"], report
        if "question" in promised:
            assert report["path"][1] == "question", report
        if "An ans" in promised and "An answer." not in report["path"]:
            text, ids = report["draft"]
            assert text in ("An ans", "An answer"), report
            assert len(text) >= len([p for p in promised if p in ("An ans", "An answer")][-1]), report
            assert ids == (1 if text == "An ans" else 2), report
        if "An answer." in report["path"]:
            # One transaction: the answer, what was fed for it, and no draft.
            assert report["draft"] is None, report
            assert report["feeds"], report
        if "An answer." in promised:
            assert report["path"] == stages[-1], report
        if "snapshot" in promised:
            assert report["snapshot"], report
        if "purged" in promised:
            assert not report["old"], report
        if "deleted" not in promised and report["killed"] and "snapshot" not in promised:
            assert report["old"], report
    assert reports[-1]["promised"][-1] == "purged"
    assert any(report["recovered"] for report in reports)
    assert any(report["draft"] for report in reports)
