"""A tiny engine with an open memory, a bench over it, and a folder of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from infinichat.engine.generate import InfiniEngine
from infinichat.evals.bench import Bench
from tests.engine.tiny import engine_over, tiny_model

MakeEngine = Callable[..., InfiniEngine]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_engine() -> MakeEngine:
    """``tiny_model``, smaller still, with an open bank; ``changes`` go to the configuration."""

    def make(**changes: Any) -> InfiniEngine:
        smaller: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "head_dim": 8,
            "initializer_range": 0.3,
            "memory": "bank",
            "memory_slots": 16,
            "memory_rank": 2,
            "memory_topics": 2,
        }
        model = tiny_model(**{**smaller, **changes})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".memory." in name:
                    torch.nn.init.normal_(parameter, std=0.5)
        return engine_over(model)

    return make


@pytest.fixture
def bench(make_engine: MakeEngine) -> Bench:
    return Bench.of(make_engine())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two dialogues, one of a persona file, and a book."""
    text = tmp_path / "held-out"
    text.mkdir()
    dialogue = {"messages": [{"role": r, "content": c} for r, c in (("user", "Hi you"), ("assistant", "Ho"))]}
    (text / "small.jsonl").write_text(json.dumps(dialogue) + "\n")
    told = {"messages": [{"role": "user", "content": "PERSONA"}, {"role": "assistant", "content": "PERSONA"}]}
    (text / "a_persona.jsonl").write_text(json.dumps(told) + "\n")
    (text / "book.txt").write_text("It was a dark night, and nobody came.\n\n" * 60)
    return text
