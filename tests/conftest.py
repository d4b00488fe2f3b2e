"""Every test has a home of its own: nothing it does can touch a person's sessions, settings or models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infinichat.config import ENV_PREFIX
from infinichat.paths import Paths, default_paths

# Tests share the machine: more threads than cores make torch many times slower. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("INFINICHAT_HOME", str(home))
    return home


@pytest.fixture
def paths(own_home: Path) -> Paths:
    return default_paths()
