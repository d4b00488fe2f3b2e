"""Weights in the order in which ``step.c`` reads them: tiles of 16 rows by 32 columns.

    q4   256 bytes of 4-bit steps, 16 scales, 16 zeros      0.625 bytes a weight, exact for GGUF's Q4_0 and
    Q4_1 q8   512 bytes of 8-bit steps, 16 scales                1.0625 bytes a weight, exact for GGUF's Q8_0

Scales and zeros are float16, as in the files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infinichat.engine.quantize import GROUP, four_bit_grid

ROWS = 16


def fits_tiles(weight: Tensor) -> bool:
    """Whether ``weight`` [out, in] can be cut into tiles."""
    return weight.shape[0] % ROWS == 0 and weight.shape[1] % GROUP == 0


def q4_tiles(weight: Tensor) -> Tensor | None:
    """``weight`` [out, in] as bytes [out / 16, in / 32, 320], or None when it lies on no 4-bit grid."""
    grid = four_bit_grid(weight)
    if grid is None:
        return None
    steps, scale, zero = grid
    rows, columns = steps.shape
    # A byte holds columns b (low half) and b + 4 (high half) of each 8: [blocks, 16, groups, 4, 2, 4].
    cut = steps.to(torch.uint8).view(rows // ROWS, ROWS, columns // GROUP, 4, 2, 4)
    halves = cut.permute(0, 2, 3, 1, 5, 4)  # [blocks, groups, 4, 16, 4, 2]
    packed = halves[..., 0] | (halves[..., 1] << 4)
    return torch.cat((packed.flatten(2), _halfs(scale), _halfs(zero)), dim=2).contiguous()


def q8_tiles(weight: Tensor) -> Tensor:
    """``weight`` [out, in] as bytes [out / 16, in / 32, 544], rounded to 8 bits with a scale for each 32."""
    rows, columns = weight.shape
    groups = weight.detach().float().view(rows, columns // GROUP, GROUP)
    scale = (groups.abs().amax(dim=2) / 127).to(torch.float16).float()
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    steps = (groups * inverse[..., None]).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    cut = steps.view(rows // ROWS, ROWS, columns // GROUP, 8, 4).permute(0, 2, 3, 1, 4)
    return torch.cat((cut.flatten(2), _halfs(scale)), dim=2).contiguous()


def _halfs(values: Tensor) -> Tensor:
    """[out, groups] float to the bytes of float16, [out / 16, groups, 32]."""
    rows, groups = values.shape
    cut = values.to(torch.float16).view(rows // ROWS, ROWS, groups).transpose(1, 2).contiguous()
    return cut.view(torch.uint8)
