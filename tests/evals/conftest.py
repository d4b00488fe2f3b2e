"""A tiny engine with an open memory, a bench over it, and a folder of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.generate import InfiniEngine
from infinichat.evals.bench import Bench
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.protocols import EngineInfo

MakeEngine = Callable[..., InfiniEngine]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_engine() -> MakeEngine:
    """Three layers, memory in the middle one, window 24, segment 8; ``changes`` go to the configuration."""

    def make(**changes: Any) -> InfiniEngine:
        torch.manual_seed(3)
        numbers: dict[str, Any] = {
            "vocab_size": ByteTokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.3,
            "window": 24,
            "segment": 8,
            "sinks": 2,
            "memory": "bank",
            "memory_layers": [1],
            "memory_trained": True,
            "memory_key_dim": 8,
            "memory_slots": 16,
        }
        model = InfiniForCausalLM(InfiniConfig(**{**numbers, **changes})).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".memory." in name:
                    torch.nn.init.normal_(parameter, std=0.5)
        config = model.config
        info = EngineInfo(
            name="tiny",
            fingerprint="tiny",
            window=config.window,
            segment=config.segment,
            trained=config.memory_trained,
            device="cpu",
            dtype="float32",
            threads=1,
            chat_format="chatml",
            parameters=0,
            memory_layers=tuple(config.memory_layers),
        )
        return InfiniEngine(model.requires_grad_(False), ByteTokenizer(), info=info)

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
