"""Which pretrained models can become Infini models, and how: a table.

A family says which configurations are its own (``model_type`` in a Hugging Face ``config.json``; a GGUF's
metadata is brought into that form by ``gguf_config.py``), how its numbers become an ``InfiniConfig``'s
(``family_config.py``), and which of our tensors one of its tensors holds. Names are transformers', so the map
of names is the identity; only fused tensors are taken apart.

    family      beside Llama's decoder
    llama       Llama 1 to 3, SmolLM2
    mistral     sliding window
    qwen2       Qwen2, Qwen2.5: biases of queries, keys and values, sliding layers
    qwen3       norms of queries and keys, sliding layers
    qwen2_moe   as qwen2, with routed experts and a shared one
    gemma       norms of 1 + w, scaled embeddings, GELU
    gemma2      as gemma, with norms after attention and MLP, capped scores and logits, sliding layers
    gemma3      as gemma2, with norms of queries and keys, other angles in sliding layers; text alone
    phi3        fused projections, partial rotation, LongRoPE, sliding window

A layer that slides sees the last ``sliding_window`` tokens of our window, the attention sinks counted where
they stand, right before it: with a window of ours that is not longer, it sees what every layer sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinichat.errors import UnsupportedModelError
from infinichat.model import family_config
from infinichat.model.family_config import Source
from infinichat.model.tokenizer import Tokenizer

Arguments = dict[str, Any]
"""``InfiniConfig``'s arguments."""


def _as_it_is(name: str, tensor: Tensor, arguments: Arguments) -> dict[str, Tensor]:
    return {} if _SAVED_BUFFER.fullmatch(name) else {name: tensor}


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table. ``config`` gives ``InfiniConfig``'s arguments for a source configuration, over
    ``defaults``, what the family's own configuration class takes for a key that is not there. ``tensors``
    gives our tensors in one of the family's by name and with the arguments: none for one that holds nothing
    to read (a saved buffer). ``foreign`` are tokens of the tokenizer that the model has no embedding for."""

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Source, Path], Arguments]
    tensors: Callable[[str, Tensor, Arguments], dict[str, Tensor]] = _as_it_is
    defaults: Arguments = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()

    @property
    def fused(self) -> bool:
        """Whether some of the family's tensors hold several of ours."""
        return self.tensors is not _as_it_is

    def arguments(self, source: Source, path: Path) -> Arguments:
        """``InfiniConfig``'s arguments for a configuration read from ``path``. Raises ``ModelFileError`` for
        a value that cannot be, ``UnsupportedModelError`` for a variant that is not supported."""
        return self.config({**self.defaults, **source}, path)


def family_of(source: Source, path: Path) -> Family:
    """The family of a configuration read from ``path``. Raises ``UnsupportedModelError`` naming the known
    ones."""
    kind = source.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(sorted(kind for family in FAMILIES for kind in family.model_types))
    if "text_config" in source and f"{kind}_text" in known:
        raise UnsupportedModelError(
            f"{path} is a model of type {kind!r}, which sees images; only its text model, type "
            f"'{kind}_text', is supported. Choose a text-only version, or a GGUF: that holds the text model "
            "alone."
        )
    raise UnsupportedModelError(
        f"{path} is a model of type {kind!r}; supported are {known}. Choose a model of these."
    )


def family_named(name: str, path: Path) -> Family:
    """The family that a checkpoint's configuration, read from ``path``, names."""
    for family in FAMILIES:
        if name == family.name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModelError(
        f"{path} says family = {name!r}; known are {known}. Get the checkpoint again."
    )


_SAVED_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_QKV, _GATE_UP = ".qkv_proj.", ".gate_up_proj."
_STACKED = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_proj|up_proj|down_proj)\.weight")


def _phi3_tensors(name: str, tensor: Tensor, arguments: Arguments) -> dict[str, Tensor]:
    """Queries, keys and values lie below each other in one tensor, gate and up in another."""
    if _QKV in name:
        heads = arguments["num_attention_heads"]
        kv_heads = arguments["num_key_value_heads"] or heads
        width = arguments["head_dim"] or arguments["hidden_size"] // heads
        sizes = [heads * width, kv_heads * width, kv_heads * width]
        return _split(name, _QKV, tensor, sizes, (".q_proj.", ".k_proj.", ".v_proj."))
    if _GATE_UP in name:
        sizes = [arguments["intermediate_size"]] * 2
        return _split(name, _GATE_UP, tensor, sizes, (".gate_proj.", ".up_proj."))
    return _as_it_is(name, tensor, arguments)


def _split(
    name: str, fused: str, tensor: Tensor, sizes: list[int], names: tuple[str, ...]
) -> dict[str, Tensor]:
    if tensor.shape[0] != sum(sizes):
        return {name: tensor}  # has no place in the model, and is refused by its name
    # Copies, so that each parameter has a storage of its own.
    parts = [part.clone() for part in torch.split(tensor, sizes)]
    return {name.replace(fused, own): part for own, part in zip(names, parts, strict=True)}


def _moe_tensors(name: str, tensor: Tensor, arguments: Arguments) -> dict[str, Tensor]:
    """A GGUF stacks the experts of a layer."""
    match = _STACKED.fullmatch(name)
    if match is None:
        return _as_it_is(name, tensor, arguments)
    return {f"{match[1]}.{at}.{match[2]}.weight": part.clone() for at, part in enumerate(tensor)}


_GEMMA = {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "head_dim": 256}
_GEMMA2 = {**_GEMMA, "query_pre_attn_scalar": 256, "sliding_window": 4096}
_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_GEMMA3 = {**_GEMMA2, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0}

FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama",), family_config.llama),
    Family("mistral", ("mistral",), family_config.mistral),
    Family("qwen2", ("qwen2",), family_config.qwen2),
    Family("qwen3", ("qwen3",), family_config.qwen3, defaults={"head_dim": 128}),
    Family("qwen2_moe", ("qwen2_moe",), family_config.qwen2_moe, _moe_tensors),
    Family("gemma", ("gemma",), family_config.gemma, defaults=_GEMMA),
    Family("gemma2", ("gemma2",), family_config.gemma2, defaults={**_GEMMA2, **_CAPS}),
    Family(
        "gemma3",
        ("gemma3_text",),
        family_config.gemma3,
        defaults=_GEMMA3,
        foreign=frozenset({"<image_soft_token>"}),
    ),
    Family("phi3", ("phi3",), family_config.phi3, _phi3_tensors, defaults={"rms_norm_eps": 1e-5}),
)


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
        return _chatml_of(control, template)
    if "<|start_header_id|>" in control:
        return "llama3"
    if "<start_of_turn>" in control:
        return "gemma"
    if "<|end|>" in control and "<|user|>" in control:
        return "phi3"
    if "[INST]" in template or "[INST]" in control:
        return "llama2" if "<<SYS>>" in template else "mistral"
    return "chatml"


def _chatml_of(control: Mapping[str, int], template: str) -> str:
    """Of the formats with ChatML's marks the one whose system text the template begins with."""
    for words, name in (("You are Qwen", "qwen"), ("You are a helpful assistant", "qwen2")):
        if words in template:
            return name
    if "<think>" in control:
        return "qwen3-hybrid" if "enable_thinking" in template else "qwen3"
    return "chatml"
