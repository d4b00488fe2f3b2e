"""Which pretrained models can become Infini models, and how: a table.

A family says which configurations are its own (``model_type`` in a Hugging Face ``config.json``; a GGUF's
metadata is brought into that form by ``gguf.py``), how its numbers become an ``InfiniConfig``'s, and what
each of its tensors is called here. Llama's names are kept as they are, so for Llama 1 to 3, Mistral and
SmolLM2 the map of names is the identity; what is left to say is which features of such configurations are not
supported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.tokenizer import Tokenizer

Source = Mapping[str, Any]
"""A pretrained model's configuration as Hugging Face writes it."""


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table. ``config`` gives ``InfiniConfig``'s arguments for a source configuration,
    ``name`` our name of one of its tensors, ``None`` for a tensor that holds nothing to read (a saved
    buffer)."""

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Source, Path], dict[str, Any]]
    tensor_name: Callable[[str], str | None]


def family_of(source: Source, path: Path) -> Family:
    """The family of a configuration read from ``path``. Raises ``UnsupportedModelError`` naming the known
    ones."""
    kind = source.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = sorted(kind for family in FAMILIES for kind in family.model_types)
    raise UnsupportedModelError(
        f"{path} is a model of type {kind!r}; supported are {', '.join(known)}. Choose a model of these."
    )


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
_NUMBER_DEFAULTS = {"num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048}
_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAVED_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def _llama_config(source: Source, path: Path) -> dict[str, Any]:
    if source.get("quantization_config"):
        raise UnsupportedModelError(
            f"{path} holds quantized weights ({source['quantization_config']}); use the unquantized folder "
            "or a GGUF of the same model."
        )
    numbers = {key: _number(source, key, path) for key in _LARGEST}
    flags = {key: _checked(source, key, path, False, bool, "true or false") for key in _FLAGS}
    tokens = {key: source.get(key) for key in _TOKENS if isinstance(source.get(key), int | list)}
    return {
        **numbers,
        **flags,
        **tokens,
        **_rope(source, path),
        "hidden_act": _checked(source, "hidden_act", path, "silu", str, "the name of an activation"),
        "rms_norm_eps": _checked(source, "rms_norm_eps", path, 1e-6, float, "a number"),
    }


def _number(source: Source, key: str, path: Path) -> int | None:
    value = source.get(key)
    if value is None and key in _NUMBER_DEFAULTS:
        return _NUMBER_DEFAULTS[key]
    if type(value) is not int or not 1 <= value <= _LARGEST[key]:
        raise _bad_value(path, key, value, f"a whole number from 1 to {_LARGEST[key]:,}")
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


def _rope(source: Source, path: Path) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` out of either place: transformers 5 keeps both in
    ``rope_parameters``."""
    parameters = source.get("rope_parameters") or source.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise _bad_value(path, "rope_parameters", parameters, "an object")
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    theta = _checked({**source, **parameters}, "rope_theta", path, 10000.0, float, "a number")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else scaling}


def _bad_value(path: Path, key: str, value: object, words: str) -> ModelFileError:
    return ModelFileError(f"{path} says {key} = {value!r}, expected {words}. Get the model again.")


def _llama_name(name: str) -> str | None:
    return None if _SAVED_BUFFER.fullmatch(name) else name


FAMILIES: tuple[Family, ...] = (Family("llama", ("llama", "mistral"), _llama_config, _llama_name),)


def default_memory_layers(layers: int) -> list[int]:
    """The one layer that gets a memory when none is named: three fifths up. Measured for SmolLM2-135M: a
    pointer to the value is found from layer 18 of 30 in 86 % of cases, from 8, 14 and 22 in 62, 46 and 48
    %."""
    return [min(layers - 1, round(0.6 * layers))]


def chat_format_of(tokenizer: Tokenizer) -> str:
    """The name of the chat format that a tokenizer's control tokens and chat template speak; "chatml" when
    they speak none (a base model), which then says itself what it lacks."""
    control, template = tokenizer.control_tokens, tokenizer.chat_template or ""
    if "<|im_start|>" in control:
        return "qwen" if "You are Qwen" in template else "chatml"
    if "<|start_header_id|>" in control:
        return "llama3"
    if "<start_of_turn>" in control:
        return "gemma"
    if "<|end|>" in control and "<|user|>" in control:
        return "phi3"
    if "[INST]" in template or "[INST]" in control:
        return "llama2" if "<<SYS>>" in template else "mistral"
    return "chatml"
