"""Weights in the blocks of 32 in which a GGUF stores them, and what they stand for.

``Blocks`` is one matrix, kept as it lies in the file: a quarter or less of what it takes as floats, so it is
read faster, and the engine packs it for its own products without ever having it in floating point.
``dequantize`` is what all block types mean; those with a path of their own here work in pieces small enough
for the processor's cache: 0.4 s instead of 8 s on one core for the default checkpoint's 135 M weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infinichat.model.gguf_file import BF16, F16, F32, GROUP, Q4_0, Q4_1, Q8_0, block_size

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# 16,384 blocks of 32 weights: 0.15 s for 106 M weights of Q4_1; 4 times larger or smaller pieces cost 0.16 to
# 0.18 s, no pieces at all 0.5 s.
_BLOCKS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix of ggml's type ``kind`` (Q4_0, Q4_1 or Q8_0): ``raw`` uint8 [rows, groups, bytes of a block],
    whose row ``order[r]`` is the matrix's row r."""

    kind: int
    raw: Tensor
    order: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.raw.shape[0], self.raw.shape[1] * GROUP

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def weight(self, dtype: torch.dtype, first: int = 0, count: int | None = None) -> Tensor:
        """Rows ``first`` to ``first + count`` (to the last one) in ``dtype``."""
        end = self.shape[0] if count is None else first + count
        return self.rows(torch.arange(first, end), dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``ids`` [...] as [..., columns] in ``dtype``."""
        raw = self.raw[self.order[ids.flatten()]].numpy().reshape(-1)
        return torch.from_numpy(dequantize(raw, self.kind)).view(*ids.shape, -1).to(dtype)

    def finite(self) -> bool:
        """Whether no weight is NaN or Inf: every scale and zero is small enough for 16 of its steps."""
        halfs = self.raw[..., : 4 if self.kind == Q4_1 else 2].contiguous().view(torch.float16)
        return bool((halfs.abs() < torch.finfo(torch.float16).max / 16).all())


def dequantize(raw: Bytes, kind: int) -> Floats:
    """Flat float32 weights out of a tensor's bytes of ggml's type ``kind``; raises ``NotImplementedError``
    for what the ``gguf`` package cannot do."""
    if kind == F32:
        return raw.view(np.float32)
    if kind == F16:
        return raw.view(np.float16).astype(np.float32)
    if kind == BF16:
        # The upper half of a float32. (gguf's own way rounds lanes one by one: 0.3 s a million weights.)
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    block, size = block_size(kind)
    blocks = raw.reshape(-1, size)
    out: Floats = np.empty((len(blocks), block), dtype=np.float32)
    unpack = _UNPACK.get(kind) or _by_gguf(kind, block)
    step = max(1, _BLOCKS_AT_ONCE * GROUP // block)
    for at in range(0, len(blocks), step):
        unpack(blocks[at : at + step], out[at : at + step])
    return out.reshape(-1)


def kind_name(kind: int) -> str:
    """ggml's name of a type."""
    from gguf.constants import GGMLQuantizationType

    return str(GGMLQuantizationType(kind).name)


def _by_gguf(kind: int, block: int) -> Callable[[Bytes, Floats], None]:
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    def unpack(blocks: Bytes, out: Floats) -> None:
        out[:] = quants.dequantize(blocks, GGMLQuantizationType(kind)).reshape(len(blocks), block)

    return unpack


def _halfs(blocks: Bytes, column: int) -> Floats:
    """The float16 at byte ``column`` of each block, as a float32 column."""
    return np.ascontiguousarray(blocks[:, column : column + 2]).view(np.float16).astype(np.float32)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _halfs(blocks, 0), out=out)


def _nibbles(quants_: Bytes, out: Floats) -> None:
    # A byte holds weight i in its low and weight i + 16 in its high four bits.
    out[:, :16] = quants_ & 15
    out[:, 16:] = quants_ >> 4


def _q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _halfs(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _halfs(blocks, 0)
    out += _halfs(blocks, 2)


_UNPACK: dict[int, Callable[[Bytes, Floats], None]] = {Q8_0: _q8_0, Q4_0: _q4_0, Q4_1: _q4_1}
