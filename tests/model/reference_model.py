"""A whole Infini model from the definition: one conversation, token by token, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infinichat.attention.bank_reference import BankParameters, TopicParameters, bank_layer, cut
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
    change, said = None, []
    for index, layer in enumerate(model.model.layers):
        x = normed(h, layer.input_layernorm.weight, config.rms_norm_eps)
        attended, M = _attention(layer, x, window, config, change)
        h = h + attended
        if isinstance(layer.memory, PaperMemory):
            memories[index] = M
        elif isinstance(layer.memory, RecallMemory):
            parameters = RecallParameters(**dict(layer.memory.named_parameters()))
            values = token_values(embedding, config.memory_heads)
            recall = recall_layer(x, values, parameters, window=window, order=config.memory_order)
            h, memories[index] = h + recall.added, torch.stack(recall.M)
        elif isinstance(layer.memory, BankMemory):
            named = dict(layer.memory.named_parameters(recurse=False))
            banked = bank_layer(
                x,
                token_values(embedding, config.memory_heads),
                ids.tolist(),
                BankParameters(**named, topics=topics_of(layer.memory)),
                order=config.memory_order,
                slots=config.memory_slots,
            )
            h, memories[index] = h + banked.added, torch.stack(banked.M)
            said.append((banked, named["say_final"], named["say"]))
            adapters = layer.memory.adapters
            change = None if adapters is None else (adapters, index + 1, banked.opened)
        x = normed(h, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        gate, up, down = (
            projection.weight for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )
        gated = x @ gate.T
        h = h + (gated * torch.sigmoid(gated) * (x @ up.T)) @ down.T
    final = normed(h, model.model.norm.weight, config.rms_norm_eps)
    for banked, by_final, scale in said:
        gates = torch.stack(
            [cut(wish + by_final @ row) for wish, row in zip(banked.wish, final, strict=True)]
        )
        final = final + scale * gates[:, None] * banked.values
    return Expected(final @ model.lm_head.weight.T, memories)


def topics_of(memory: BankMemory) -> TopicParameters | None:
    return None if memory.topics is None else TopicParameters(**dict(memory.topics.named_parameters()))


def _attention(
    layer: Any, x: Tensor, window: Window, config: Any, change: tuple[Any, int, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """``change``: adapters, the first layer that they change, and by how much for each token [T]."""

    def changed(name: str, y: Tensor, x: Tensor) -> Tensor:
        if change is None:
            return y
        adapters, first, opened = change
        at, rank = layer.self_attn.layer_idx - first, adapters.rank
        place = {"q": 0, "k": 1, "v": 2}.get(name)
        down = adapters.o_down[at] if place is None else adapters.qkv_down[at][place * rank :][:rank]
        up = getattr(adapters, f"{name}_up")[at]
        return torch.stack(
            [row + o * (up @ (down @ given)) for row, given, o in zip(y, x, opened, strict=True)]
        )

    def heads(name: str, count: int) -> Tensor:
        projection = getattr(layer.self_attn, f"{name}_proj")
        flat = changed(name, x @ projection.weight.T, x)
        return torch.stack(flat.split(config.head_dim, dim=1)[:count])

    attention, memory = layer.self_attn, layer.memory
    beta = (
        memory.beta
        if isinstance(memory, PaperMemory)
        else x.new_full((config.num_attention_heads,), -torch.inf)
    )
    result = paper_layer(
        heads("q", config.num_attention_heads),
        heads("k", config.num_key_value_heads),
        heads("v", config.num_key_value_heads),
        beta,
        window=window,
        rule=memory.rule if isinstance(memory, PaperMemory) else "linear",
        theta=config.infini_rope["theta"],
    )
    joined = torch.cat(list(result.output), dim=1)
    return changed("o", joined @ attention.o_proj.weight.T, joined), torch.stack(result.M)
