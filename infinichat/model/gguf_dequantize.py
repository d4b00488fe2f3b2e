"""A tensor's bytes in a GGUF as float32.

Every tensor type that the ``gguf`` package can dequantize is read. F32, F16, BF16, Q8_0, Q4_0 and Q4_1 have a
path of their own here that works in pieces small enough for the processor's cache: 0.4 s instead of 8 s on
one core for the default checkpoint's 135 M weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.gguf_file import GgufFile, GgufTensor, tensor_bytes

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# 16,384 blocks of 32 weights: 0.15 s for 106 M weights of Q4_1; 4 times larger or smaller pieces cost 0.16 to
# 0.18 s, no pieces at all 0.5 s.
_BLOCKS_AT_ONCE = 16_384


def read_tensor(file: GgufFile, tensor: GgufTensor) -> Tensor:
    """One tensor as float32 in its row-major shape, a copy independent of the file."""
    start, count = file.data_start + tensor.offset, tensor_bytes(file, tensor)
    kind = GGMLQuantizationType(tensor.type_id)
    try:
        raw: Bytes = np.fromfile(file.path, dtype=np.uint8, count=count, offset=start)
    except OSError as error:
        raise ModelFileError(f"Cannot read {file.path}: {error.strerror or error}.") from error
    if raw.size != count:
        raise ModelFileError(
            f"{file.path.name} is truncated: tensor {tensor.name!r} has {raw.size:,} of {count:,} bytes. Get "
            "the file again."
        )
    try:
        return torch.from_numpy(_dequantize(raw, kind)).view(tensor.shape)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{file.path.name}: tensor {tensor.name!r} has type {kind.name}, which the gguf package cannot "
            "dequantize. Convert the model to Q8_0."
        ) from error


def _dequantize(raw: Bytes, kind: GGMLQuantizationType) -> Floats:
    """Flat float32 weights out of a tensor's bytes; raises ``NotImplementedError`` for what gguf cannot
    do."""
    if kind == GGMLQuantizationType.F32:
        return raw.view(np.float32)
    if kind == GGMLQuantizationType.F16:
        return raw.view(np.float16).astype(np.float32)
    if kind == GGMLQuantizationType.BF16:
        # The upper half of a float32. (gguf's own way rounds lanes one by one: 0.3 s a million weights.)
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    block, size = GGML_QUANT_SIZES[kind]
    blocks = raw.reshape(-1, size)
    out: Floats = np.empty((len(blocks), block), dtype=np.float32)
    unpack = _UNPACK.get(kind)
    step = max(1, _BLOCKS_AT_ONCE * 32 // block)
    for at in range(0, len(blocks), step):
        piece = blocks[at : at + step]
        if unpack is None:
            out[at : at + step] = quants.dequantize(piece, kind).reshape(len(piece), block)
        else:
            unpack(piece, out[at : at + step])
    return out.reshape(-1)


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


_UNPACK: dict[GGMLQuantizationType, Callable[[Bytes, Floats], None]] = {
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
}
