"""Tiny random models with trained-looking memories, and engines over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.kernels import PlainStep, Step
from infinichat.engine.quantize import WeightFormat
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.protocols import EngineInfo

MakeModel = Callable[..., InfiniForCausalLM]
MakeEngine = Callable[..., InfiniEngine]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> MakeModel:
    """A model of 3 layers, window 24, segment 8; ``changes`` go to the configuration. Its recall memory is
    open and writes about half of the tokens."""

    def make(**changes: Any) -> InfiniForCausalLM:
        torch.manual_seed(3)
        numbers: dict[str, Any] = {
            "vocab_size": ByteTokenizer.vocab_size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "initializer_range": 0.2,
            "window": 24,
            "segment": 8,
            "sinks": 2,
            "memory_layers": [1],
            "memory_trained": True,
            "memory_key_dim": 8,
        }
        model = InfiniForCausalLM(InfiniConfig(**{**numbers, **changes})).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("memory.alpha", "memory.confidence", "memory.gate_taps")):
                    torch.nn.init.normal_(parameter, std=0.5)
        return model.requires_grad_(False)

    return make


@pytest.fixture
def make_engine(make_model: MakeModel) -> MakeEngine:
    """An engine over ``make_model``; ``format`` None runs the model's own forward."""

    def make(
        format: WeightFormat | None = "float32", *, fingerprint: str = "tiny", **changes: Any
    ) -> InfiniEngine:
        model = make_model(**changes)
        step: Step | None = None if format is None else PlainStep(model, format=format)
        config = model.config
        info = EngineInfo(
            name="tiny",
            fingerprint=fingerprint,
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
        return InfiniEngine(model, ByteTokenizer(), info=info, step=step)

    return make


def some_ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), generator=generator).tolist()
