"""Weights and configuration out of a GGUF, in the names and shapes that transformers gives a Llama.

Two things differ between a llama-architecture GGUF and the Hugging Face checkpoint it was made from. Names:
``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``. And the rows of the query and key
projections: llama.cpp rotates neighbouring pairs (0, 1), (2, 3), ..., transformers the halves (0, d/2),
(1, d/2 + 1), ..., so the converter interleaves each head's rows; ``_halves`` undoes that exactly.

Every tensor type that the ``gguf`` package can dequantize is read. F32, F16, BF16, Q8_0, Q4_0 and Q4_1 have a
path of their own here that works in pieces small enough for the processor's cache: 0.4 s instead of 8 s on
one core for the default checkpoint's 135 M weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

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
    file: GgufFile, *, dtype: torch.dtype | Callable[[str], torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the file as ``(transformers' name, tensor)``, one at a time, each a copy in ``dtype``
    (one for all, or what a function says for a name).

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
        weights = read_tensor(file, tensor)
        projection = name.split(".")[-2]
        if projection in heads:
            weights = _halves(weights, heads[projection], tensor, file)
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
