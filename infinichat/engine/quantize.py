"""Weights in the formats that make one row fast: y = x W^T for a single token, where only bytes count.

At one token a matrix product reads every weight once and multiplies it once, so its time is its bytes. A
``Product`` holds one matrix in one of four formats:

    float32   the reference
    bfloat16  2 bytes a weight
    int8      1 byte, one scale a row                  |w - w'| <= max|row| / 254
    int4      half a byte, a scale and a zero for each 32 weights, rounded to bfloat16

int4 is only ever used where it loses nothing that bfloat16 would keep: for matrices that came from a file of
4-bit blocks (GGUF's Q4_0 and Q4_1), whose weights are found to lie on a grid of 16 values in each group of
32. ``smallest_lossless`` finds that out from the numbers alone. Measured on one AVX512 core for 576 x 3072 at
one row: float32 1190 us, bfloat16 665, int8 254, int4 104; at 256 rows bfloat16 is the fastest, which is why
reading text keeps a bfloat16 copy.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8", "int4")

GROUP = 32
"""Weights that share a scale and a zero in int4: the size of GGUF's blocks, so their grids are kept."""

LEVELS = 15
"""Steps between the smallest and the largest value of a 4-bit group."""

# A weight may be off its group's grid by this part of a step: far more than float32 rounding, far less than
# what a weight that is on no grid is off.
_OFF_GRID = 0.01


class Product:
    """y [1, out] = x [1, in] W^T (+ bias) in one weight format. ``dtype`` is what x must have and y has."""

    __slots__ = ("_bias", "_scales", "_weight", "dtype", "format", "nbytes")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, format: WeightFormat) -> None:
        """``weight`` [out, in], ``bias`` [out]. An int4 product whose shape the kernel does not take, or
        whose weights are on no 4-bit grid, is kept as int8; ``format`` then says so."""
        self.format = format
        self.dtype = torch.float32 if format == "float32" else torch.bfloat16
        self._scales = torch.empty(0)
        grid = four_bit_grid(weight) if format == "int4" else None
        if grid is not None:
            self._weight, self._scales = _pack_int4(*grid)
        elif format in ("int8", "int4"):
            self.format = "int8"
            self._weight, self._scales = _pack_int8(weight)
        else:
            self._weight = weight.detach().to(self.dtype).contiguous()
        self._bias = None if bias is None else bias.detach().to(self.dtype)
        self.nbytes = self._weight.nbytes + self._scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if self.format == "int4":
            y = torch._weight_int4pack_mm_for_cpu(x, self._weight, GROUP, self._scales)
        elif self.format == "int8":
            y = torch._weight_int8pack_mm(x, self._weight, self._scales)
        else:
            return F.linear(x, self._weight, self._bias)
        return y if self._bias is None else y + self._bias


def smallest_lossless(weight: Tensor) -> WeightFormat:
    """int4 when ``weight`` [out, in] lies on 4-bit grids, otherwise int8 (which loses a little)."""
    return "int8" if four_bit_grid(weight) is None else "int4"


def supported(format: WeightFormat) -> bool:
    """Whether this build of torch has a working kernel for ``format`` on this CPU; tried, not guessed."""
    try:
        weight = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64).remainder(16)
        x = torch.eye(64)[:1]
        product = Product(weight, format=format)
        got = product(x.to(product.dtype)).float()
        return product.format == format and bool(torch.allclose(got, x @ weight.T, rtol=0.02, atol=0.1))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def _pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.detach().float()
    # The rounded scale is used to quantise, so its rounding costs nothing.
    scales = (wide.abs().amax(dim=1) / 127).clamp(min=1e-12).to(torch.bfloat16)
    steps = (wide / scales.float()[:, None]).round_().clamp_(-128, 127)
    return steps.to(torch.int8).contiguous(), scales


def _pack_int4(steps: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    packed = torch._convert_weight_to_int4pack_for_cpu(steps, 1)
    # The kernel computes (step - 8) * scale + zero.
    pairs = torch.stack((scale, zero + 8 * scale), dim=-1)  # [out, groups, 2]
    return packed, pairs.transpose(0, 1).to(torch.bfloat16).contiguous()


def four_bit_grid(weight: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(steps [out, in] int32 in 0..15, scale [out, groups], zero [out, groups]) with weight = zero + scale *
    step, or None when the weights are on no such grid or the shape is not one the kernel takes."""
    rows, columns = weight.shape
    if rows % 64 or columns % GROUP:
        return None
    if rows > 64 and _grid_of(weight[:64]) is None:
        return None  # the usual answer for ordinary weights, without looking at all of them
    return _grid_of(weight)


def _grid_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    groups = weight.detach().float().view(weight.shape[0], -1, GROUP)  # [out, groups, 32]
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    span = (high - low).clamp(min=1e-12)
    scale = span / LEVELS
    steps = ((groups - low[..., None]) / scale[..., None]).round_()
    wrong = _off(groups, low, scale, steps)
    # A group that uses fewer than 16 values has a wider step: 14, 13, ... between its ends.
    for levels in range(LEVELS - 1, 0, -1):
        if not bool(wrong.any()):
            break
        wider = span / levels
        tried = ((groups - low[..., None]) / wider[..., None]).round_()
        better = wrong & ~_off(groups, low, wider, tried)
        scale = torch.where(better, wider, scale)
        steps = torch.where(better[..., None], tried, steps)
        wrong &= ~better
    if bool(wrong.any()):
        return None
    return steps.to(torch.int32).flatten(1), scale, low


def _off(groups: Tensor, low: Tensor, scale: Tensor, steps: Tensor) -> Tensor:
    """[out, groups] True where some weight is not near its step."""
    error = (groups - low[..., None] - scale[..., None] * steps).abs().amax(dim=2)
    return error > _OFF_GRID * scale
