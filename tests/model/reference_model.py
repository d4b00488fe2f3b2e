"""A whole Infini model from the definition: one conversation, token by token, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infinichat.attention.bank_reference import BankParameters, bank_layer
from infinichat.attention.reference import (
    RecallParameters,
    Window,
    paper_layer,
    recall_layer,
    token_values,
)
from infinichat.model.bank_memory import BankMemory
from infinichat.model.memories import PaperMemory, RecallMemory
from infinichat.model.modeling_infini import InfiniForCausalLM


@dataclass(frozen=True, slots=True)
class Expected:
    """Logits [T, V] and, for each memory layer, M of all heads."""

    logits: Tensor
    M: dict[int, Tensor]


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def expected(model: InfiniForCausalLM, ids: Tensor) -> Expected:
    """What ``model`` must say for ids [T]; differentiable in its parameters."""
    config = model.config
    window = Window(config.window, config.segment, config.sinks)
    embedding = model.model.embed_tokens.weight[ids]
    h, memories = embedding, {}
    for index, layer in enumerate(model.model.layers):
        x = normed(h, layer.input_layernorm.weight, config.rms_norm_eps)
        attended, M = _attention(layer, x, window, config)
        h = h + attended
        if isinstance(layer.memory, PaperMemory):
            memories[index] = M
        elif isinstance(layer.memory, RecallMemory):
            parameters = RecallParameters(**dict(layer.memory.named_parameters()))
            values = token_values(embedding, config.memory_heads)
            recall = recall_layer(x, values, parameters, window=window, order=config.memory_order)
            h, memories[index] = h + recall.added, torch.stack(recall.M)
        elif isinstance(layer.memory, BankMemory):
            banked = bank_layer(
                x,
                token_values(embedding, config.memory_heads),
                ids.tolist(),
                BankParameters(**dict(layer.memory.named_parameters())),
                order=config.memory_order,
                slots=config.memory_slots,
            )
            h, memories[index] = h + banked.added, torch.stack(banked.M)
        x = normed(h, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        gate, up, down = (
            projection.weight for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )
        gated = x @ gate.T
        h = h + (gated * torch.sigmoid(gated) * (x @ up.T)) @ down.T
    final = normed(h, model.model.norm.weight, config.rms_norm_eps)
    return Expected(final @ model.lm_head.weight.T, memories)


def _attention(layer: Any, x: Tensor, window: Window, config: Any) -> tuple[Tensor, Tensor]:
    def heads(projection: torch.nn.Linear, count: int) -> Tensor:
        flat = x @ projection.weight.T
        return torch.stack(flat.split(config.head_dim, dim=1)[:count])

    attention, memory = layer.self_attn, layer.memory
    beta = (
        memory.beta
        if isinstance(memory, PaperMemory)
        else x.new_full((config.num_attention_heads,), -torch.inf)
    )
    result = paper_layer(
        heads(attention.q_proj, config.num_attention_heads),
        heads(attention.k_proj, config.num_key_value_heads),
        heads(attention.v_proj, config.num_key_value_heads),
        beta,
        window=window,
        rule=memory.rule if isinstance(memory, PaperMemory) else "linear",
        theta=config.infini_rope["theta"],
    )
    joined = torch.cat(list(result.output), dim=1)
    return joined @ attention.o_proj.weight.T, torch.stack(result.M)
