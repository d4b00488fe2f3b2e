"""``infinichat eval`` from arguments to JSON and picture."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinichat.cli import eval as command
from infinichat.cli.console import Console
from infinichat.cli.context import Context
from infinichat.cli.parser import Parser, count
from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import UsageError
from infinichat.evals import plots
from infinichat.evals.task import Cell, Report
from infinichat.paths import default_paths

from .conftest import MakeEngine

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--lengths", "64", "--memory", "on", "--sides", "seen")


def parsed(*argv: str) -> Any:
    parser = Parser()
    parser.add_argument("--model")
    command.add_arguments(parser)
    return parser.parse_args(argv)


def run(args: Any, load: Callable[[], Any]) -> int:
    return command.run(args, Context(default_paths(), Console(), lambda model, settings: load()))


def test_the_json_is_one_document_with_what_was_measured(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = ["facts", *TINY, "--facts", "2", "--samples", "2", "--json", "--answers"]
    assert run(parsed(*arguments, str(answers)), make_engine) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["task"], document["model"], document["seed"]) == ("facts", "tiny", 0)
    [cell] = document["cells"]
    assert (cell["length"], cell["facts"], cell["memory"], cell["n"]) == (64, 2, "on", 2)
    assert document["accuracy"] == cell["accuracy"]
    assert document["settings"]["window"] == 24
    assert len(answers.read_text().splitlines()) == 2


def test_the_table_says_that_the_memory_is_not_trained_and_the_filler_generated(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = parsed("facts", *TINY, "--facts", "1", "--samples", "1")
    run(arguments, lambda: make_engine(memory_trained=False))
    shown = capsys.readouterr().out
    assert "not trained" in shown
    assert "generated small talk" in shown


@pytest.mark.parametrize("task", sorted(command.TASKS))
def test_every_task_has_its_module(task: str) -> None:
    import importlib

    module = importlib.import_module(f"infinichat.evals.{command.MODULES.get(task, task)}")
    assert callable(module.measure)


@pytest.mark.parametrize(
    ("text", "value"), [("2048", 2048), ("2K", 2048), ("1M", 1024 * 1024), ("32_768", 32768)]
)
def test_lengths_can_be_short(text: str, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize(
    "argv",
    [
        ["facts", "--memory", "on,of"],
        ["facts", "--sides", "train"],
        ["facts", "--lengths", "0"],
        ["passkey", "--depths", "2"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused_before_a_model_is_loaded(argv: list[str]) -> None:
    def load() -> Any:
        raise AssertionError("loaded")

    with pytest.raises(UsageError):
        run(parsed(*argv), load)


def test_an_engine_without_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="real model"):
        run(parsed("facts"), lambda: ScriptedEngine(["Hi"]))


@pytest.mark.parametrize("kind", ["depth", "facts", "loss", "bars"])
def test_every_kind_of_report_is_drawn(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    cells = {
        "depth": [Cell(2048, 0.5, None, "on", 4, 3), Cell(4096, 0.0, None, "off", 4, 0)],
        "facts": [Cell(2048, None, 16, "on", 4, 3, {"side": "seen"})],
        "loss": [Cell(1024, None, None, "on", 9, extra={"model": "memory on", "loss": 3.0})],
        "bars": [Cell(None, None, None, "on", 9, 9)],
    }[kind]
    data = {"bars": {"share": {"values": 0.9}}} if kind == "bars" else {}
    file = tmp_path / "plot.png"
    plots.draw(Report("task", "tiny", 0, cells, data=data), file)
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_help_imports_no_torch() -> None:
    script = (
        "import sys\nfrom infinichat.cli.main import main\ntry:\n    main(['eval', '--help'])\n"
        "except SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "passkey" in done.stdout
