"""Weights in the order in which ``products.h`` reads them: tiles of 16 rows by 32 columns.

    q4   256 bytes of 4-bit steps, 16 scales, 16 zeros      0.625 bytes a weight, exact for GGUF's Q4_0 and
    Q4_1 q8   512 bytes of 8-bit steps, 16 scales                1.0625 bytes a weight, exact for GGUF's Q8_0

Scales and zeros are float16, as in the files. ``Tiles`` gives the matrix back in floating point, bit for bit
what a reader of the file would have: reading many tokens takes its weights from there, so nothing is kept
twice. That costs 10 ms for a forward over the default checkpoint (``tiles.c``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infinichat.engine.matrix_unit import has_matrix_unit
from infinichat.engine.quantize import GROUP, four_bit_grid
from infinichat.model.blocks import Blocks
from infinichat.model.gguf_file import Q8_0

ROWS = 16
Q4, Q8 = 1, 2
"""``tiles.h``'s numbers of the two kinds."""

FEWEST, MOST = 16, 96
"""Tokens for which products in whole numbers are worth starting; with more, torch is faster where the
processor has a matrix unit, although it needs the weights unpacked: 256 take it 0.6 ms instead of 1.2."""

BYTES = {Q4: 320, Q8: 544}
"""Of one tile."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A ``stored.Store`` over ``data`` uint8 [rows / 16, columns / 32, bytes of a tile] of ``kind``."""

    kind: int
    data: Tensor
    library: ctypes.CDLL

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.data.shape[0] * ROWS, self.data.shape[1] * GROUP

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def weight(self, dtype: torch.dtype, first: int = 0, count: int | None = None) -> Tensor:
        """``count`` rows from ``first`` on (all) in ``dtype``; both are multiples of 16."""
        rows, columns = self.shape
        out = torch.empty(rows - first if count is None else count, columns, dtype=_written_as(dtype))
        self.write(out, first)
        return out.to(dtype)

    def write(self, out: Tensor, first: int = 0) -> None:
        """Rows from ``first`` on into ``out`` [count, columns], bfloat16 or float32."""
        part = self.data[first // ROWS : (first + out.shape[0]) // ROWS]
        blocks, groups = part.shape[:2]
        is_bf16 = int(out.dtype == torch.bfloat16)
        self.library.infini_unpack(self.kind, blocks, groups, part.data_ptr(), out.data_ptr(), is_bf16)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``ids`` [...] as [..., columns] in ``dtype``."""
        wanted = ids.to(torch.int64).contiguous()
        out = torch.empty(*ids.shape, self.shape[1], dtype=_written_as(dtype))
        self.library.infini_rows(
            self.kind,
            wanted.numel(),
            self.data.shape[1],
            self.data.data_ptr(),
            wanted.data_ptr(),
            out.data_ptr(),
            int(out.dtype == torch.bfloat16),
        )
        return out.to(dtype)

    def times(self, x: Tensor) -> Tensor | None:
        """``stored.Multiplies``, for 4-bit tiles and bfloat16 on processors that can (``many.c``)."""
        rows, columns = self.shape
        count = x.numel() // columns
        fits = self.kind == Q4 and x.dtype == torch.bfloat16 and x.is_contiguous()
        fits = fits and count >= FEWEST and not torch.is_grad_enabled()
        fits = fits and (count < MOST or not has_matrix_unit())
        if not fits or not self.library.infini_can_multiply_many():
            return None
        out = torch.empty(*x.shape[:-1], rows, dtype=x.dtype)
        places = (self.data.data_ptr(), x.data_ptr(), out.data_ptr())
        failed = self.library.infini_multiply_many(
            rows // ROWS, columns // GROUP, count, *places, torch.get_num_threads()
        )
        return None if failed else out

    def cut(self, first: int, count: int) -> Tiles:
        """``count`` rows from ``first`` on, on the same memory."""
        return Tiles(self.kind, self.data[first // ROWS : (first + count) // ROWS], self.library)


def _written_as(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.bfloat16 else torch.float32


def fits_tiles(shape: Sequence[int]) -> bool:
    """Whether a matrix of ``shape`` [out, in] can be cut into tiles."""
    return shape[0] % ROWS == 0 and shape[1] % GROUP == 0


def tiles_of_blocks(parts: Sequence[Blocks], library: ctypes.CDLL) -> Tiles | None:
    """The rows of ``parts`` below each other, exactly; None when they are not all of 4 or all of 8 bits."""
    kinds = {Q8 if part.kind == Q8_0 else Q4 for part in parts}
    if len(kinds) > 1:
        return None
    kind = kinds.pop()
    rows, groups = sum(part.shape[0] for part in parts), parts[0].raw.shape[1]
    data = torch.empty(rows // ROWS, groups, BYTES[kind], dtype=torch.uint8)
    at = 0
    for part in parts:
        count = part.shape[0]
        order, raw = part.order.contiguous(), part.raw.contiguous()
        to = data[at // ROWS :].data_ptr()
        library.infini_pack(part.kind, count, groups, raw.data_ptr(), order.data_ptr(), to)
        at += count
    return Tiles(kind, data, library)


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
