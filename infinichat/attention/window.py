"""The local window: which tokens a query sees exactly, where they stand, and exact attention over them.

One rule covers both ways of segmenting. Let p be a token's position in its own conversation (padding has
none). Before p is processed, ``evicted_before(p)`` tokens have left the window:

    E(p) = 0                                     for p < W
    E(p) = S * (floor((p - W) / S) + 1)          for p >= W

A query at p attends exactly to positions E(p)..p (and to the first few tokens, the attention sinks of arXiv
2309.17453); everything before E(p) is in the memory. With W = S this is the paper's hard segmentation,
E(p) = S * floor(p / S); with W > S it is the streaming window of a chat: it holds between W - S + 1 and W
tokens, so no segment end ever hides the last sentence. E depends on nothing but p: how the input was cut into
calls cannot change a result.

Rotary angles are computed in float64, so they are exact at position 10,000,000; sinks are turned so that they
stand right before the window, because a model has never seen a distance of millions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.memory import wide


def evicted_before(position: int, *, window: int, segment: int) -> int:
    """E(p): how many tokens have left the window before the token at ``position`` is processed."""
    if position < window:
        return 0
    return segment * ((position - window) // segment + 1)


def evicted_before_each(positions: Tensor, *, window: int, segment: int) -> Tensor:
    """E(p) for an int64 tensor of positions of any shape; padding (negative positions) gives 0."""
    steps = torch.div(positions - window, segment, rounding_mode="floor") + 1
    return (segment * steps).clamp(min=0)


def room(seen: int, *, window: int, segment: int) -> int:
    """How many tokens fit into one forward after ``seen`` tokens, before E changes again; at least 1."""
    if seen < window:
        return window - seen
    return segment - (seen - window) % segment


def inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    """RoPE's theta^(-2i/d) as float64, shape [head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return theta**-exponent


def rotary(
    positions: Tensor, inv_freq: Tensor, dtype: torch.dtype = torch.float32, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines times ``scale`` for int64 ``positions`` [...], in ``dtype`` [..., head_dim], on the
    positions' device.

    Angles are float64, worked out where ``inv_freq`` (float64) is: keep that on the CPU for devices without
    float64.
    """
    angles = positions.to(inv_freq.device).to(torch.float64)[..., None] * inv_freq
    tables = (angles.cos(), angles.sin()) if scale == 1 else (angles.cos() * scale, angles.sin() * scale)
    cos, sin = (table.to(dtype).to(positions.device) for table in tables)
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotation to x [B, H, T, D]; cos and sin are [T, R] or [B, 1, T, R], in x's dtype. Of more
    than R dimensions the first R are rotated."""
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def visible(
    query_positions: Tensor, key_positions: Tensor, evicted: Tensor, *, span: int | None = None
) -> Tensor:
    """Mask [B, T, N], True where the query at [B, T] may see the key at [B, N].

    Keys of padding have position -1. ``evicted`` [B] is E for all of these queries (one segment's forward).
    With ``span`` a query sees only the last ``span`` positions, its own included.
    """
    keys, queries = key_positions[:, None, :], query_positions[:, :, None]
    seen = (keys <= queries) & (keys >= evicted[:, None, None]) & (keys >= 0)
    return seen if span is None else seen & (keys > queries - span)


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    mask: Tensor | None,
    softcap: float | None = None,
) -> Tensor:
    """Exact attention of q [B, H, T, D] over k, v [B, Hkv, N, D]; returns [B, H, T, D]. With ``softcap`` c
    scores are c tanh(score / c).

    ``mask`` is additive, in q's type, [1 or B, 1, G * T, N] with G = H / Hkv (a group's queries beside each
    other, so that keys and values are never repeated), or None when every query sees every key.
    """
    batch, heads, length, dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * length, dim)
    if length == 1 or softcap is not None:
        # Two matrix products beat the fused kernel at one query on CPU; and it knows no caps.
        scores = torch.matmul(grouped, k.transpose(-1, -2)) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores = scores + mask
        out = torch.matmul(torch.softmax(wide(scores), dim=-1).to(v.dtype), v)
    else:
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, length, dim)


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Queries ``start`` to ``stop`` of a forward, which see at most keys ``first`` to ``keys``; ``mask`` as
    for ``local_attention``, for these alone."""

    start: int
    stop: int
    keys: int
    mask: Tensor | None
    first: int = 0


def causal_blocks(
    length: int,
    before: int,
    *,
    group: int,
    block: int,
    dtype: torch.dtype,
    device: torch.device,
    span: int | None = None,
) -> tuple[QueryBlock, ...]:
    """``length`` new queries after ``before`` keys that all of them see, ``block`` at a time, with masks in
    ``dtype``: no block looks at keys later than its last query. With ``span`` each query sees only the last
    ``span`` keys, its own included."""
    blocks = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        keys, count = before + stop, stop - start
        first = 0 if span is None else max(0, before + start + 1 - span)
        mask = None
        if count > 1:
            hidden = torch.full((count, keys - first), torch.finfo(dtype).min, dtype=dtype, device=device)
            late = before + start + 1 - first
            mask = hidden.triu_(late) if span is None else hidden.triu(late) + hidden.tril(late - 1 - span)
            mask = mask.repeat(group, 1)[None, None]
        blocks.append(QueryBlock(start, stop, keys, mask, first))
    return tuple(blocks)


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    blocks: Sequence[QueryBlock],
    softcap: float | None = None,
) -> Tensor:
    """``local_attention`` of q [B, H, T, D], each block of queries over the keys that it may see."""
    parts = [
        local_attention(
            q[:, :, b.start : b.stop],
            k[:, :, b.first : b.keys],
            v[:, :, b.first : b.keys],
            scale=scale,
            mask=b.mask,
            softcap=softcap,
        )
        for b in blocks
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
