"""What a memory's read carries to the layers above it and to the vocabulary head.

The layers above a memory are frozen, and were never trained to say what a read adds to their input. Two
things help them, both only where the read calls for them, so that ordinary talk stays the base's:

    y_t     = W x_t + o_t U D x_t            low-rank changes of attention (LoRA, arXiv 2106.09685)
    final_t = norm(h_t) + s_t c o_t P v_t    the read's values once more, right before the vocabulary head H:
                                             H c P v_t is a copy score for every token (``copy_matrix``)

with o_t = max(open(.), how much of a value goes on) and s_t = cut(sigmoid(. + w . norm(h_t))). Both are
exactly 0 where the sigmoid is below ``LEAST_OPEN``; open(.) is twice the sigmoid and exactly 1 from 1/2 on:
what is read is multiplied by it, and found with certainty it went unsaid under adapters two thirds open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.model.configuration_infini import InfiniConfig

LEAST_OPEN = 0.05
"""Gates below this are shut. What is left of a change then is too little to be said, and a token that changes
nothing costs nothing."""


def cut(logits: Tensor) -> Tensor:
    """sigmoid, and exactly 0 where that is below ``LEAST_OPEN``; with the gradient of the sigmoid, so that
    what is shut can be opened again."""
    gate = torch.sigmoid(logits)
    open_enough = gate * (gate >= LEAST_OPEN)
    return gate + (open_enough - gate).detach() if torch.is_grad_enabled() else open_enough


def wide_open(logits: Tensor) -> Tensor:
    """Twice the sigmoid, at most 1, and exactly 0 where the sigmoid is below ``LEAST_OPEN``; with the
    gradient of the sigmoid, as ``cut``."""
    gate = torch.sigmoid(logits)
    opened = (2 * cut(logits.detach())).clamp(max=1)
    return gate + (opened - gate).detach() if torch.is_grad_enabled() else opened


@torch.no_grad()
def copy_matrix(values: Tensor, head: Tensor) -> Tensor:
    """P [C, C] in float32: H P v_i is nearest to 1 for token i and to 0 for all others, in the mean of
    squares; for a token's value [V, C] and the rows H [V, C] of the head. With the values as they are, only
    one token in ten of SmolLM2-135M would score highest for itself, with P 999 of 1,000."""
    v, h = values.double(), head.double()
    h = h - h.mean(dim=0)  # what all scores share changes nothing
    ridge = 1e-4 * torch.eye(v.shape[1], dtype=v.dtype)
    within = [part.T @ part / len(part) for part in (v, h)]
    inverse_v, inverse_h = (torch.linalg.inv(m + ridge * m.diagonal().mean()) for m in within)
    p: Tensor = inverse_h @ (h.T @ v / len(v)) @ inverse_v
    own = ((h @ p) * v).sum(dim=1).mean()
    return (p / own).float()


class Adapters(nn.Module):
    """U and D of rank R for attention's projections in the L layers above layer ``below``, of C hidden, N
    query and M key channels: ``qkv_down`` [L, 3 R, C], ``q_up`` [L, N, R], ``k_up`` and ``v_up`` [L, M, R],
    ``o_down`` [L, R, N], ``o_up`` [L, C, R]. U starts at zero, so nothing changes."""

    def __init__(self, config: InfiniConfig, *, below: int, rank: int) -> None:
        super().__init__()
        self.first, self.rank = below + 1, rank
        count, hidden = config.num_hidden_layers - self.first, config.hidden_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, *shape))

        self.qkv_down, self.q_up = parameter(3 * rank, hidden), parameter(queries, rank)
        self.k_up, self.v_up = parameter(keys, rank), parameter(keys, rank)
        self.o_down, self.o_up = parameter(rank, queries), parameter(hidden, rank)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The untrained start: no change, and gradients exist."""
        for down in (self.qkv_down, self.o_down):
            nn.init.normal_(down, std=down.shape[-1] ** -0.5)
        for up in (self.q_up, self.k_up, self.v_up, self.o_up):
            up.zero_()

    def qkv(self, layer: int, x: Tensor, opened: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What queries [..., N], keys and values [..., M] of ``layer`` change by for its input x [..., C],
        in x's type; ``opened`` [..., 1] is how far."""
        at = layer - self.first
        inner = F.linear(x.to(self.qkv_down.dtype), self.qkv_down[at]) * opened.to(self.qkv_down.dtype)
        q, k, v = torch.unflatten(inner, -1, (3, self.rank)).unbind(dim=-2)
        ups = (self.q_up[at], self.k_up[at], self.v_up[at])
        q, k, v = (F.linear(part, up).to(x.dtype) for part, up in zip((q, k, v), ups, strict=True))
        return q, k, v

    def out(self, layer: int, x: Tensor, opened: Tensor) -> Tensor:
        """The same of the output projection: [..., C] for x [..., N]."""
        at = layer - self.first
        inner = F.linear(x.to(self.o_down.dtype), self.o_down[at]) * opened.to(self.o_down.dtype)
        return F.linear(inner, self.o_up[at]).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Carried:
    """For T tokens: by how much the ``adapters`` above are ``opened`` [..., T, 1] in [0, 1], as much of the
    read's ``values`` [..., T, C], the logits ``wish`` [..., T, 1] of saying them, to which the final state
    adds its product with ``by_final`` [C], and ``scale``, by how much they are said."""

    adapters: Adapters | None
    opened: Tensor
    values: Tensor
    wish: Tensor
    by_final: Tensor
    scale: Tensor

    @property
    def changing(self) -> tuple[Adapters, Tensor] | None:
        """The adapters that change these tokens, and by how much they are open; None for none."""
        return None if self.adapters is None else (self.adapters, self.opened)

    @classmethod
    def joined(cls, parts: Sequence[Carried]) -> Carried:
        """Tokens after tokens."""
        if len(parts) == 1:
            return parts[0]
        opened, values, wish = (
            torch.cat([getattr(part, name) for part in parts], dim=-2)
            for name in ("opened", "values", "wish")
        )
        adapters = next((part.adapters for part in parts if part.adapters is not None), None)
        return cls(adapters, opened, values, wish, parts[0].by_final, parts[0].scale)

    def spoken(self, final: Tensor) -> Tensor:
        """The last tokens' final states [..., t, C] with what they are to say, in their type."""
        count, dtype = final.shape[-2], self.values.dtype
        said = cut(self.wish[..., -count:, :] + (final.to(dtype) @ self.by_final.to(dtype))[..., None])
        return final + (said * self.scale.to(dtype) * self.values[..., -count:, :]).to(final.dtype)
