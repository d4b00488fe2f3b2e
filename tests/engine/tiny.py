"""A tiny random model and an engine over it, as the tests of engine, benches and evals take them."""

from __future__ import annotations

from typing import Any

import torch

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.kernels import Step
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.protocols import EngineInfo, TextTokenizer


def tiny_model(**changes: Any) -> InfiniForCausalLM:
    """Three layers, memory in the middle one, window 24, segment 8, always the same random weights;
    ``changes`` go to the configuration. The memory's own parameters are as a new checkpoint's."""
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
    return InfiniForCausalLM(InfiniConfig(**{**numbers, **changes})).eval()


def engine_over(
    model: InfiniForCausalLM,
    *,
    fingerprint: str = "tiny",
    step: Step | None = None,
    tokenizer: TextTokenizer | None = None,
) -> InfiniEngine:
    """An engine that calls itself "tiny" and takes bytes for tokens; without ``step`` it answers with the
    model's own forward."""
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
    return InfiniEngine(model.requires_grad_(False), tokenizer or ByteTokenizer(), info=info, step=step)
