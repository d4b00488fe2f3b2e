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


_COPIED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_WITH_DEFAULT: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SAVED_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def _llama_config(source: Source, path: Path) -> dict[str, Any]:
    if source.get("quantization_config"):
        method = (source["quantization_config"] or {}).get("quant_method")
        raise UnsupportedModelError(
            f"{path} holds quantized weights ({method}); use the unquantized folder or a GGUF of the same "
            "model."
        )
    for key in _COPIED:
        if not isinstance(source.get(key), int) or source[key] < 1:
            raise ModelFileError(
                f"{path} says {key} = {source.get(key)!r}, expected a positive whole number. Get the model "
                "again."
            )
    numbers = {key: source[key] for key in _COPIED}
    rest = {key: source.get(key, default) for key, default in _WITH_DEFAULT.items()}
    return {**numbers, **rest, **_rope(source)}


def _rope(source: Source) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` out of either place: transformers 5 keeps both in
    ``rope_parameters``."""
    parameters = dict(source.get("rope_parameters") or source.get("rope_scaling") or {})
    theta = parameters.pop("rope_theta", None) or source.get("rope_theta") or 10000.0
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return {"rope_theta": float(theta), "rope_scaling": None if kind == "default" else parameters}


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
