"""Scaled rotary frequencies: the variants that Llama-like families ship in ``rope_scaling``.

Everything in float64 and pure: frequencies in, frequencies out. Formulas: Llama 3's from the reference code
of its release as described in transformers' ``modeling_rope_utils``; "linear" divides every frequency.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from infinichat.errors import UnsupportedModelError


def scaled_frequencies(inv_freq: Tensor, scaling: dict[str, Any] | None) -> Tensor:
    """inv_freq float64 [D / 2] after ``rope_scaling``. Raises ``UnsupportedModelError`` for unknown kinds."""
    kind = None if scaling is None else scaling.get("rope_type", scaling.get("type"))
    if scaling is None or kind in (None, "default"):
        return inv_freq
    factor = float(scaling["factor"])
    if kind == "linear":
        return inv_freq / factor
    if kind == "llama3":
        return _llama3(inv_freq, scaling, factor)
    raise UnsupportedModelError(f"rope_scaling type is {kind!r}; supported are default, linear and llama3.")


def _llama3(inv_freq: Tensor, scaling: dict[str, Any], factor: float) -> Tensor:
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    trained = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inv_freq
    smooth = ((trained / wavelength - low) / (high - low)).clamp(0, 1)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    slow = torch.where(wavelength > trained / low, inv_freq / factor, blended)
    return torch.where(wavelength < trained / high, inv_freq, slow)
