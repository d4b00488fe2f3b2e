"""``models``: the list, fetching, choosing, checking, removing; no verb of it imports torch (see the
architecture's tests)."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from infinichat.cli import models
from infinichat.cli.console import Console
from infinichat.cli.context import Context
from infinichat.config import load_settings
from infinichat.paths import Paths
from tests.cli.conftest import Run, Terminal

# A GGUF without tensors, as far as its header goes.
DATA = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"\0" * 5000
SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One shipped checkpoint, "tiny", whose base weights are a file that can be copied."""
    folder = tmp_path / "shipped" / "tiny"
    folder.mkdir(parents=True)
    base = {"file": "base.gguf", "size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
    config = {"model_type": "infini", "memory_trained": True, "base": base, "vocab_size": 10, **SHAPE}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("# tiny\n\nA model for tests.\n")
    (folder / "memory.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / "recall.json").write_text(json.dumps({"facts_8": 0.9}))
    monkeypatch.setattr("infinichat.model.registry.bundled_models", lambda: (folder.parent,))
    return folder


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "somewhere" / "base.gguf"
    file.parent.mkdir()
    file.write_bytes(DATA)
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(file))
    return file


def test_the_list_says_what_is_installed_and_trained(run: Run) -> None:
    out = run("models", "list").out
    assert out.splitlines()[0].split() == ["NAME", "STATE", "MEMORY", "SIZE", "ABOUT"]
    assert out.splitlines()[1].split() == ["tiny", "available", "trained", *out.splitlines()[1].split()[3:]]
    assert "A model for tests." in out
    row = run("models", "list", "--json").json[0]
    assert (row["name"], row["installed"], row["trained"], row["recall"]) == (
        "tiny",
        False,
        True,
        {"facts_8": 0.9},
    )


def test_pull_fetches_once_and_then_has_it(run: Run, copy: Path) -> None:
    first = run("models", "pull", "tiny")
    assert (first.status, first.out) == (0, "")
    assert "tiny is installed: " in first.err or "tiny is here: " in first.err
    assert "tiny is here: " in run("models", "pull", "tiny").err
    assert run("models", "pull", "tiny", "--json").json["installed"] is True


def test_a_pull_of_another_file_is_refused_by_name(run: Run, copy: Path) -> None:
    copy.write_bytes(DATA[:-1] + b"x")
    result = run("models", "verify", "tiny")
    assert result.status == 1
    assert "base.gguf" in result.out
    assert "1 problem found" in result.err


def test_info_shows_the_measured_recall_and_the_next_step(run: Run) -> None:
    result = run("models", "info", "tiny")
    assert "recall, facts_8  0.9" in result.out
    assert result.err == "Next: infinichat models pull tiny\n"


def test_use_makes_it_the_chosen_one(run: Run, copy: Path, paths: Paths) -> None:
    assert run("models", "use", "tiny").status == 0
    assert load_settings(paths).model == "tiny"
    assert run("models").out.splitlines()[1].startswith("* tiny")


def test_use_of_a_path_keeps_the_path(run: Run, tmp_path: Path, paths: Paths) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(DATA)
    assert run("models", "use", str(file)).status == 0
    assert load_settings(paths).model == str(file)


@pytest.mark.parametrize("verb", ["info", "pull", "use", "remove", "verify"])
def test_an_unknown_model_is_a_sentence_with_near_names(run: Run, verb: str) -> None:
    result = run("models", verb, "tinny")
    assert (result.status, result.out) == (1, "")
    assert "tiny" in result.err
    assert result.err.count("\n") == 1


def test_use_without_base_weights_names_the_pull(run: Run, paths: Paths) -> None:
    result = run("models", "use", "tiny")
    assert result.status == 1
    assert "infinichat models pull tiny" in result.err
    assert load_settings(paths).model is None


def test_remove_frees_what_is_the_user_s_and_nothing_else(run: Run, paths: Paths, shipped: Path) -> None:
    paths.models.mkdir(parents=True)
    (paths.models / "mine.gguf").write_bytes(DATA)
    assert "removed mine: 5.0 kB are free again" in run("models", "remove", "mine").err
    assert not (paths.models / "mine.gguf").exists()
    assert "nothing of tiny was fetched" in run("models", "remove", "tiny").err
    assert shipped.exists()


def test_verify_says_that_all_is_well(run: Run, copy: Path) -> None:
    assert run("models", "verify", "tiny").out == "every byte is as it should be\n"
    assert run("models", "verify", "--json").json == {"model": None, "problems": []}


def test_progress_is_told_in_bytes_and_percent() -> None:
    from infinichat.model.pull import PullProgress

    assert models.describe(PullProgress("download", "a.gguf", 40_300_000, 98_362_432)) == (
        "fetching a.gguf  40 %  40.3 MB of 98.4 MB"
    )
    assert models.describe(PullProgress("download", "a.gguf", 1500, None)) == "fetching a.gguf  1.5 kB"
    assert models.describe(PullProgress("wait", "a.gguf", 0, None)).startswith("waiting for another")


def test_nothing_is_written_by_looking(run: Run, own_home: Path) -> None:
    run("models", "list")
    run("models", "info", "tiny")
    assert not own_home.exists() or not any(os.scandir(own_home))


@pytest.mark.parametrize(("typed", "fetched"), [("\n", True), ("n\n", False)])
def test_a_person_is_asked_before_the_first_fetch(
    typed: str, fetched: bool, paths: Paths, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infinichat.model.base_weights.base_weights_override", lambda: None)
    asked = Terminal()
    screen = Console(stdin=Terminal(typed), stdout=Terminal(), stderr=asked)
    models.offer_to_fetch(Context(paths, screen), "tiny")
    assert "The weights of tiny (" in asked.getvalue()
    assert (paths.models / "base" / "base.gguf").exists() is fetched


def test_info_lists_recall_by_distance_with_questions_and_interval(run: Run, shipped: Path) -> None:
    point = {"name": "16 facts", "filler": "books", "tokens": 65536, "share": 0.9, "n": 48}
    (shipped / "recall.json").write_text(
        json.dumps({"recall": [{**point, "interval": [0.78, 0.96]}], "cells": []})
    )
    lines = run("models", "info", "tiny").out.splitlines()
    [line] = [line for line in lines if line.startswith("recall")]
    assert line.split("  ") == ["recall, 16 facts, 64K of books", "90% of 48 (78% to 96%)"]
