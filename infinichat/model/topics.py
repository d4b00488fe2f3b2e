"""The parameters of a bank memory's topic heads: how much each token stands out, and for how long.

    s_t = exp(S [x_t, x_{t-1}] + E e_t + b),   d_j = exp(f_j)

x the layer's normed inputs, e the token embeddings of unit rms; ``infinichat.attention.topics`` has what is
made of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.attention.infini import ending
from infinichat.attention.topics import RECENT, pooled, ragged_pooled
from infinichat.model.layer_state import LayerState

HIGHEST = 12.0
"""Logarithm of how salient a token can be: 32 of them add up in float32 beside the 1 for nothing."""


class Topics(nn.Module):
    """``by_state`` [H, 2 C], ``by_token`` [H, C], ``bias`` [H] and ``fading`` [H, RECENT] of H heads."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.by_state = nn.Parameter(torch.empty(heads, 2 * hidden))
        self.by_token = nn.Parameter(torch.empty(heads, hidden))
        self.bias, self.fading = nn.Parameter(torch.empty(heads)), nn.Parameter(torch.empty(heads, RECENT))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Little but the last tokens to tell tokens apart by, and different in each head."""
        for matrix in (self.by_state, self.by_token):
            nn.init.normal_(matrix, std=0.01)
        self.bias.zero_()
        self.fading.copy_(-0.1 * torch.arange(RECENT).expand_as(self.fading))

    def salient(self, states: Tensor, tokens: Tensor) -> Tensor:
        """s [..., H] for states x_t, x_{t-1} beside each other [..., 2 C] and token embeddings [..., C]."""
        dtype = states.dtype
        scores = F.linear(states, self.by_state.to(dtype), self.bias.to(dtype))
        return (scores + F.linear(tokens, self.by_token.to(dtype))).clamp(max=HIGHEST).exp()

    def left(self, dtype: torch.dtype) -> Tensor:
        """d [H, RECENT]."""
        return self.fading.to(dtype).exp()

    def forward(self, states: Tensor, tokens: Tensor, state: LayerState, real: Tensor | None) -> Tensor:
        """o [B, T, H C] for the states [B, T, 2 C] and embeddings [B, T, C] of the next tokens; ``state``
        moves on. ``real`` [B, T] is False at padding."""
        assert state.tail_recent is not None
        assert state.tail_salient is not None
        now, left = self.salient(states, tokens), self.left(states.dtype)
        recent = torch.cat((state.tail_recent, tokens), dim=1)
        salient = torch.cat((state.tail_salient, now), dim=1)
        if real is not None:
            found, state.tail_recent, state.tail_salient = ragged_pooled(recent, salient, left, real)
            return found
        state.tail_recent = ending(state.tail_recent, tokens)
        state.tail_salient = ending(state.tail_salient, now)
        return pooled(recent, salient, left)
