"""Configurations of the families, as Hugging Face writes them, as ``InfiniConfig``'s arguments.

One function a family; what they share is Llama's. Every number is checked before it is believed, and what a
family can be configured to and the model here does not do is refused with the value that was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.configuration_infini import FEATURES
from infinichat.model.rope import KINDS, scaling_kind

Source = Mapping[str, Any]
"""A pretrained model's configuration as Hugging Face writes it."""

# The largest value of each number that is believed; far above every model there is, so that a damaged file
# cannot ask for a model that takes hours to lay out.
_LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 40,
}
_EXPERTS = {
    "num_experts": 1 << 16,
    "num_experts_per_tok": 1 << 16,
    "moe_intermediate_size": 1 << 22,
    "shared_expert_intermediate_size": 1 << 22,
}
_NUMBER_DEFAULTS = {"num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048}
_FLAGS = ("mlp_bias", "tie_word_embeddings")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def llama(source: Source, path: Path) -> dict[str, Any]:
    """Llama 1 to 3, SmolLM2. (A GGUF may have biases in some projections, given as a text.)"""
    biased = source.get("attention_bias")
    biased = biased if isinstance(biased, str) else _flag(source, "attention_bias", path)
    return _common(source, path) | {"attention_bias": biased}


def mistral(source: Source, path: Path) -> dict[str, Any]:
    """Mistral: every layer slides where the configuration has a window."""
    return _common(source, path) | {"sliding_window": _window(source, path)}


def qwen2(source: Source, path: Path) -> dict[str, Any]:
    """Qwen2 and Qwen2.5: biases but for the output, layers from ``max_window_layers`` on may slide."""
    return _common(source, path) | {"attention_bias": "qkv"} | _qwen_sliding(source, path)


def qwen3(source: Source, path: Path) -> dict[str, Any]:
    """Qwen3: norms of queries and keys."""
    own = {"attention_bias": _flag(source, "attention_bias", path), "use_qk_norm": True}
    return _common(source, path) | own | _qwen_sliding(source, path)


def qwen2_moe(source: Source, path: Path) -> dict[str, Any]:
    """Qwen2-MoE: routed experts and a shared one, in all layers or every so many."""
    common = _common(source, path)
    layers, step = common["num_hidden_layers"], source.get("decoder_sparse_step", 1)
    plain = source.get("mlp_only_layers") or []
    if type(step) is not int or step < 1:
        raise _bad_value(path, "decoder_sparse_step", step, "a whole number from 1")
    if not isinstance(plain, list) or not all(type(layer) is int for layer in plain):
        raise _bad_value(path, "mlp_only_layers", plain, "a list of layers")
    without = [layer for layer in range(layers) if layer in plain or (layer + 1) % step]
    biased = "qkv" if source.get("qkv_bias") is None or _flag(source, "qkv_bias", path) else False
    return common | {
        **{key: _number(source, key, path, largest) for key, largest in _EXPERTS.items()},
        "attention_bias": biased,
        "norm_topk_prob": _flag(source, "norm_topk_prob", path),
        "mlp_only_layers": without or None,
        **_qwen_sliding(source, path, alternating=True),
    }


def gemma(source: Source, path: Path) -> dict[str, Any]:
    """Gemma 1: scaled embeddings, norms of 1 + w, GELU."""
    if source.get("use_bidirectional_attention"):
        raise UnsupportedModelError(
            f"{path} attends in both directions (use_bidirectional_attention); only models that write text "
            "from left to right are supported."
        )
    common = _common(source, path)
    # Early releases say "gelu" and mean its tanh form; the newer key is right where both are.
    act = source.get("hidden_activation") or source.get("hidden_act") or "gelu"
    return common | {
        "hidden_act": "gelu_pytorch_tanh" if act == "gelu" else act,
        "attention_bias": _flag(source, "attention_bias", path),
        "norm_unit_offset": True,
        "embedding_multiplier": common["hidden_size"] ** 0.5,
    }


def gemma2(source: Source, path: Path) -> dict[str, Any]:
    """Gemma 2: norms after attention and MLP, capped scores and logits, every other layer slides."""
    return gemma(source, path) | {
        "post_norms": True,
        **{
            key: _positive(source, key, path)
            for key in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
        },
        **_sliding(source, path, lambda layer: layer % 2 == 0),
    }


def gemma3(source: Source, path: Path) -> dict[str, Any]:
    """Gemma 3 (text): norms of queries and keys, five sliding layers to one full one, angles of their own."""
    every = source.get("sliding_window_pattern") or source.get("_sliding_window_pattern") or 6
    if type(every) is not int or every < 1:
        raise _bad_value(path, "sliding_window_pattern", every, "a whole number from 1")
    both = source.get("rope_parameters") or {}
    if not isinstance(both, dict):
        raise _bad_value(path, "rope_parameters", both, "an object")
    full, local = both.get("full_attention"), both.get("sliding_attention") or {}
    if scaling_kind(local) != "default":
        raise _bad_value(path, "rope_parameters", local, "no scaling in sliding layers")
    flat = {key: value for key, value in source.items() if key != "rope_parameters" or full is None}
    found = gemma2({**flat, **({"rope_parameters": full} if full else {})}, path)
    local_theta = _positive({**source, **local}, "rope_theta" if local else "rope_local_base_freq", path)
    return found | {
        "use_qk_norm": True,
        "rope_local_base_freq": local_theta or 10_000.0,
        **_sliding(source, path, lambda layer: (layer + 1) % every != 0),
    }


def phi3(source: Source, path: Path) -> dict[str, Any]:
    """Phi-3: LongRoPE in the versions for long texts, all layers slide where there is a window."""
    return _common(source, path) | {"sliding_window": _window(source, path)}


def own(source: Source, path: Path) -> dict[str, Any]:
    """The decoder's part of an ``InfiniConfig`` as it was saved: what stands in the same file as the weights
    is taken as it is."""
    rope = source.get("infini_rope") or {}
    plain = {**source, "rope_theta": rope.get("theta"), "rope_scaling": None}
    found = _common(plain, path) | {
        "attention_bias": source.get("attention_bias", False),
        "infini_rope": rope,
    }
    return {key: source.get(key, value) for key, value in FEATURES.items()} | {
        key: value for key, value in found.items() if not key.startswith("rope_")
    }


def _common(source: Source, path: Path) -> dict[str, Any]:
    if source.get("quantization_config"):
        raise UnsupportedModelError(
            f"{path} holds quantized weights ({source['quantization_config']}); use the unquantized folder "
            "or a GGUF of the same model."
        )
    numbers = {key: _number(source, key, path, largest) for key, largest in _LARGEST.items()}
    flags = {key: _flag(source, key, path) for key in _FLAGS}
    tokens = {key: source.get(key) for key in _TOKENS if isinstance(source.get(key), int | list)}
    return {
        **numbers,
        **flags,
        **tokens,
        **_rope(source, path),
        "hidden_act": _checked(source, "hidden_act", path, "silu", str, "the name of an activation"),
        "rms_norm_eps": _checked(source, "rms_norm_eps", path, 1e-6, float, "a number"),
    }


def _number(source: Source, key: str, path: Path, largest: int) -> int | None:
    value = source.get(key)
    if value is None and key in _NUMBER_DEFAULTS:
        return _NUMBER_DEFAULTS[key]
    if type(value) is not int or not 1 <= value <= largest:
        raise _bad_value(path, key, value, f"a whole number from 1 to {largest:,}")
    return value


def _flag(source: Source, key: str, path: Path) -> bool:
    return bool(_checked(source, key, path, False, bool, "true or false"))


def _positive(source: Source, key: str, path: Path) -> float | None:
    value: float | None = _checked(source, key, path, None, float, "a number")
    if value is not None and not (math.isfinite(value) and value > 0):
        raise _bad_value(path, key, value, "a number above 0")
    return value


def _checked(source: Source, key: str, path: Path, default: Any, kind: type, words: str) -> Any:
    value = source.get(key)
    if value is None:
        return default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _bad_value(path, key, value, words)
    return value


def _window(source: Source, path: Path) -> int | None:
    return _number(source, "sliding_window", path, 1 << 40) if source.get("sliding_window") else None


def _sliding(source: Source, path: Path, slides: Callable[[int], bool]) -> dict[str, Any]:
    """Which layers slide: what the configuration says, otherwise by ``slides`` of a layer's number."""
    window = _window(source, path)
    if window is None:
        return {"sliding_window": None, "layer_types": None}
    layers = _number(source, "num_hidden_layers", path, _LARGEST["num_hidden_layers"]) or 0
    kinds = source.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if slides(layer) else "full_attention" for layer in range(layers)]
    elif not isinstance(kinds, list) or len(kinds) != layers:
        raise _bad_value(path, "layer_types", kinds, f"a list with the kinds of {layers} layers")
    return {"sliding_window": window, "layer_types": kinds}


