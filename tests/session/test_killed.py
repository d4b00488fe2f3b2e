"""A process that is really killed, between any two writes, loses nothing that was said or shown.

``killed.py`` does the killing, in a process of its own; here its reports are judged. After each kill the
session is opened again and finished, and must end in the transcript and the exact state of a run that
nobody killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills with fork and SIGKILL")


def kills(scenario: str, folder: Path, *, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run that nobody killed, and one report per kill."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), scenario, str(folder), "1", str(step)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    straight, *reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert straight["moments"] > 60
    assert len(reports) == len(range(1, straight["moments"] + 1, step))
    return straight["straight"], reports


# Every moment of the two longer scenarios takes a minute; every third one finds the same (all have been run).
@pytest.mark.parametrize(("scenario", "step"), [("talk", 1), ("edit", 3), ("read", 3)])
def test_killed_at_any_moment_nothing_is_lost_and_the_session_ends_as_if_nothing_had_happened(
    scenario: str, step: int, tmp_path: Path
) -> None:
    straight, reports = kills(scenario, tmp_path, step=step)
    for report in reports:
        where = f"{scenario}, killed at moment {report['at']}"
        assert report["status"] == -9, where
        assert report["ended"] == 0, f"{where}: {report['after'][1]}"
        after = report["after"][1]
        contents = [content for _, content in after["before"]]
        for kind, text in report["told"]:
            kept = json.dumps(text, ensure_ascii=False)[1:-1] in after["everything"]
            if kind == "said":
                assert kept, f"{where}: {text!r} was said"
            elif kind == "read":
                assert kept, f"{where}: {text[:20]!r}... was read"
            elif kind in ("shown", "finished"):
                assert kept or any(text in content for content in contents), f"{where}: {text!r} was shown"
        assert after["transcript"] == straight["transcript"], where
        assert after["state"] == straight["state"], where
        assert after["problems"] == [], where


def test_killed_at_any_moment_what_waited_for_an_answer_is_said_once_in_order_and_answered(
    tmp_path: Path,
) -> None:
    straight, reports = kills("wait", tmp_path, step=1)
    assert [role for role, _, _ in straight["transcript"]] == ["user", "assistant"] * 2
    for report in reports:
        where = f"killed at moment {report['at']}"
        assert (report["status"], report["ended"]) == (-9, 0), f"{where}: {report['after'][1]}"
        after = report["after"][1]
        sent = [text for kind, text in report["told"] if kind == "said"]
        said = [content for role, content in after["before"] if role == "user"]
        # The moment of the kill may lie between keeping a message and telling so.
        assert said[: len(sent)] == sent, where
        assert said in ([], ["one"], ["one", "two"]), where
        assert [content for role, content, _ in after["transcript"] if role == "user"] == (
            said or ["one", "two"]
        ), where
        assert after["transcript"][-1][0] == "assistant", where
        assert after["transcript"][-1][2] == "stop", where
        assert after["problems"] == [], where
