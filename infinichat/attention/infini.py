"""Window and memory together: the paper's mixing gate, and the recall memory's addition to the residual.

    paper    A = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_dot          (arXiv 2404.07143, eq. 10)
    recall   h <- h + g (alpha W_om r + W_c n + u)

An empty memory changes nothing at all: rows without a written token get A_dot, or h, bit for bit. The recall
memory's projections live here as functions of plain tensors; the parameters are the model's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.memory import MemoryState, dpfp, elu1, read, read_normalised, unit, wide

KEY_GAIN = 8.0
"""Norm that a projected key or query has before its feature map. DPFP is homogeneous, so after ``unit`` this
only keeps float32 away from tiny products."""


def mix(A_dot: Tensor, A_mem: Tensor, beta: Tensor, written: Tensor) -> Tensor:
    """Eq. 10 per head: A_dot, A_mem [B, H, T, D], beta [H]. Rows with ``written`` [B] = 0 return A_dot
    itself, bit for bit."""
    gate = torch.sigmoid(wide(beta))[None, :, None, None]
    mixed = (gate * wide(A_mem) + (1 - gate) * wide(A_dot)).to(A_dot.dtype)
    return torch.where((written > 0)[:, None, None, None], mixed, A_dot)


def paper_attention(A_dot: Tensor, q: Tensor, beta: Tensor, state: MemoryState) -> Tensor:
    """Local attention and memory of the paper for queries q [B, H, T, D] that carry no position."""
    return mix(A_dot, read_normalised(elu1(wide(q)), state), beta, state.written)


def taps(x: Tensor, tail: Tensor, first: int, count: int) -> Tensor:
    """x_{t-first} .. x_{t-first-count+1} beside each other, for each t of x [B, T, C]: [B, T, count * C].

    ``tail`` [B, N, C] holds the N >= first + count - 1 states before x, zeros where there was nothing.
    """
    joined = torch.cat((tail, x), dim=1)
    before, length = tail.shape[1], x.shape[1]
    starts = range(before - first, before - first - count, -1)
    return torch.cat([joined[:, start : start + length] for start in starts], dim=-1)


def ending(tail: Tensor, x: Tensor) -> Tensor:
    """The tail after x [B, T, C], of the same length as ``tail``; never a view that keeps a long x alive."""
    count = tail.shape[1]
    return x[:, -count:].clone() if x.shape[1] >= count else torch.cat((tail, x), dim=1)[:, -count:]


def ragged_taps(x: Tensor, tail: Tensor, real: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """``taps`` for rows with padding: x_{t-j} is the j-th token before t among the row's own, wherever
    padding stands. ``real`` [B, T] is True at tokens. Returns the taps (at padding: anything finite) and the
    next tail."""
    joined = torch.cat((tail, x), dim=1)
    order, rank, ends = packing(real, tail.shape[1])
    packed = picked(joined, order)
    around = [picked(packed, (rank - j).clamp(min=0)) for j in range(first, first + count)]
    ending = picked(packed, ends + torch.arange(-tail.shape[1], 0, device=x.device))
    return torch.cat(around, dim=-1), ending


def packing(real: Tensor, before: int) -> tuple[Tensor, Tensor, Tensor]:
    """How rows of ``before`` earlier tokens and T that are ``real`` [B, T] or padding are put in order: the
    places [B, before + T] of each row's tokens, then of its padding; the new place [B, T] of each of the T;
    how many tokens a row has [B, 1]."""
    kept = torch.cat((torch.ones_like(real[:, :1]).expand(-1, before), real), dim=1)
    order = torch.argsort(kept.to(torch.int8), dim=1, descending=True, stable=True)
    return order, kept.cumsum(dim=1)[:, before:] - 1, kept.sum(dim=1, keepdim=True)


def picked(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, N, C] at index [B, n]: [B, n, C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def recall_features(projected: Tensor, *, heads: int, order: int) -> Tensor:
    """Keys or queries [B, T, H * D] as unit DPFP features [B, H, T, 2 * D * order], float32 or wider."""
    batch, length, width = projected.shape
    split = wide(projected).view(batch, length, heads, width // heads).transpose(1, 2)
    return unit(dpfp(unit(split) * KEY_GAIN, order))


def hard_gate(logits: Tensor) -> Tensor:
    """b = 2 relu(sigmoid(x) - 1/2): exactly zero for x <= 0. A gate that only comes near zero writes a little
    of everything, and a million tokens of a little erase what was told (0 % recall at a leak of 0.0013)."""
    return 2 * F.relu(torch.sigmoid(wide(logits)) - 0.5)


@dataclass(frozen=True, slots=True)
class RecallRead:
    """What a recall memory gives back: ``values`` [B, T, H * D] with heads of norm up to ``scale``, and
    ``confidence`` [B, T, H] in 0..1: how much of a stored value's norm came back, near 0 for unknown keys."""

    values: Tensor
    confidence: Tensor


def recall_read(features: Tensor, state: MemoryState, *, softness: Tensor) -> RecallRead:
    """Read for features [B, H, T, F]. Stored values have norm sqrt(D) a head. A read r becomes
    sqrt(D) r / sqrt(|r|^2 + c^2), with c = ``softness`` [H] > 0, so that a clear read has full strength and a
    faint one stays faint."""
    r = read(features, state)
    scale = r.shape[-1] ** 0.5
    norm_squared = r.square().sum(dim=-1, keepdim=True)
    values = scale * r * torch.rsqrt(norm_squared + wide(softness)[None, :, None, None].square())
    confidence = (norm_squared.clamp(min=1e-12).sqrt() / scale).clamp(max=1.0)
    batch, heads, length, dim = r.shape
    return RecallRead(
        values.transpose(1, 2).reshape(batch, length, heads * dim),
        confidence.squeeze(-1).transpose(1, 2),
    )
