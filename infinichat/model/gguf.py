"""Weights out of a GGUF, in the names and shapes that transformers gives the same model.

Four things may differ between a GGUF and the Hugging Face checkpoint it was made from. Names:
``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``. The rows of the query and key
projections of architecture llama: llama.cpp rotates neighbouring pairs (0, 1), (2, 3), ... there,
transformers the halves (0, d/2), (1, d/2 + 1), ..., so the converter interleaves each head's rows;
``_halves`` undoes that exactly. Gemma's norms: a GGUF holds 1 + w, transformers w. And the experts of a
layer, which a GGUF stacks.

Every tensor type that the ``gguf`` package can dequantize is read (``blocks``); matrices in 4 or 8 bits can
be had as they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.blocks import Blocks, Bytes, dequantize, kind_name
from infinichat.model.gguf_file import (
    Q4_0,
    Q4_1,
    Q8_0,
    SIZES,
    GgufFile,
    GgufTensor,
    check_extents,
    tensor_bytes,
)

KEPT = (Q4_0, Q4_1, Q8_0)
"""The types whose matrices can stay as they are stored."""

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
    file: GgufFile, *, dtype: torch.dtype | Callable[[str], torch.dtype], blocks: bool = False
) -> Iterator[tuple[str, Tensor | Blocks]]:
    """Every weight of the file as ``(transformers' name, tensor)``, one at a time, each a copy in ``dtype``
    (one for all, or what a function says for a name). Fused tensors stay fused. ``blocks``: matrices in 4 or
    8 bits as ``Blocks``.

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
        projection = name.split(".")[-2]
        rows = tensor.shape[0]
        order = torch.arange(rows)
        turned = file.architecture == "llama" and projection in heads
        if turned:
            order = _halves(order, heads[projection], tensor, file)
        if blocks and tensor.type_id in KEPT and len(tensor.shape) == 2:
            raw = torch.from_numpy(_raw(file, tensor)).view(rows, -1, SIZES[tensor.type_id][1])
            yield name, Blocks(tensor.type_id, raw, order)
            continue
        weights = read_tensor(file, tensor)
        if turned:
            weights = weights[order]
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
    try:
        return torch.from_numpy(dequantize(_raw(file, tensor), tensor.type_id)).view(tensor.shape)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{file.path.name}: tensor {tensor.name!r} has type {kind_name(tensor.type_id)}, which the gguf "
            "package cannot dequantize. Convert the model to Q8_0."
        ) from error


def _raw(file: GgufFile, tensor: GgufTensor) -> Bytes:
    """A tensor's bytes, a copy independent of the file."""
    start, count = file.data_start + tensor.offset, tensor_bytes(file, tensor)
    try:
        raw: Bytes = np.fromfile(file.path, dtype=np.uint8, count=count, offset=start)
    except OSError as error:
        raise ModelFileError(f"Cannot read {file.path}: {error.strerror or error}.") from error
    if raw.size != count:
        raise ModelFileError(
            f"{file.path.name} is truncated: tensor {tensor.name!r} has {raw.size:,} of {count:,} bytes. Get "
            "the file again."
        )
    return raw
