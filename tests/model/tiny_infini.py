"""Tiny Infini models with open memories, and one whose memory recalls by construction."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from infinichat.model.bank_memory import BankMemory
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.memories import PaperMemory, RecallMemory, ResidualMemory
from infinichat.model.modeling_infini import InfiniForCausalLM

Kind = Literal["bank", "recall", "linear", "delta"]
KINDS: tuple[Kind, ...] = ("bank", "recall", "linear", "delta")

HARD = {"window": 8, "segment": 8, "sinks": 0}
STREAMING = {"window": 12, "segment": 4, "sinks": 2}
WINDOWS = {"hard": HARD, "streaming": STREAMING}

VOCABULARY = 40


def tiny_config(**changes: Any) -> InfiniConfig:
    """Two layers with memory, four query heads over two key-value heads, a streaming window of 12 tokens."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "memory_layers": [0, 1],
        "memory_trained": True,
        "memory_key_dim": 6,
        "memory_slots": 7,
        "memory_fade_dim": 5,
        "memory_rank": 2,
        "memory_topics": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        **STREAMING,
    }
    return InfiniConfig(**{**values, **changes})


def tiny_model(*, seed: int = 3, dtype: torch.dtype = torch.float64, **changes: Any) -> InfiniForCausalLM:
    """Random weights; every memory reads and writes. float64, so that comparisons can be strict."""
    torch.manual_seed(seed)
    model = InfiniForCausalLM(tiny_config(**changes)).to(dtype).eval()
    for layer in model.model.layers:
        open_memory(layer.memory)
    return model


@torch.no_grad()
def open_memory(memory: PaperMemory | ResidualMemory | None) -> None:
    """Random parameters with which about half of all tokens are written and every read shows."""
    if isinstance(memory, PaperMemory):
        memory.beta.copy_(torch.randn_like(memory.beta))
    elif isinstance(memory, ResidualMemory):
        for parameter in memory.parameters():
            nn.init.normal_(parameter, std=0.3)
        memory.alpha.fill_(0.7)
        memory.softness.fill_(0.5)
    if isinstance(memory, BankMemory):
        memory.recency.fill_(0.3)
        memory.matrix_gain.fill_(0.5)
        memory.erase.copy_(torch.tensor([1.5, 0.5, 0.3]))


@torch.no_grad()
def shut_write_gate(model: InfiniForCausalLM) -> None:
    """Let nothing in: a bank, which is written at once, then stays empty like memories before anything has
    left the window."""
    for layer in model.model.layers:
        if isinstance(layer.memory, BankMemory):
            layer.memory.gate_taps.zero_()
            layer.memory.gate_out.zero_()
            layer.memory.gate_bias.fill_(-9)


@torch.no_grad()
def close_memory(model: InfiniForCausalLM) -> None:
    """Shut every gate completely."""
    for layer in model.model.layers:
        if isinstance(layer.memory, PaperMemory):
            layer.memory.beta.fill_(float("-inf"))
        elif isinstance(layer.memory, RecallMemory):
            for parameter in (layer.memory.alpha, layer.memory.confidence, layer.memory.found_bias):
                parameter.zero_()
        elif isinstance(layer.memory, BankMemory):
            for name in ("alpha", "confidence", "ending", "found_bias", "adapt_out", "say"):
                layer.memory.get_parameter(name).zero_()
            if layer.memory.adapters is not None:
                layer.memory.adapters.reset_parameters()


def some_ids(length: int, *, rows: int = 1, seed: int = 5) -> Tensor:
    """Random ids [rows, length], never 0, which is used as padding."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def streamed(model: InfiniForCausalLM, ids: Tensor, cuts: list[int] | None = None) -> Tensor:
    """Logits of all tokens, fed in pieces that end at ``cuts`` (one by one without)."""
    cache = model.model.new_cache(ids.shape[0])
    ends = [*(cuts if cuts is not None else range(1, ids.shape[1])), ids.shape[1]]
    parts, start = [], 0
    for end in ends:
        if end > start:
            parts.append(model(ids[:, start:end], past_key_values=cache).logits)
            start = end
    return torch.cat(parts, dim=1)


MARK = (1, 2)
"""In ``recalling_model`` the two tokens after these two are written, and asked for by them."""


@torch.no_grad()
def recalling_model(**changes: Any) -> InfiniForCausalLM:
    """One layer that does nothing but recall: after ``MARK`` it says the two tokens that followed it before.

    Attention and MLP are zero. A token is stored under the two before it; the write gate is open only right
    after ``MARK``; the vocabulary head is tied, so a read value is the token's own embedding.
    """
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=64,
        num_hidden_layers=1,
        memory_layers=[0],
        num_attention_heads=4,
        memory_key_dim=32,
        **{"window": 16, "segment": 8, "sinks": 2, **changes},
    )
    model = InfiniForCausalLM(config).eval()
    layer, embedding = model.model.layers[0], model.model.embed_tokens.weight
    nn.init.normal_(embedding)
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    memory = layer.memory
    assert isinstance(memory, RecallMemory)
    context = torch.zeros_like(memory.q_taps)
    nn.init.normal_(context[:, : 2 * 64], std=0.1)
    memory.q_taps.copy_(context)  # from x_t and x_{t-1}
    memory.k_taps.copy_(context)  # from x_{t-1} and x_{t-2}
    inputs = layer.input_layernorm(embedding)
    is_mark = torch.zeros(VOCABULARY).index_fill_(0, torch.tensor(MARK[1]), 1)
    detector = torch.linalg.lstsq(inputs, is_mark[:, None]).solution[:, 0]
    memory.gate_taps[1:] = 60 * detector
    memory.gate_bias.fill_(-30)
    memory.alpha.fill_(8)
    memory.softness.fill_(0.1)
    memory.read_bias.fill_(20)
    return model
