"""Tiny models as files: a Llama's random weights, written as GGUF by gguf's own writer and as Hugging Face
folders, with small byte-level and SentencePiece vocabularies; and the default checkpoint's weights where they
are on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("l", "o"), ("lo", "w"), ("Ġ", "low"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("ĊĊ", "Ġ"), ("Ġ", "1"), ("1", "2"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def byte_vocabulary() -> list[str]:
    """Control tokens, the 256 bytes, the merges' results."""
    return [*CONTROL, *sorted(ByteLevel.alphabet()), *(left + right for left, right in MERGES)]


TINY = {
    "vocab_size": len(byte_vocabulary()),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, **changes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def weights_of(model: LlamaForCausalLM) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    stem, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[stem]}.{suffix}"


def interleaved(weights: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of a head's rows, written row by row from its meaning: pair i is (i, i + d/2)."""
    rows = weights.shape[0] // heads
    order = [
        head * rows + row for head in range(heads) for i in range(rows // 2) for row in (i, i + rows // 2)
    ]
    return weights[order]


WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    def write(
        model: LlamaForCausalLM | None = None,
        *,
        kind: Kind = Kind.F32,
        name: str = "tiny.gguf",
        pre: str = "smollm",
        extra: dict[str, float] | None = None,
        tensors: dict[str, Tensor] | None = None,
        architecture: str = "llama",
        tokenizer: bool = True,
        drop: tuple[str, ...] = (),
    ) -> Path:
        model = model or tiny_llama()
        config = model.config
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_uint32(f"{architecture}.block_count", config.num_hidden_layers)
        writer.add_uint32(f"{architecture}.context_length", config.max_position_embeddings)
        writer.add_uint32(f"{architecture}.embedding_length", config.hidden_size)
        writer.add_uint32(f"{architecture}.feed_forward_length", config.intermediate_size)
        writer.add_uint32(f"{architecture}.attention.head_count", config.num_attention_heads)
        writer.add_uint32(f"{architecture}.attention.head_count_kv", config.num_key_value_heads)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
        writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
        for key, value in (extra or {}).items():
            writer.add_float32(key, value)
        if tokenizer:
            tokens = byte_vocabulary()
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(tokens)
            writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
            writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
            writer.add_pad_token_id(2)
            writer.add_chat_template("{{ '<|im_start|>' }}")
        for key, tensor in {**weights_of(model), **(tensors or {})}.items():
            if key in drop:
                continue
            if key.endswith(("q_proj.weight", "q_proj.bias")):
                tensor = interleaved(tensor, config.num_attention_heads)
            if key.endswith(("k_proj.weight", "k_proj.bias")):
                tensor = interleaved(tensor, config.num_key_value_heads)
            data = tensor.float().numpy()
            # As converters do, vectors stay float32 whatever the type of the matrices.
            actual = kind if data.ndim == 2 else Kind.F32
            writer.add_tensor(
                key if key.startswith("raw.") else gguf_name(key),
                np.ascontiguousarray(quants.quantize(data, actual)),
                raw_dtype=actual,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def byte_tokenizer_json() -> dict[str, Any]:
    """A tokenizer.json as SmolLM2's: digits first, control tokens both in the vocabulary and added."""
    vocabulary = {token: at for at, token in enumerate(byte_vocabulary())}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<|endoftext|>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in MERGES],
        },
    }


WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """A Hugging Face folder; ``shards`` > 1 writes an index, ``changes`` replaces or (``None``) drops
    tensors."""

    def write(
        model: LlamaForCausalLM | None = None,
        *,
        name: str = "tiny-llama",
        shards: int = 1,
        changes: dict[str, Tensor | None] | None = None,
        config: dict[str, Any] | None = None,
    ) -> Path:
        model = model or tiny_llama()
        folder = tmp_path / name
        folder.mkdir()
        written = {**json.loads(model.config.to_json_string(use_diff=False)), **(config or {})}
        (folder / "config.json").write_text(json.dumps(written))
        (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()))
        roles = {
            "bos_token": "<|im_start|>",
            "eos_token": {"content": "<|im_end|>"},
            "pad_token": "<|im_end|>",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(roles))
        state = {**weights_of(model), **(changes or {})}
        kept = {key: tensor.contiguous() for key, tensor in state.items() if tensor is not None}
        if shards == 1:
            save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        index: dict[str, str] = {}
        for at in range(shards):
            file = f"model-{at + 1:05}-of-{shards:05}.safetensors"
            part = dict(list(kept.items())[at::shards])
            save_file(part, folder / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(part, file))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        return folder

    return write


@pytest.fixture(scope="session")
def base_weights() -> Path:
    """The default checkpoint's GGUF, found as ``infinichat`` finds it; skips where it is not on this
    machine."""
    from infinichat.errors import ModelError
    from infinichat.model.registry import Registry

    try:
        return Registry().base_weights()
    except ModelError as error:
        if os.environ.get("INFINICHAT_REQUIRE_REAL"):
            raise
        pytest.skip(str(error))
