"""The hand-written step is the model's forward: same states, same scores, at every place of a window."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infinichat.attention.window import evicted_before
from infinichat.engine.kernels import ModuleStep, PlainStep
from infinichat.engine.quantize import WeightFormat
from infinichat.model.cache import InfiniCache
from tests.engine.conftest import MakeModel, some_ids

KINDS: list[dict[str, Any]] = [
    {"memory": "recall"},
    {"memory": "linear"},
    {"memory": "delta", "memory_layers": [0, 2]},
    {"memory": "bank", "memory_slots": 9},
    {"memory": "bank", "memory_slots": 9, "memory_rank": 2},
    {"memory": "bank", "memory_slots": 9, "memory_rank": 2, "memory_layers": [0, 1], "num_hidden_layers": 4},
    {"memory_trained": False},
    {"sinks": 0},
    {"window": 8, "segment": 8, "sinks": 0},
    {"attention_bias": True, "mlp_bias": True},
    {"hidden_act": "gelu_pytorch_tanh"},
    {"tie_word_embeddings": False},
    {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
]


def tensors_of(cache: InfiniCache) -> dict[str, torch.Tensor]:
    return cache.to_tensors()


@pytest.mark.parametrize("changes", KINDS, ids=str)
@torch.inference_mode()
def test_a_plain_step_equals_the_models_forward(changes: dict[str, Any], make_model: MakeModel) -> None:
    model = make_model(**changes)
    plain, module = PlainStep(model, format="float32"), ModuleStep(model)
    ours, theirs = model.model.new_cache(), model.model.new_cache()
    for place, token_id in enumerate(some_ids(60)):
        plain.feed(ours, token_id)
        module.feed(theirs, token_id)
        assert ours.last_hidden is not None
        assert theirs.last_hidden is not None
        scores = module.logits(theirs.last_hidden)
        # Of the largest score: what one memory adds moves what the next one finds, so rounding grows.
        torch.testing.assert_close(
            plain.logits(ours.last_hidden), scores, rtol=1e-4, atol=1e-4 * float(scores.abs().max()),
            msg=lambda text, place=place: f"token {place}: {text}",
        )  # fmt: skip
    expected = tensors_of(theirs)
    assert tensors_of(ours).keys() == expected.keys()
    for name, tensor in tensors_of(ours).items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@torch.inference_mode()
def test_a_plain_step_goes_on_from_a_prefilled_state(make_model: MakeModel) -> None:
    model = make_model()
    plain = PlainStep(model, format="float32")
    ids = some_ids(70, seed=1)
    cache, whole = model.model.new_cache(), model.model.new_cache()
    model.model(input_ids=torch.tensor([ids[:45]]), past_key_values=cache, keep=1)
    for token_id in ids[45:]:
        plain.feed(cache, token_id)
    model.model(input_ids=torch.tensor([ids]), past_key_values=whole, keep=1)
    torch.testing.assert_close(cache.last_hidden, whole.last_hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", ["bfloat16", "int8"])
@torch.inference_mode()
def test_narrow_weights_give_nearly_the_same_scores(format: WeightFormat, make_model: MakeModel) -> None:
    model = make_model(initializer_range=0.05)
    exact, narrow = PlainStep(model, format="float32"), PlainStep(model, format=format)
    a, b = model.model.new_cache(), model.model.new_cache()
    for token_id in some_ids(40, seed=2):
        exact.feed(a, token_id)
        narrow.feed(b, token_id)
    assert a.last_hidden is not None
    assert b.last_hidden is not None
    scores, other = exact.logits(a.last_hidden), narrow.logits(b.last_hidden).float()
    assert torch.nn.functional.cosine_similarity(scores, other, dim=0) > 0.999
    assert narrow.nbytes < 0.6 * exact.nbytes


@torch.inference_mode()
def test_positions_of_ten_millions_stay_exact(make_model: MakeModel) -> None:
    model = make_model(memory_trained=False, sinks=0)
    plain, module = PlainStep(model, format="float32"), ModuleStep(model)
    hidden = []
    for step in (plain, module):
        cache = model.model.new_cache()
        cache.seen = 10_000_000
        cache.evicted = evicted_before(cache.seen, window=24, segment=8)
        for token_id in some_ids(20, seed=3):
            step.feed(cache, token_id)
        hidden.append(cache.last_hidden)
    torch.testing.assert_close(hidden[0], hidden[1], rtol=1e-4, atol=1e-4)
