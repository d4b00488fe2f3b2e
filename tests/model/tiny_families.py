"""A tiny random model of each family's real transformers class, as a Hugging Face folder.

Nothing is hidden by zeros or ones: biases and norm weights are random, windows are short enough to slide,
caps low enough to bend.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .conftest import byte_tokenizer_json, byte_vocabulary

COMMON: dict[str, Any] = {
    "vocab_size": len(byte_vocabulary()) + 5,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 9.0],
    "original_max_position_embeddings": 128,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
SLIDING, FULL = "sliding_attention", "full_attention"
MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
}
QWEN_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama1": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 8, "head_dim": 32}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "qwen2.5-sliding": ("Qwen2", QWEN_SLIDING),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-biased": ("Qwen3", {"head_dim": 16, "attention_bias": True, **QWEN_SLIDING}),
    "qwen2-moe": ("Qwen2Moe", {**MOE, "norm_topk_prob": True}),
    "qwen2-moe-mixed": ("Qwen2Moe", {**MOE, "decoder_sparse_step": 2, "qkv_bias": False}),
    "gemma": ("Gemma", {"num_key_value_heads": 1, "head_dim": 32}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 32,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16,
            "num_key_value_heads": 1,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "rope_parameters": GEMMA3_ROPE,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 24, "num_key_value_heads": 4}),
    "phi3-longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128}),
}
"""The name of a variant: its class in transformers without "ForCausalLM", and its configuration."""


def tiny_family(variant: str, **changes: Any) -> transformers.PreTrainedModel:
    """The same random weights every time; attention in plain products, the only way that knows caps."""
    kind, own = VARIANTS[variant]
    suffix = "TextConfig" if kind == "Gemma3" else "Config"
    config = getattr(transformers, kind + suffix)(**{**COMMON, **own, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(11)
    model: transformers.PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                nn.init.normal_(parameter, std=0.15)
    return model


def save_family(
    model: transformers.PreTrainedModel, folder: Path, *, edit: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """What ``save_pretrained`` writes, with a tokenizer; ``edit`` changes the configuration."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    if edit is not None:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        edit(config)
        file.write_text(json.dumps(config))
    return folder


def family_ids(length: int, *, rows: int = 1, seed: int = 5) -> Tensor:
    """Random ids [rows, length] of bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, len(byte_vocabulary()), (rows, length), generator=generator)
