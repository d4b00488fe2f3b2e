"""``retrofit``: a Hugging Face folder becomes a checkpoint that the other commands know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.model.conftest import WriteFolder, write_folder

__all__ = ["write_folder"]


@pytest.fixture
def base(write_folder: WriteFolder) -> Path:
    return write_folder()


def test_a_folder_becomes_a_checkpoint(run: Run, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-infini"
    result = run(
        "retrofit",
        str(base),
        str(out),
        "--window",
        "64",
        "--segment",
        "16",
        "--layers",
        "1",
        "--memory",
        "recall",
    )
    assert (result.status, result.out) == (0, "")
    assert f"Next: infinichat models use '{out}'" in result.err
    config = json.loads((out / "config.json").read_text())
    assert (config["window"], config["segment"], config["memory_layers"]) == (64, 16, [1])
    info = run("models", "info", str(out), "--json").json
    assert (info["kind"], info["trained"], info["installed"]) == ("checkpoint", False, True)


def test_a_bank_has_the_sizes_that_were_asked_for_and_loads(run: Run, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-bank"
    options = "--memory bank --slots 8 --key-dim 4 --order 2 --layers 1 --window 64 --segment 16"
    assert run("retrofit", str(base), str(out), *options.split()).status == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["memory"], config["memory_slots"], config["memory_key_dim"], config["memory_order"]) == (
        "bank",
        8,
        4,
        2,
    )
    assert run("models", "verify", str(out)).status == 0


def test_json_describes_the_new_checkpoint(run: Run, base: Path, tmp_path: Path) -> None:
    row = run("retrofit", str(base), str(tmp_path / "x"), "--copy", "--json").json
    assert (row["name"], row["path"], row["trained"]) == ("x", str(tmp_path / "x"), False)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (("--layers", "one"), 2, "'one' is not a list of layers"),
        (("--layers", "99"), 1, "memory_layers is [99]"),
        (("--window", "16", "--segment", "64"), 1, "segment is 64 and window 16"),
        (("--memory", "magic"), 2, "invalid choice: 'magic'"),
        (("--slots", "8"), 2, "--slots does nothing for --memory recall; expected --memory bank"),
        (("--memory", "delta", "--order", "2"), 2, "--order does nothing for --memory delta"),
    ],
)
def test_a_mistake_is_a_sentence_and_leaves_nothing(
    run: Run, base: Path, tmp_path: Path, words: tuple[str, ...], status: int, sentence: str
) -> None:
    result = run("retrofit", str(base), str(tmp_path / "out"), *words)
    assert result.status == status
    assert sentence in result.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_touched(run: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert run("retrofit", str(base), str(tmp_path / "out")).status == 2
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