def _qwen_sliding(source: Source, path: Path, *, alternating: bool = False) -> dict[str, Any]:
    if not _flag(source, "use_sliding_window", path):
        return {}
    least = source.get("max_window_layers", 28)
    if type(least) is not int:
        raise _bad_value(path, "max_window_layers", least, "a whole number")
    found = _sliding(
        source,
        path,
        lambda layer: (layer % 2 == 0 and layer < least) if alternating else layer >= least,
    )
    return found if "sliding_attention" in (found["layer_types"] or ()) else {}


def _rope(source: Source, path: Path) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` out of either place: transformers 5 keeps both in
    ``rope_parameters``."""
    parameters = source.get("rope_parameters") or source.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise _bad_value(path, "rope_parameters", parameters, "an object")
    together = {**source, **parameters}
    theta = _checked(together, "rope_theta", path, 10000.0, float, "a number")
    part = _positive(together, "partial_rotary_factor", path)
    own = ("rope_theta", "partial_rotary_factor")
    scaling: dict[str, Any] | None = {key: value for key, value in parameters.items() if key not in own}
    kind = scaling_kind(scaling)
    if source.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # what Phi-3 called it before it had a name
    if kind == "longrope":
        scaling = _longrope(together, path)
    elif kind not in KINDS:
        raise UnsupportedModelError(
            f"{path} has rope_scaling of type {kind!r}; supported are {', '.join(KINDS)}. Choose a model "
            "without it."
        )
    found = {"rope_theta": theta, "rope_scaling": None if kind == "default" else scaling}
    return found if part in (None, 1) else found | {"partial_rotary_factor": part}


def _longrope(source: Source, path: Path) -> dict[str, Any]:
    """LongRoPE's numbers, with the factor of the attention worked out where it is not given."""
    trained = _number(source, "original_max_position_embeddings", path, 1 << 40)
    longest = _number(source, "max_position_embeddings", path, 1 << 40)
    assert trained is not None
    assert longest is not None
    factors = {}
    for key in ("short_factor", "long_factor"):
        values = source.get(key)
        if not isinstance(values, list) or not values or not all(type(v) in (int, float) for v in values):
            raise _bad_value(path, key, values, "a list of numbers")
        factors[key] = [float(value) for value in values]
    attention = _positive(source, "attention_factor", path)
    if attention is None:
        by = _positive(source, "factor", path) or longest / trained
        attention = 1.0 if by <= 1 else math.sqrt(1 + math.log(by) / math.log(trained))
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": trained,
        "attention_factor": attention,
        **factors,
    }


def _bad_value(path: Path, key: str, value: object, words: str) -> ModelFileError:
    return ModelFileError(f"{path} says {key} = {value!r}, expected {words}. Get the model again.")
