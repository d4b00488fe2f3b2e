"""Weights out of a GGUF, in the names and shapes that transformers gives the same model.

Four things may differ between a GGUF and the Hugging Face checkpoint it was made from. Names:
``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``. The rows of the query and key
projections of architecture llama: llama.cpp rotates neighbouring pairs (0, 1), (2, 3), ... there,
transformers the halves (0, d/2), (1, d/2 + 1), ..., so the converter interleaves each head's rows;
``_halves`` undoes that exactly. Gemma's norms: a GGUF holds 1 + w, transformers w. And the experts of a
layer, which a GGUF stacks.

Every tensor type that the ``gguf`` package can dequantize is read. F32, F16, BF16, Q8_0, Q4_0 and Q4_1 have a
path of their own here that works in pieces small enough for the processor's cache: 0.4 s instead of 8 s on
one core for the default checkpoint's 135 M weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.gguf_file import GgufFile, GgufTensor, check_extents, tensor_bytes

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# 16,384 blocks of 32 weights: 0.15 s for 106 M weights of Q4_1; 4 times larger or smaller pieces cost 0.16 to
# 0.18 s, no pieces at all 0.5 s.
_BLOCKS_AT_ONCE = 16_384

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are part of the configuration (``gguf_config``), not weights."""

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{part}_exps": f"mlp.experts.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
}
# What an architecture has besides, or calls otherwise.
_OWN_NAMES: dict[str, dict[str, str]] = {
    "qwen3": _QK_NORMS,
    "qwen2moe": _EXPERTS,
    "gemma2": _POST_NORMS,
    "gemma3": {**_POST_NORMS, **_QK_NORMS},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")


def hf_name(name: str, architecture: str = "llama") -> str | None:
    """Transformers' name of a GGUF tensor; ``None`` for a name that the architecture does not have."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match = _LAYER.fullmatch(name)
    names = {**_LAYER_NAMES, **_OWN_NAMES.get(architecture, {})}
    if match is None or match[2] not in names:
        return None
    return f"model.layers.{match[1]}.{names[match[2]]}.{match[3]}"


def gguf_tensors(
    file: GgufFile, *, dtype: torch.dtype | Callable[[str], torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the file as ``(transformers' name, tensor)``, one at a time, each a copy in ``dtype``
    (one for all, or what a function says for a name). Fused tensors stay fused.

    Raises ``ModelFileError`` when the file's table does not fit the file, ``UnsupportedModelError`` naming a
    tensor that the architecture does not have or whose type cannot be read.
    """
    check_extents(file)
    count = file.number("attention.head_count")
    heads = {"q_proj": count, "k_proj": file.number("attention.head_count_kv", count)}
    for tensor in file.tensors.values():
        if tensor.name in ROPE_TENSORS:
            continue  # already in the configuration
        name = hf_name(tensor.name, file.architecture)
        if name is None:
            raise UnsupportedModelError(
                f"{file.path.name} has a tensor {tensor.name!r} that a model of architecture "
                f"{file.architecture!r} does not have; this kind of model is not supported."
            )
        weights = read_tensor(file, tensor)
        projection = name.split(".")[-2]
        if file.architecture == "llama" and projection in heads:
            weights = _halves(weights, heads[projection], tensor, file)
        elif file.architecture.startswith("gemma") and name.endswith("norm.weight"):
            weights = weights - 1
        elif projection == "shared_expert_gate":
            weights = weights.view(1, -1)  # one row, stored as a vector
        yield name, weights.to(dtype(name) if callable(dtype) else dtype)


def _halves(weights: Tensor, heads: int, tensor: GgufTensor, file: GgufFile) -> Tensor:
    """Undo the interleaving of each head's rows: (0, 1), (2, 3), ... back to (0, d/2), (1, d/2 + 1), ..."""
    rows = weights.shape[0]
    if rows % (2 * heads):
        raise ModelFileError(
            f"{file.path.name}: tensor {tensor.name!r} has {rows} rows, expected a multiple of {2 * heads} "
            f"({heads} heads)."
        )
    pairs = weights.reshape(heads, rows // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


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
