"""Weights and configuration out of a GGUF, in the names and shapes that transformers gives a Llama.

Two things differ between a llama-architecture GGUF and the Hugging Face checkpoint it was made from. Names:
``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``. And the rows of the query and key
projections: llama.cpp rotates neighbouring pairs (0, 1), (2, 3), ..., transformers the halves (0, d/2),
(1, d/2 + 1), ..., so the converter interleaves each head's rows; ``_halves`` undoes that exactly.

Every tensor type that the ``gguf`` package can dequantize is read (``blocks``); matrices in 4 or 8 bits can
be had as they are stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

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
_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"

# Keys under "llama." that change the arithmetic in a way the model here does not do, with the value at which
# they change nothing.
_NEUTRAL: dict[str, float] = {
    "expert_count": 0,
    "attention.scale": 0,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
}


def hf_name(name: str) -> str | None:
    """Transformers' Llama name of a GGUF tensor; ``None`` for a name that a Llama does not have."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        return None
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """The metadata of a llama-architecture GGUF as the dictionary that transformers' ``LlamaConfig`` takes.

    Raises ``UnsupportedModelError`` for another architecture or for features a plain Llama does not have, and
    ``ModelFileError`` when something needed is missing.
    """
    _refuse_other_arithmetic(file)
    heads = _number(file, "attention.head_count")
    hidden = _number(file, "embedding_length")
    head_dim = int(file.metadata.get("llama.attention.key_length", hidden // max(heads, 1)))
    rotated = int(file.metadata.get("llama.rope.dimension_count", head_dim))
    if rotated != head_dim:
        raise UnsupportedModelError(
            f"{file.path.name} rotates {rotated} of {head_dim} dimensions a head; only models that rotate "
            "all of them are supported."
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError(f"{file.path.name} has no tensor 'token_embd.weight'. Convert the model again.")
    ids = {
        f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "model_type": "llama",
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_hidden_layers": _number(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _real(file, "attention.layer_norm_rms_epsilon"),
        "rope_theta": _real(file, "rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(file),
        "max_position_embeddings": _number(file, "context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        **ids,
    }


def _refuse_other_arithmetic(file: GgufFile) -> None:
    if file.architecture != "llama":
        raise UnsupportedModelError(
            f"{file.path.name} has architecture {file.architecture or 'unknown'!r}; GGUF files of "
            "architecture 'llama' (Llama, Mistral, SmolLM2, ...) are supported. Choose such a file or a "
            "Hugging Face folder."
        )
    parts = file.metadata.get("split.count", 1)
    if parts != 1:
        raise UnsupportedModelError(
            f"{file.path.name} is one of {parts} parts of a model. Join them with llama.cpp's gguf-split "
            "--merge."
        )
    for key, neutral in _NEUTRAL.items():
        value = file.metadata.get(f"llama.{key}", neutral)
        if value != neutral:
            raise UnsupportedModelError(
                f"{file.path.name} has llama.{key} = {value}, expected {neutral}: this kind of Llama is not "
                "supported."
            )


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(f"llama.{key}", default)
    if isinstance(value, list) and value and len(set(value)) == 1:
        value = value[0]  # some converters write one number per layer
    if not isinstance(value, int) or value <= 0:
        raise ModelFileError(
            f"{file.path.name} has llama.{key} = {value!r}, expected a positive whole number."
        )
    return value


def _real(file: GgufFile, key: str, default: float | None = None) -> float:
    value = file.metadata.get(f"llama.{key}", default)
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ModelFileError(f"{file.path.name} has llama.{key} = {value!r}, expected a positive number.")
    # Stored as float32: 9.999999747378752e-06 is meant to be 1e-05.
    return float(f"{value:.7g}")


def _rope_scaling(file: GgufFile) -> dict[str, Any] | None:
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if _ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": _real(file, "rope.scaling.factor")}
    raise UnsupportedModelError(
        f"{file.path.name} scales its rotary angles by {kind!r}; none, linear and Llama 3's are supported."
    )


def _llama3_scaling(file: GgufFile) -> dict[str, Any]:
    """Llama 3.1's scaling, of which a GGUF keeps only the resulting factor per frequency. All Llama 3.x share
    every number but ``factor``, which is the largest of them; the rest is checked by making them again."""
    stored = read_tensor(file, file.tensors[_ROPE_FACTORS]).double().flatten()
    factor = float(f"{stored.max().item():.6g}")
    low, high, original = 1.0, 4.0, 8192
    theta = _real(file, "rope.freq_base", 10_000.0)
    index = torch.arange(len(stored), dtype=torch.float64)
    wavelength = 2 * math.pi * theta ** (index / len(stored))
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not torch.allclose(stored, expected, rtol=1e-4):
        raise UnsupportedModelError(
            f"{file.path.name} has rotary factors ({_ROPE_FACTORS}) that are not those of Llama 3.1; they "
            "are not supported. Use the Hugging Face folder of the same model."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def gguf_tensors(
    file: GgufFile, *, dtype: torch.dtype | Callable[[str], torch.dtype], blocks: bool = False
) -> Iterator[tuple[str, Tensor | Blocks]]:
    """Every weight of the file as ``(transformers' name, tensor)``, one at a time, each a copy in ``dtype``
    (one for all, or what a function says for a name). ``blocks``: matrices in 4 or 8 bits as ``Blocks``.

    Raises ``ModelFileError`` when the file's table does not fit the file, ``UnsupportedModelError`` naming a
    tensor that a Llama does not have or whose type cannot be read.
    """
    check_extents(file)
    config = gguf_config(file)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for tensor in file.tensors.values():
        if tensor.name == _ROPE_FACTORS:
            continue  # already in the configuration
        name = hf_name(tensor.name)
        if name is None:
            raise UnsupportedModelError(
                f"{file.path.name} has a tensor {tensor.name!r} that a Llama does not have; this kind of "
                "model is not supported."
            )
        projection = name.split(".")[-2]
        rows = tensor.shape[0]
        order = torch.arange(rows)
        if projection in heads:
            order = _halves(order, heads[projection], tensor, file)
        if blocks and tensor.type_id in KEPT and len(tensor.shape) == 2:
            raw = torch.from_numpy(_raw(file, tensor)).view(rows, -1, SIZES[tensor.type_id][1])
            yield name, Blocks(tensor.type_id, raw, order)
            continue
        weights = read_tensor(file, tensor)
        if projection in heads:
            weights = weights[order]
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
