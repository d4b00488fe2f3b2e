"""A GGUF's metadata as the configuration that Hugging Face would write for the same model.

Each architecture's keys stand under its own name ("gemma2.block_count"); what most of them share is read in
one place. Some numbers are in no key because llama.cpp has them in its code, by the model's size: the same
rules are here, and are said where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.gguf import ROPE_TENSORS, read_tensor
from infinichat.model.gguf_file import GgufFile

_ROPE_FACTORS, _LONG_FACTORS, _SHORT_FACTORS = ROPE_TENSORS

# Keys that change the arithmetic in a way the model here does not do, with the value at which they change
# nothing.
_NEUTRAL: dict[str, float] = {
    "attention.scale": 0,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
}


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """The configuration of the model in ``file``, with transformers' ``model_type`` and names.

    Raises ``UnsupportedModelError`` for another architecture or for features that the family does not have,
    and ``ModelFileError`` when something needed is missing.
    """
    family = _ARCHITECTURES.get(file.architecture)
    if family is None:
        raise UnsupportedModelError(
            f"{file.path.name} has architecture {file.architecture or 'unknown'!r}; GGUF files of "
            f"architecture {', '.join(map(repr, _ARCHITECTURES))} are supported ('llama' is also Mistral's, "
            "SmolLM2's, ...). Choose such a file or a Hugging Face folder."
        )
    _refuse_other_arithmetic(file)
    heads = file.number("attention.head_count")
    hidden = file.number("embedding_length")
    head_dim = int(file.own("attention.key_length", hidden // max(heads, 1)))
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError(f"{file.path.name} has no tensor 'token_embd.weight'. Convert the model again.")
    ids = {
        f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    common = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": file.number("feed_forward_length"),
        "num_hidden_layers": file.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": file.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": file.real("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(file),
        "max_position_embeddings": file.number("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_partly_rotated(file, head_dim),
        **ids,
    }
    return common | family(file, common)


def _llama(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    biased = "".join(
        short
        for short, name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output"))
        if f"blk.0.{name}.bias" in file.tensors
    )
    return {
        "model_type": "llama",
        "attention_bias": biased == "qkvo" if biased in ("", "qkvo") else biased,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _qwen2(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "qwen2"}


def _qwen3(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "qwen3"}


def _qwen2_moe(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    experts, shared = (file.tensors.get(f"blk.0.ffn_gate_{kind}.weight") for kind in ("exps", "shexp"))
    if experts is None or shared is None:
        raise ModelFileError(
            f"{file.path.name} has no tensors 'blk.0.ffn_gate_exps.weight' and "
            "'blk.0.ffn_gate_shexp.weight'. Convert the model again."
        )
    return {
        "model_type": "qwen2_moe",
        "num_experts": file.number("expert_count"),
        "num_experts_per_tok": file.number("expert_used_count"),
        "moe_intermediate_size": experts.shape[1],
        "shared_expert_intermediate_size": shared.shape[0],
        "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
    }


def _gemma(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}


def _gemma2(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": file.number("attention.sliding_window", 4096),
        "attn_logit_softcapping": _cap(file, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": _cap(file, "final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(common, largest=46),
    }


def _gemma3(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    pattern = file.own("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        kinds = {"layer_types": ["sliding_attention" if one else "full_attention" for one in pattern]}
    else:
        kinds = {"sliding_window_pattern": pattern}
    return kinds | {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": file.own("attention.sliding_window", None),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": _cap(file, "final_logit_softcapping", None),
        "query_pre_attn_scalar": _query_scalar(common, largest=62),
        "rope_local_base_freq": file.real("rope.freq_base_swa", 10_000.0),
    }


def _phi3(file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "phi3", "sliding_window": file.own("attention.sliding_window", None)}


_ARCHITECTURES: dict[str, Callable[[GgufFile, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen2moe": _qwen2_moe,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
}


def _query_scalar(common: dict[str, Any], *, largest: int) -> int:
    """What queries are scaled by is in no key: llama.cpp knows the largest model by its layers, where it is
    the width of a head as hidden states are cut into heads, and in all others a head's own width."""
    if common["num_hidden_layers"] == largest:
        return int(common["hidden_size"] // common["num_attention_heads"])
    return int(common["head_dim"])


def _refuse_other_arithmetic(file: GgufFile) -> None:
    parts = file.metadata.get("split.count", 1)
    if parts != 1:
        raise UnsupportedModelError(
            f"{file.path.name} is one of {parts} parts of a model. Join them with llama.cpp's gguf-split "
            "--merge."
        )
    neutral = _NEUTRAL if file.architecture == "qwen2moe" else {**_NEUTRAL, "expert_count": 0}
    for key, expected in neutral.items():
        value = file.own(key, expected)
        if value != expected:
            raise UnsupportedModelError(
                f"{file.path.name} has {file.architecture}.{key} = {value}, expected {expected}: this "
                f"kind of {file.architecture} model is not supported."
            )
    key, values = file.own("attention.key_length", None), file.own("attention.value_length", None)
    if key is not None and values is not None and key != values:
        raise UnsupportedModelError(
            f"{file.path.name} has heads with keys of {key} and values of {values} numbers; only models in "
            "which both are equal are supported."
        )


def _partly_rotated(file: GgufFile, head_dim: int) -> dict[str, Any]:
    rotated = int(file.own("rope.dimension_count", head_dim))
    if rotated == head_dim:
        return {}
    if file.architecture != "phi3" or not 0 < rotated < head_dim:
        raise UnsupportedModelError(
            f"{file.path.name} rotates {rotated} of {head_dim} dimensions a head; only models that rotate "
            "all of them are supported, and Phi-3."
        )
    return {"partial_rotary_factor": rotated / head_dim}


def _cap(file: GgufFile, key: str, default: float | None) -> float | None:
    """A cap of scores; 0 is none."""
    return file.real(key, default) if file.own(key, default) else None


def _rope_scaling(file: GgufFile) -> dict[str, Any] | None:
    kind = file.own("rope.scaling.type", "none")
    if _ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file)
    if _LONG_FACTORS in file.tensors:
        return _longrope(file)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": file.real("rope.scaling.factor")}
    raise UnsupportedModelError(
        f"{file.path.name} scales its rotary angles by {kind!r}; none, linear, Llama 3's and LongRoPE are "
        "supported."
    )


def _longrope(file: GgufFile) -> dict[str, Any]:
    short = file.tensors.get(_SHORT_FACTORS)
    if short is None:
        raise ModelFileError(f"{file.path.name} has no tensor {_SHORT_FACTORS!r}. Convert the model again.")
    return {
        "rope_type": "longrope",
        "short_factor": _factors(file, _SHORT_FACTORS),
        "long_factor": _factors(file, _LONG_FACTORS),
        "original_max_position_embeddings": file.number("rope.scaling.original_context_length"),
        "attention_factor": file.real("rope.scaling.attn_factor", 1.0),
    }


def _factors(file: GgufFile, name: str) -> list[float]:
    values: list[float] = read_tensor(file, file.tensors[name]).flatten().tolist()
    return [float(f"{value:.7g}") for value in values]


def _llama3_scaling(file: GgufFile) -> dict[str, Any]:
    """Llama 3.1's scaling, of which a GGUF keeps only the resulting factor per frequency. All Llama 3.x share
    every number but ``factor``, which is the largest of them; the rest is checked by making them again."""
    stored = read_tensor(file, file.tensors[_ROPE_FACTORS]).double().flatten()
    factor = float(f"{stored.max().item():.6g}")
    low, high, original = 1.0, 4.0, 8192
    theta = file.real("rope.freq_base", 10_000.0)
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
