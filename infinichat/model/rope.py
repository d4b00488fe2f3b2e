"""Scaled rotary frequencies: the variants that the families ship in ``rope_scaling``.

Everything in float64 and pure: frequencies in, frequencies out. Formulas: Llama 3's and LongRoPE's (arXiv
2402.13753) from the reference code of their releases as described in transformers' ``modeling_rope_utils``;
"linear" divides every frequency.

LongRoPE has two sets of factors, for texts up to the length that a model was first trained for and for longer
ones. Here no token ever sees another one that is further away than the window, whatever its position, so the
window decides: the short factors where it fits into that length, otherwise the long ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infinichat.attention.window import inverse_frequencies
from infinichat.errors import UnsupportedModelError
from infinichat.model.configuration_infini import InfiniConfig

KINDS = ("default", "linear", "llama3", "longrope")


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """How a layer's queries and keys are rotated: frequencies ``inv_freq`` float64 [rotated dimensions / 2],
    and ``scale``, by which both are multiplied."""

    inv_freq: Tensor
    scale: float = 1.0

    def to(self, device: torch.device | str) -> Rotation:
        """The same with its frequencies on ``device``."""
        return Rotation(self.inv_freq.to(device), self.scale)


@dataclass(frozen=True, slots=True)
class Rotations:
    """The rotation of layers that see the whole window, and of those that see a sliding part of it."""

    full: Rotation
    sliding: Rotation

    def to(self, device: torch.device | str) -> Rotations:
        """The same with its frequencies on ``device``."""
        full = self.full.to(device)
        return Rotations(full, full if self.sliding is self.full else self.sliding.to(device))


def rotations(config: InfiniConfig) -> Rotations:
    """The rotations of a model. Raises ``UnsupportedModelError`` for a kind of scaling that is not known."""
    rope = config.infini_rope
    plain, scaling = inverse_frequencies(config.rotary_dim, rope["theta"]), rope["scaling"]
    long = scaling_kind(scaling) == "longrope"
    full = (
        Rotation(longrope_frequencies(plain, scaling, longest=config.window), scaling["attention_factor"])
        if long
        else Rotation(scaled_frequencies(plain, scaling))
    )
    local = rope.get("local_theta")
    return Rotations(full, full if local is None else Rotation(inverse_frequencies(config.rotary_dim, local)))


def scaling_kind(scaling: dict[str, Any] | None) -> str:
    """The name of a ``rope_scaling``'s kind, under either of its keys."""
    kind = None if scaling is None else scaling.get("rope_type", scaling.get("type"))
    return "default" if kind is None else str(kind)


def longrope_frequencies(inv_freq: Tensor, scaling: dict[str, Any], *, longest: int) -> Tensor:
    """inv_freq float64 [D / 2] by the factors for distances up to ``longest`` tokens."""
    for key in ("short_factor", "long_factor"):
        if len(scaling[key]) != len(inv_freq):
            raise UnsupportedModelError(
                f"rope_scaling's {key} has {len(scaling[key])} factors; expected {len(inv_freq)}, one for "
                "each frequency. Get the model again."
            )
    short = longest <= scaling["original_max_position_embeddings"]
    factors = torch.tensor(scaling["short_factor" if short else "long_factor"], dtype=torch.float64)
    return inv_freq / factors


def scaled_frequencies(inv_freq: Tensor, scaling: dict[str, Any] | None) -> Tensor:
    """inv_freq float64 [D / 2] after ``rope_scaling``. Raises ``UnsupportedModelError`` for unknown kinds."""
    kind = scaling_kind(scaling)
    if scaling is None or kind == "default":
        return inv_freq
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(f"rope_scaling type is {kind!r}; supported are {', '.join(KINDS)}.")
    factor = float(scaling["factor"])
    return inv_freq / factor if kind == "linear" else _llama3(inv_freq, scaling, factor)


def _llama3(inv_freq: Tensor, scaling: dict[str, Any], factor: float) -> Tensor:
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    trained = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inv_freq
    smooth = ((trained / wavelength - low) / (high - low)).clamp(0, 1)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    slow = torch.where(wavelength > trained / low, inv_freq / factor, blended)
    return torch.where(wavelength < trained / high, inv_freq, slow)
