"""The parameters of a layer's memory, and what they do with a window's tokens: read, keep for later, commit.

``PaperMemory`` is one gate per head (arXiv 2404.07143); it uses the layer's own keys, queries and values.
``RecallMemory`` has projections of its own, and so has ``bank_memory.BankMemory``. All are named
``model.layers.N.memory`` and hold nothing but parameters: the state comes in and goes out through
``LayerState``.

    recall   k_t  = features(sum_{j=1..4} Wk_j x_{t-j})      stored under k_t: the embedding of token t
             q_t  = features(sum_{j=0..3} Wq_j x_{t-j})      so q_t meets the key of the token that came next
             b_t  = hard_gate(sum_j w_j x_{t-j} + c)         exactly 0 for almost every token
             h_t += g_t (alpha W_om read + W_c n + u)        n: confidence of the read, g_t: a token gate
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.attention.infini import (
    ending,
    hard_gate,
    paper_attention,
    ragged_taps,
    recall_features,
    recall_read,
    taps,
)
from infinichat.attention.memory import (
    EPS,
    MemoryState,
    UpdateRule,
    elu1,
    gather_written,
    wide,
    write_delta,
    write_normalised,
)
from infinichat.model.adapters import Carried
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.layer_state import RECALL_TAPS, LayerState

Written = Literal["segment", "chosen", "at once"]
"""A leaving segment as a whole; of it the tokens with a strength; each token when it is read."""


def is_paper(memory: object) -> TypeGuard[PaperMemory]:
    """Whether this is a ``PaperMemory``, or a wrapper that trains a copy of one (PEFT's
    ``modules_to_save``): those hand attributes on, but ``isinstance`` does not see through them."""
    return getattr(memory, "written_by", None) == "segment"


def is_residual(memory: object) -> TypeGuard[ResidualMemory]:
    """As ``is_paper``, for a ``ResidualMemory``."""
    return getattr(memory, "written_by", None) in ("chosen", "at once")


def is_recall(memory: object) -> TypeGuard[RecallMemory]:
    """As ``is_paper``, for a ``RecallMemory``."""
    return getattr(memory, "written_by", None) == "chosen"


class PaperMemory(nn.Module):
    """The paper's memory: one scalar ``beta`` a head, [H]."""

    written_by: ClassVar[Written] = "segment"
    BETA_START = -3.0
    """sigmoid(-3) = 0.047: nearly the base model, with a gradient of the same size (at -100 it is zero)."""

    def __init__(self, config: InfiniConfig) -> None:
        super().__init__()
        self.rule: UpdateRule = "delta" if config.memory == "delta" else "linear"
        self.beta = nn.Parameter(torch.full((config.num_attention_heads,), self.BETA_START))

    def attend(self, A_dot: Tensor, q: Tensor, state: MemoryState) -> Tensor:
        """Mix the memory into local attention [B, H, T, D]; q [B, H, T, D] carries no position."""
        return paper_attention(A_dot, q, self.beta, state)

    def commit(self, state: LayerState, count: int, write: Tensor | None) -> MemoryState:
        """Write the window's oldest ``count`` slots as one segment; ``write`` [B, count]: which of them."""
        assert state.memory is not None
        assert state.memory_k is not None
        keys = elu1(wide(state.memory_k.content[:, :, :count]))
        values = state.v.content[:, :, :count]
        return write_normalised(state.memory, keys, values, rule=self.rule, mask=write)


