"""``doctor``: one row for each thing it looked at, a next step for each fault, and nothing changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from infinichat.cli import doctor_checks
from infinichat.cli.console import Console
from infinichat.cli.context import Context
from infinichat.cli.main import main
from infinichat.paths import Paths
from infinichat.store import Store

FAST = tuple(row for row in doctor_checks.CHECKS if row[0] not in {"torch", "models"})


@pytest.fixture(autouse=True)
def without_slow_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinichat.cli.doctor.CHECKS", FAST)


def states(capsys: pytest.CaptureFixture[str], *, status: int) -> dict[str, tuple[str, str]]:
    capsys.readouterr()
    assert main(["doctor", "--json"]) == status
    rows = json.loads(capsys.readouterr().out)["checks"]
    return {row["check"].split()[0]: (row["state"], f"{row['detail']} {row['next'] or ''}") for row in rows}


def test_a_fresh_machine_is_fine_and_stays_untouched(
    own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = states(capsys, status=0)
    assert {"python", "packages", "settings", "processor", "memory", "folder", "database", "terminal"} <= set(
        found
    )
    assert {state for state, _ in found.values()} <= {"ok", "warning"}
    assert found["database"] == ("ok", "not made yet ")
    assert not own_home.exists()


def test_for_people_each_check_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       python: 3.")


def test_the_database_is_checked(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(paths) as store:
        store.create_session("notes")
    assert states(capsys, status=0)["database"][1].startswith("1 session (")
    paths.database.write_bytes(b"not a database at all, but long enough to be looked at" * 50)
    state, detail = states(capsys, status=1)["database"]
    assert state == "fault"
    assert "restore" in detail or "backup" in detail.lower()


def test_a_mistake_in_the_settings_is_a_fault(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    paths.config.mkdir(parents=True)
    paths.settings.write_text("colour = 1\n")
    state, detail = states(capsys, status=1)["settings"]
    assert (state, "unknown key 'colour'" in detail) == ("fault", True)


def test_a_misspelt_variable_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFINICHAT_ENGINE_THREAD", "2")
    state, detail = states(capsys, status=0)["settings"]
    assert (state, "INFINICHAT_ENGINE_THREAD" in detail) == ("warning", True)


def test_folders_are_looked_at_without_making_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(folder: Path) -> tuple[str, str]:
        finding = next(iter(doctor_checks._check_folder(folder)))
        return finding.state, finding.detail

    assert rows(tmp_path / "new")[1].endswith("not made yet")
    (tmp_path / "file").write_text("")
    assert rows(tmp_path / "file") == ("fault", f"{tmp_path / 'file'} is a file")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    assert rows(tmp_path / "open")[0] == "ok"
    (tmp_path / "open" / "infinichat.db").touch()
    assert rows(tmp_path / "open") == ("warning", "others can read it")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert rows(tmp_path / "open") == ("fault", "cannot be written")


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch, paths: Paths) -> None:
    monkeypatch.setattr(doctor_checks, "_PACKAGES", ("torch", "no-such-package"))
    finding = doctor_checks.check_packages(Context(paths, Console()))[0]
    assert (finding.state, finding.detail, finding.next_step) == (
        "fault",
        "missing: no-such-package",
        "pip install .",
    )
