"""The parts of a decoder layer that have no state: norms, MLPs, experts, embedding and vocabulary head.

Each computes what transformers' classes of the families compute, and has the names of their weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from infinichat.attention.memory import wide
from infinichat.model.configuration_infini import InfiniConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 or wider as Llama does; with ``unit_offset`` the weight is
    1 + w and the product, too, is that wide, as Gemma does."""

    def __init__(self, size: int, eps: float, *, unit_offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.unit_offset = eps, unit_offset

    @property
    def gain(self) -> Tensor:
        """What x / rms(x) is multiplied by, [size] in float32 or wider."""
        return 1 + wide(self.weight) if self.unit_offset else wide(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        precise = wide(x)
        precise = precise * torch.rsqrt(precise.square().mean(dim=-1, keepdim=True) + self.eps)
        if self.unit_offset:
            return (precise * self.gain).to(x.dtype)
        return self.weight * precise.to(x.dtype)


def norm_of(config: InfiniConfig, size: int | None = None) -> RMSNorm:
    """The norm of a model, over its hidden states or ``size`` channels."""
    return RMSNorm(size or config.hidden_size, config.rms_norm_eps, unit_offset=config.norm_unit_offset)


def scaled(embedded: Tensor, scale: float) -> Tensor:
    """Rows of an embedding table [..., C] times ``scale``, as a number of their own type: that is what such
    models were trained with."""
    if scale == 1:
        return embedded
    return embedded * torch.tensor(scale, dtype=embedded.dtype, device=embedded.device)


class ScaledEmbedding(nn.Embedding):
    """Rows of the table times ``scale``."""

    def __init__(self, rows: int, size: int, *, scale: float) -> None:
        super().__init__(rows, size)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return scaled(super().forward(input), self.scale)


class CappedHead(nn.Linear):
    """The vocabulary head: scores y, or with ``cap`` cap * tanh(y / cap)."""

    def __init__(self, size: int, rows: int, *, cap: float | None) -> None:
        super().__init__(size, rows, bias=False)
        self.cap = cap

    def forward(self, input: Tensor) -> Tensor:
        scores = super().forward(input)
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of transformers' name ``name``; raises ``KeyError`` for one that it does not know."""
    if name == "silu":
        return nn.SiLU()
    if name == "gelu_pytorch_tanh":
        return nn.GELU(approximate="tanh")
    from transformers.activations import ACT2FN  # late: it takes seconds, and the families need none of it

    found: Callable[[Tensor], Tensor] = ACT2FN[name]
    return found


class InfiniMLP(nn.Module):
    """down(act(gate(x)) * up(x)), of ``inner`` channels or the configuration's."""

    def __init__(self, config: InfiniConfig, inner: int | None = None) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.mlp_bias
        inner = inner or config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.act_fn = activation(config.hidden_act)

    @property
    def sample(self) -> Tensor:
        """A matrix [out, in] by which products can be timed."""
        return self.gate_proj.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class MixtureOfExperts(nn.Module):
    """For each token the MLPs that ``gate`` ranks highest, weighted by its probabilities, and one that all
    tokens pass, weighted by a gate of its own (Qwen2-MoE)."""

    def __init__(self, config: InfiniConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.chosen, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(hidden, config.num_experts, bias=False)
        self.experts = nn.ModuleList(InfiniMLP(config, inner) for _ in range(config.num_experts))
        self.shared_expert = InfiniMLP(config, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    @property
    def sample(self) -> Tensor:
        """As ``InfiniMLP.sample``, of the shared expert."""
        return self.shared_expert.sample

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, numbers = wide(self.gate(flat)).softmax(dim=-1).topk(self.chosen, dim=-1)
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(x.dtype)
        out: Tensor = torch.sigmoid(self.shared_expert_gate(flat)) * self.shared_expert(flat)
        for number in sorted(set(numbers.flatten().tolist())):
            rows, places = (numbers == number).nonzero(as_tuple=True)
            added = self.experts[number](flat[rows]) * weights[rows, places, None]
            out = out.index_add(0, rows, added)
        return out.view(x.shape)


def mlp_of(config: InfiniConfig, layer: int) -> InfiniMLP | MixtureOfExperts:
    """What ``layer`` has after its attention."""
    return MixtureOfExperts(config) if config.has_experts(layer) else InfiniMLP(config)
