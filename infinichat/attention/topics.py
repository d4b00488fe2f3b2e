"""Topic heads: which of the last tokens say whose it is, and what it is about.

A bank's keys are made of the words right before a value. "Clara's dog is called" has its owner there; "Mona's
favourite month is November, her least favourite drink is" has not, and in a key of the last few words Otto's
drink is found for Mona's. Each of H heads keeps an attention over the last ``RECENT`` tokens whose weights do
not depend on who asks, so that a token's part is the same in a telling and in a question, wherever it stands:

    o_t = sum_j d_j s_{t-j} e_{t-j} / (1 + sum_j d_j s_{t-j}),    j = 0 .. RECENT - 1

with the token embeddings e, how ``salient`` each token is (s >= 0; 0 where there is no token) and how much of
that is left after j tokens (d). The 1 is for nothing that stands out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.infini import packing, picked

RECENT = 32
"""Tokens that a topic head looks back at, the present one included."""

BLOCK = 32
"""Tokens for which weights are laid out together: wider bands are mostly zeros, narrower ones many
products."""


def pooled(tokens: Tensor, salient: Tensor, left: Tensor) -> Tensor:
    """o_t of all heads beside each other [B, T, H * C] for ``tokens`` [B, N + T, C] and how ``salient`` they
    are [B, N + T, H], of which the first N = RECENT - 1 come before the T; ``left`` [H, RECENT] are the
    d_j."""
    batch, whole, hidden = tokens.shape
    length = whole - RECENT + 1
    if length == 1:
        weights = salient * left.flip(1).T
        summed = weights.transpose(1, 2) @ tokens
        own = summed / (1 + weights.sum(dim=1))[..., None]
        return own.reshape(batch, 1, salient.shape[2] * hidden)
    block = min(BLOCK, length)
    blocks, heads, width = -(-length // block), left.shape[0], RECENT - 1 + block
    more = (0, 0, 0, blocks * block - length)
    seen = F.pad(tokens, more).unfold(1, width, block).transpose(2, 3)  # [B, blocks, width, C]
    weights = F.pad(salient, more).unfold(1, width, block)[:, :, :, None] * _bands(left, block)
    weights = weights.view(batch, blocks, heads * block, width)
    summed = (weights @ seen).view(batch, blocks, heads, block, hidden)
    share = summed / (1 + weights.sum(dim=-1)).view(batch, blocks, heads, block, 1)
    return share.permute(0, 1, 3, 2, 4).reshape(batch, blocks * block, heads * hidden)[:, :length]


def _bands(left: Tensor, block: int) -> Tensor:
    """d_j [H, RECENT] for each token of a block and each that it sees: [H, block, RECENT - 1 + block]."""
    late = torch.arange(block, device=left.device)[:, None]
    back = RECENT - 1 + late - torch.arange(RECENT - 1 + block, device=left.device)
    inside = (back >= 0) & (back < RECENT)
    return left[:, back.clamp(0, RECENT - 1)] * inside


def ragged_pooled(
    tokens: Tensor, salient: Tensor, left: Tensor, real: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``pooled`` for rows with padding, which ``real`` [B, T] is False at: looks back at a row's own tokens,
    wherever padding stands. At padding, o is anything finite. Returns also the last RECENT - 1 tokens of each
    row and how salient they are."""
    order, rank, ends = packing(real, RECENT - 1)
    tokens, salient = picked(tokens, order), picked(salient, order)
    found = pooled(tokens, salient, left)
    at = (rank - (RECENT - 1)).clamp(min=0)
    tail = ends + torch.arange(1 - RECENT, 0, device=real.device)
    return picked(found, at), picked(tokens, tail), picked(salient, tail)
