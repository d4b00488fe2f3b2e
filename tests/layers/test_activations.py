"""The nine activations against their formulas, with the original's names and shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.layers import ACTIVATIONS
from infinichat.layers.activations import GATED, make_activation

F64 = torch.float64

SHAPES = {
    "relu": {},
    "gelu": {},
    "abs": {},
    "swish": {"beta": (1,)},
    "swiglu": {"W": (5, 5), "V": (5, 5), "b": (5,), "c": (5,), "swish.beta": (1,)},
    "geglu": {"W": (5, 5), "V": (5, 5), "b": (5,), "c": (5,)},
    "ffnglu": {"W1": (5, 4), "V": (5, 4), "W2": (4, 5)},
    "ffngeglu": {"W1": (5, 4), "V": (5, 4), "W2": (4, 5)},
    "ffnswiglu": {"W1": (5, 4), "V": (5, 4), "W2": (4, 5)},
}


def test_these_are_the_names() -> None:
    assert set(ACTIVATIONS) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_have_the_original_s_names_and_shapes(name: str) -> None:
    state = make_activation(name, 5).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == SHAPES[name]


def swish(x: Tensor, beta: float = 1.0) -> Tensor:
    return x / (1 + torch.exp(-beta * x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("name", SHAPES)
def test_each_is_its_formula(name: str) -> None:
    act = make_activation(name, 5).to(F64)
    for parameter in act.parameters():
        parameter.data.normal_()
    p = dict(act.named_parameters())
    x = torch.randn(2, 3, 5, dtype=F64)
    with torch.no_grad():
        expected = {
            "relu": lambda: x.clamp(min=0),
            "gelu": lambda: gelu(x),
            "abs": lambda: torch.sqrt(x * x),
            "swish": lambda: swish(x, float(p["beta"])),
            "swiglu": lambda: swish(x @ p["W"] + p["b"], float(p["swish.beta"])) * (x @ p["V"] + p["c"]),
            "geglu": lambda: gelu(x @ p["W"] + p["b"]) * (x @ p["V"] + p["c"]),
            "ffnglu": lambda: (torch.sigmoid(x @ p["W1"]) * (x @ p["V"])) @ p["W2"],
            "ffngeglu": lambda: (gelu(x @ p["W1"]) * (x @ p["V"])) @ p["W2"],
            "ffnswiglu": lambda: (swish(x @ p["W1"]) * (x @ p["V"])) @ p["W2"],
        }[name]()
        torch.testing.assert_close(act(x), expected)


@pytest.mark.parametrize("name", sorted(GATED))
def test_gated_ones_start_near_the_scale_of_their_input(name: str) -> None:
    with torch.no_grad():
        out = make_activation(name, 256)(torch.randn(400, 256))
    assert 0.2 < float(out.std()) < 1.5


def test_a_learned_swish_starts_as_silu_and_learns() -> None:
    act, x = make_activation("swish", 5), torch.randn(4, 5)
    torch.testing.assert_close(act(x), F.silu(x))
    act(x).square().sum().backward()
    (beta,) = act.parameters()
    assert beta.grad is not None
    assert bool(beta.grad.abs() > 0)


def test_an_unknown_name_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="Invalid activation function: 'tanh'; valid are abs, .*swish"):
        make_activation("tanh", 5)
