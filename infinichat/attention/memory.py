"""The compressive memory: a matrix per head that is written to and read from, and never grows.

Two families share one state. The paper's (arXiv 2404.07143), with sigma = ELU + 1 and K, V a whole segment:

    read    A_mem = sigma(Q) M / (sigma(Q) z)                               (eq. 7, before the update)
    linear  M <- M + sigma(K)^T V                     z <- z + sum sigma(K)  (eq. 8)
    delta   M <- M + sigma(K)^T (V - sigma(K) M / (sigma(K) z)), z as above (eq. 9)

and the per-token delta rule (arXiv 2102.11174) with write strengths b in [0, 1] and unit keys, no z:

    M_t = M_{t-1} + b_t k_t (v_t - M_{t-1}^T k_t)^T

computed for many tokens at once: with A = tril(diag(b) K K^T, -1), U = (I + A)^-1 diag(b) (V - K M) and
M <- M + K^T U give exactly the M of going token by token. Writing the same pair again changes nothing; a new
value for an old key replaces it. M and z are float32 whatever the weights are (float64 under float64 weights,
for tests): bfloat16 sums are 28 % wrong after a million tokens, float16 overflows at 57 thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

UpdateRule = Literal["linear", "delta"]

EPS = 1e-6
"""Floor of denominators and norms; far below any value that a real key gives."""

SOLVE_TOKENS = 128
"""Tokens per triangular solve. 64 to 256 cost the same within 10 % on CPU; larger ones lose accuracy."""


@dataclass(frozen=True, slots=True)
class MemoryState:
    """The memory of one layer: ``M`` [B, H, F, D] and ``z`` [B, H, F] (None for the per-token delta rule),
    and ``written`` [B] int64, the tokens that were really written. A value: updates return a new one."""

    M: Tensor
    z: Tensor | None
    written: Tensor

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        features: int,
        value_dim: int,
        *,
        normalised: bool,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MemoryState:
        """A memory that holds nothing. ``normalised`` says whether there is a z."""
        M = torch.zeros(batch, heads, features, value_dim, dtype=dtype, device=device)
        z = torch.zeros(batch, heads, features, dtype=dtype, device=device) if normalised else None
        return cls(M, z, torch.zeros(batch, dtype=torch.int64, device=device))

    def detach(self) -> MemoryState:
        """The same values cut from the graph: for truncated backpropagation."""
        return MemoryState(self.M.detach(), None if self.z is None else self.z.detach(), self.written)

    def clone(self) -> MemoryState:
        """A copy that shares nothing."""
        return MemoryState(self.M.clone(), None if self.z is None else self.z.clone(), self.written.clone())

    @property
    def nbytes(self) -> int:
        return self.M.nbytes + (0 if self.z is None else self.z.nbytes) + self.written.nbytes


def wide(x: Tensor) -> Tensor:
    """x in float32, or unchanged when it is float64: the precision that memories are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def elu1(x: Tensor) -> Tensor:
    """sigma(x) = ELU(x) + 1, the paper's feature map: positive, same width."""
    return F.elu(x) + 1


def unit(x: Tensor) -> Tensor:
    """x over its L2 norm along the last dimension; a zero vector stays zero."""
    norm: Tensor = x.norm(dim=-1, keepdim=True)
    return x / norm.clamp(min=EPS)


def dpfp(x: Tensor, order: int) -> Tensor:
    """Deterministic parameter-free projection (arXiv 2102.11174, sec. 5.3): [..., D] -> [..., 2 * D * order].

    With r = relu([x, -x]): products of r with itself rolled by 1..order. Sparse and nearly orthogonal, which
    is what lets one head hold hundreds of pairs.
    """
    r = F.relu(torch.cat((x, -x), dim=-1))
    return torch.cat([r * r.roll(shift, dims=-1) for shift in range(1, order + 1)], dim=-1)


def read_normalised(features: Tensor, state: MemoryState) -> Tensor:
    """Eq. 7. features = sigma(Q) [B, H, T, F]; H may be a multiple of the state's heads: query head h reads
    the memory of key-value head h // group (GQA). [B, H, T, D]."""
    if state.z is None:
        raise ValueError("read_normalised needs a memory with z; this one has none (per-token delta rule)")
    batch, heads, length, width = features.shape
    memory_heads = state.M.shape[1]
    # A group's queries beside each other, so that M is never repeated.
    grouped = features.to(state.M.dtype).reshape(batch, memory_heads, heads // memory_heads * length, width)
    out = (grouped @ state.M) / (grouped @ state.z[..., None]).clamp(min=EPS)
    return out.view(batch, heads, length, -1)


def write_normalised(
    state: MemoryState, features: Tensor, values: Tensor, *, rule: UpdateRule, mask: Tensor | None = None
) -> MemoryState:
    """Eq. 8 or 9 for one segment. features = sigma(K) [B, H, S, F], values [B, H, S, D], mask [B, S] True
    where the token is written (padding is not). The retrieval inside the delta rule sees the memory from
    before."""
    if state.z is None:
        raise ValueError("write_normalised needs a memory with z; this one has none (per-token delta rule)")
    features, values = features.to(state.M.dtype), values.to(state.M.dtype)
    if mask is not None:
        features = features * mask[:, None, :, None]
        values = values * mask[:, None, :, None]
    if rule == "delta":
        # A masked token has zero features: its correction is multiplied by zero below.
        values = values - read_normalised(features, state)
    M = state.M + features.transpose(-1, -2) @ values
    z = state.z + features.sum(dim=-2)
    count = features.shape[2] if mask is None else mask.sum(dim=-1)
    return MemoryState(M, z, state.written + count)


def read(features: Tensor, state: MemoryState) -> Tensor:
    """Q M for unit features [B, H, T, F]: for a stored key its value, for an unknown one nearly zero."""
    return features.to(state.M.dtype) @ state.M


def write_delta(state: MemoryState, keys: Tensor, values: Tensor, strength: Tensor) -> MemoryState:
    """The per-token delta rule over T tokens: keys [B, H, T, F] of unit norm, values [B, H, T, D], strength
    [B, T] in [0, 1]. Tokens of strength zero are exact no-ops; gather the others first to save their work."""
    M = state.M
    keys, values, strength = keys.to(M.dtype), values.to(M.dtype), strength.to(M.dtype)
    for start in range(0, keys.shape[2], SOLVE_TOKENS):
        k, v = keys[:, :, start : start + SOLVE_TOKENS], values[:, :, start : start + SOLVE_TOKENS]
        b = strength[:, None, start : start + SOLVE_TOKENS, None]
        A = torch.tril(b * (k @ k.transpose(-1, -2)), diagonal=-1)
        # unitriangular: the solver takes the diagonal as ones and does not look at it.
        U = torch.linalg.solve_triangular(A, b * (v - k @ M), upper=False, unitriangular=True)
        M = M + k.transpose(-1, -2) @ U
    return MemoryState(M, state.z, state.written + (strength > 0).sum(dim=-1))


def gather_written(strength: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [B, n] of the tokens with strength > 0, in order, and their strengths [B, n]; rows with fewer
    are filled up with tokens of strength zero. n is the largest count in the batch (0 is possible)."""
    chosen = strength > 0
    n = int(chosen.sum(dim=-1).max()) if strength.numel() else 0
    order = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)[:, :n]
    return order, torch.gather(strength, 1, order)