class ResidualMemory(nn.Module):
    """A memory with projections of its own, whose read is added to the residual stream of its layer. Stored
    values are token embeddings of unit root mean square, split over ``heads``. ``gate_taps`` [n, C] and
    ``gate_bias`` are the write gate."""

    written_by: ClassVar[Written] = "at once"

    def __init__(self, config: InfiniConfig) -> None:
        super().__init__()
        self.heads, self.order = config.memory_heads, config.memory_order
        self.gate_taps = nn.Parameter(torch.empty(config.memory_gate_taps, config.hidden_size))
        self.gate_bias = nn.Parameter(torch.empty(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The untrained start: a read adds 0, and gradients exist."""
        self.gate_taps.zero_()
        self.gate_bias.fill_(0.1)

    def forward(
        self,
        h: Tensor,
        x: Tensor,
        state: LayerState,
        *,
        real: Tensor | None,
        embeddings: Tensor,
        ids: Tensor,
    ) -> tuple[Tensor, Carried | None]:
        """h [B, T, C] with the read added, and what the read carries on to the layers above; x [B, T, C] is
        the layer's normed input, ``embeddings`` [B, T, C] and ``ids`` [B, T] are the tokens'. Also writes
        these T tokens, or keeps, in ``state``, what they will be written with when they leave the window.
        ``real`` [B, T] False at padding."""
        raise NotImplementedError

    def write_strength(self, around: Tensor) -> Tensor:
        """b [B, T] in [0, 1] from x_t, x_{t-1} .. beside each other [B, T, >= gate taps * C]."""
        return hard_gate(self.write_logits(around[..., : self.gate_taps.numel()]))

    def write_logits(self, around: Tensor) -> Tensor:
        """The write gate before it is cut [...], for [..., gate taps * C]: above zero a token is written."""
        return around @ self.gate_taps.to(around.dtype).reshape(-1) + self.gate_bias.to(around.dtype)

    @staticmethod
    def unit_rms(embeddings: Tensor) -> Tensor:
        """Token embeddings [B, T, C] with unit root mean square, float32 or wider."""
        embeddings = wide(embeddings)
        return embeddings * torch.rsqrt(embeddings.square().mean(dim=-1, keepdim=True) + EPS)

    def split(self, values: Tensor) -> Tensor:
        """[B, T, C] over the heads: [B, H, T, D]."""
        batch, length, hidden = values.shape
        return values.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2)


class RecallMemory(ResidualMemory):
    """The recall memory's parameters. With C = hidden size, H heads, Dk key width: ``k_taps`` and ``q_taps``
    [H * Dk, 4 * C], ``gate_taps`` [3, C] by default and ``gate_bias`` (write gate), ``out`` [C, C] (starts as
    identity), ``alpha`` (starts at 0: closed), ``softness`` [H], ``confidence`` [C, H] and ``found_bias``
    [C], ``read_gate`` [C], ``read_confidence`` [H] and ``read_bias`` (token gate)."""

    written_by: ClassVar[Written] = "chosen"

    def __init__(self, config: InfiniConfig) -> None:
        super().__init__(config)
        hidden, heads = config.hidden_size, config.memory_heads
        width = heads * config.memory_key_dim
        self.k_taps = nn.Parameter(torch.empty(width, RECALL_TAPS * hidden))
        self.q_taps = nn.Parameter(torch.empty(width, RECALL_TAPS * hidden))
        self.out = nn.Parameter(torch.empty(hidden, hidden))
        self.alpha = nn.Parameter(torch.empty(()))
        self.softness = nn.Parameter(torch.empty(heads))
        self.confidence = nn.Parameter(torch.empty(hidden, heads))
        self.found_bias = nn.Parameter(torch.empty(hidden))
        self.read_gate = nn.Parameter(torch.empty(hidden))
        self.read_confidence = nn.Parameter(torch.empty(heads))
        self.read_bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The untrained start: a read adds 0 (alpha, confidence, found_bias), and gradients exist."""
        super().reset_parameters()
        hidden = self.out.shape[0]
        for projection in (self.k_taps, self.q_taps):
            nn.init.normal_(projection, std=projection.shape[1] ** -0.5)
        closed = (self.alpha, self.confidence, self.found_bias)
        for parameter in (*closed, self.read_gate, self.read_confidence):
            parameter.zero_()
        self.out.copy_(torch.eye(hidden))
        self.softness.fill_(0.5)
        self.read_bias.fill_(1.0)

    def forward(
        self,
        h: Tensor,
        x: Tensor,
        state: LayerState,
        *,
        real: Tensor | None,
        embeddings: Tensor,
        ids: Tensor,
    ) -> tuple[Tensor, Carried | None]:
        """As ``ResidualMemory.forward``: kept for later. Embeddings and ids are not needed here, and nothing
        is carried."""
        assert state.memory is not None
        assert state.memory_k is not None
        assert state.strength is not None
        assert state.tail is not None
        x = wide(x)
        if real is None:
            around = taps(x, state.tail, 0, RECALL_TAPS + 1)  # [B, T, 5 C]: x_t, x_{t-1} .. x_{t-4}
            state.tail = ending(state.tail, x)
            strength = self.write_strength(around)
        else:
            around, state.tail = ragged_taps(x, state.tail, real, 0, RECALL_TAPS + 1)
            strength = self.write_strength(around) * real
        hidden = x.shape[-1]
        state.strength.append(strength)
        state.memory_k.append(F.linear(around[..., hidden:], self.k_taps.to(x.dtype)))
        queries = F.linear(around[..., : RECALL_TAPS * hidden], self.q_taps.to(x.dtype))
        added = self.read(queries, x, state.memory)
        return h + (added * (state.memory.written > 0)[:, None, None]).to(h.dtype), None

    def read(self, queries: Tensor, x: Tensor, memory: MemoryState) -> Tensor:
        """What to add to the residual [B, T, C], in x's type, for projected queries [B, T, H * Dk]."""
        dtype = x.dtype
        features = recall_features(queries, heads=self.heads, order=self.order)
        got = recall_read(features, memory, softness=self.softness)
        gate = torch.sigmoid(
            x @ self.read_gate.to(dtype)
            + got.confidence @ self.read_confidence.to(dtype)
            + self.read_bias.to(dtype)
        )
        values = self.alpha.to(dtype) * F.linear(got.values, self.out.to(dtype))
        found = F.linear(got.confidence, self.confidence.to(dtype)) + self.found_bias.to(dtype)
        return gate[..., None] * (values + found)

    def values(self, embeddings: Tensor) -> Tensor:
        """Token embeddings [B, T, C] as stored values [B, H, T, D]: unit rms, split over heads."""
        return self.split(self.unit_rms(embeddings))

    def commit(
        self, state: LayerState, count: int, write: Tensor | None, ids: Tensor, embedding: nn.Embedding
    ) -> MemoryState:
        """Write the window's oldest ``count`` slots, whose tokens are ``ids`` [B, count], with the per-token
        delta rule; ``write`` [B, count]: which of them. Only tokens of non-zero strength are touched, so a
        segment of chatter costs nothing."""
        assert state.memory is not None
        assert state.memory_k is not None
        assert state.strength is not None
        strength = state.strength.content[:, :count]
        if write is not None:
            strength = strength * write
        chosen, strength = gather_written(strength)
        if chosen.shape[1] == 0:
            return state.memory
        projected = state.memory_k.content
        projected = projected.gather(1, chosen[..., None].expand(-1, -1, projected.shape[-1]))
        keys = recall_features(projected, heads=self.heads, order=self.order)
        values = self.values(embedding(ids.gather(1, chosen)))
        return write_delta(state.memory, keys, values, strength)
