"""The nine activations of the original's MLPs, by name in ``ACTIVATIONS``.

    relu  gelu  abs          elementwise, without parameters
    swish                    x sigmoid(beta x), beta learned
    swiglu  geglu            act(x W + b) * (x V + c), with square W and V (arXiv 2002.05202)
    ffnglu  ffngeglu  ffnswiglu   (act(x W1) * (x V)) W2 through an inner width of ceil(2 D / 3), no biases

The gated ones are made with the width D of what they are applied to and keep it; parameters have the
original's names and shapes. Weights start with variance 1 / (inputs), so that none of the nine changes the
scale of its input by more than a constant; the original starts W1, V and W2 of the last three with 1 /
(outputs) instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Swish(nn.Module):
    """x sigmoid(beta x). ``beta``: a number, or None for a learned scalar (state_dict key ``beta``, [1])."""

    beta: nn.Parameter | float

    def __init__(self, beta: float | None = None) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1)) if beta is None else beta

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return x * torch.sigmoid(self.beta * x)


class Abs(nn.Module):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return x.abs()


def _weight(inputs: int, outputs: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)


class _Gated(nn.Module):
    """act(x W + b) * (x V + c), [..., D] -> [..., D]; parameters W, V [D, D] and b, c [D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.W, self.V = _weight(dim, dim), _weight(dim, dim)
        self.b, self.c = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def act(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.act(x @ self.W + self.b) * (x @ self.V + self.c)


class SwiGLU(_Gated):
    """swish(x W + b) * (x V + c), the swish's beta learned (``swish.beta``)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.swish = Swish()

    def act(self, x: Tensor) -> Tensor:
        activated: Tensor = self.swish(x)
        return activated


class GEGLU(_Gated):
    """gelu(x W + b) * (x V + c)."""

    def act(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class _GatedFFN(nn.Module):
    """(act(x W1) * (x V)) W2, [..., D] -> [..., D]; W1, V [D, I] and W2 [I, D], I = ceil(2 D / 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = -(-2 * dim // 3)
        self.W1, self.V, self.W2 = _weight(dim, inner), _weight(dim, inner), _weight(inner, dim)

    def act(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return (self.act(x @ self.W1) * (x @ self.V)) @ self.W2


class FFNGLU(_GatedFFN):
    """(sigmoid(x W1) * (x V)) W2."""

    def act(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class FFNGEGLU(_GatedFFN):
    """(gelu(x W1) * (x V)) W2."""

    def act(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class FFNSwiGLU(_GatedFFN):
    """(swish(x W1) * (x V)) W2 with beta = 1."""

    def act(self, x: Tensor) -> Tensor:
        return F.silu(x)


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "swish": Swish,
    "swiglu": SwiGLU,
    "geglu": GEGLU,
    "ffnglu": FFNGLU,
    "ffngeglu": FFNGEGLU,
    "ffnswiglu": FFNSwiGLU,
    "abs": Abs,
}

GATED = frozenset({"swiglu", "geglu", "ffnglu", "ffngeglu", "ffnswiglu"})
"""Those that are made with the width they are applied to."""


def make_activation(name: str, dim: int) -> nn.Module:
    """The activation ``name`` for tensors [..., dim]. Raises ``ValueError`` with the valid names."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"Invalid activation function: {name!r}; valid are {', '.join(sorted(ACTIVATIONS))}."
        )
    return ACTIVATIONS[name](dim) if name in GATED else ACTIVATIONS[name]()
