"""Tiny random models with trained-looking memories, and engines over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from infinichat.engine.generate import InfiniEngine
from infinichat.engine.kernels import PlainStep, Step
from infinichat.engine.quantize import WeightFormat
from infinichat.model.modeling_infini import InfiniForCausalLM
from tests.engine.tiny import engine_over, tiny_model

OPEN = ("alpha", "confidence", "gate_taps", "gate_out", "carry", "say_final", "say_out", "say")
MakeModel = Callable[..., InfiniForCausalLM]
MakeEngine = Callable[..., InfiniEngine]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> MakeModel:
    """``tiny_model`` whose memory is open, writes about half of the tokens, and carries on what it reads."""

    def make(**changes: Any) -> InfiniForCausalLM:
        model = tiny_model(**changes)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.rpartition(".memory.")[2] in OPEN or ".memory.adapters." in name:
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
        return engine_over(model, fingerprint=fingerprint, step=step)

    return make


def some_ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), generator=generator).tolist()
