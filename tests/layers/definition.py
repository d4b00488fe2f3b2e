"""Small layers of every kind, and what they have to give: one token and one head at a time.

``defined`` is written on ``infinichat.attention.reference``: retrieval, update and what leaves when are the
reference's, the projections the layer's, and nothing is shared with the layer's own paths. One row, float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from infinichat.attention import reference
from infinichat.layers import CompressiveMemory, RoPEEmbeddings

F64 = torch.float64


def make(**changed: object) -> CompressiveMemory:
    """A small layer in float64; widths of keys and values differ, so that no two axes can be confused."""
    arguments: dict[str, object] = {
        "dim_input": 10,
        "dim_key": 4,
        "dim_value": 6,
        "num_heads": 4,
        "segment_len": 5,
        "causal": True,
    }
    return CompressiveMemory(**{**arguments, **changed}).to(F64)  # type: ignore[arg-type]


VARIANTS = {
    "linear": {},
    "delta": {"update": "delta"},
    "grouped": {"num_kv_heads": 2, "update": "delta"},
    "one key head": {"num_kv_heads": 1},
    "rope": {"position_embedder": "rope"},
    "rope of all": {"position_embedder": RoPEEmbeddings(4, 5, 1.0), "num_kv_heads": 2},
    "sees its segment": {"causal": False},
    "sees its segment, delta": {"causal": False, "update": "delta", "position_embedder": "rope"},
    "streaming window": {"window_len": 8, "update": "delta"},
    "streaming window of segments": {"window_len": 10, "position_embedder": "rope"},
    "learned start": {"init_state_learnable": True, "update": "delta"},
    "segments of one": {"segment_len": 1},
}
variants = pytest.mark.parametrize("changed", VARIANTS.values(), ids=VARIANTS.keys())


@torch.no_grad()
def defined(layer: CompressiveMemory, x: Tensor, at: Sequence[int] | None = None) -> Tensor:
    """What ``layer`` has to give for x [T, C] whose tokens stand at positions ``at`` (None: 0..T-1)."""
    heads, kv_heads = layer.num_heads, layer.num_kv_heads
    q = (x @ layer.proj_q.weight.T).view(len(x), heads, -1)
    k = (x @ layer.proj_k.weight.T).view(len(x), kv_heads, -1)
    v = (x @ layer.proj_v.weight.T).view(len(x), kv_heads, -1)
    at = range(len(x)) if at is None else at
    token = {position: t for t, position in enumerate(at)}
    window = reference.Window(layer.window_len, layer.full_segment_len)
    turned_q = _turned(layer, q, at)
    turned_k = _turned(layer, k, at)
    M, z = _start(layer)
    written = False
    rows = torch.zeros(len(x), heads, layer.dim_value, dtype=x.dtype)
    for step in reference.steps(max(at) + 1, window):
        left = [token[p] for p in step.leaving if p in token]
        written = written or bool(left)
        for g in range(kv_heads):
            keys, values = [k[t, g] for t in left], [v[t, g] for t in left]
            M[g], z[g] = reference.update(M[g], z[g], keys, values, layer.update)
        if step.position not in token:
            continue
        asks = token[step.position]
        last = step.position if layer.causal else step.first + layer.full_segment_len - 1
        seen = [p for p in range(step.first, last + 1) if p in token]
        for h in range(heads):
            g = h // (heads // kv_heads)
            others = [token[p] for p in seen]
            scores = turned_k[others, g] @ turned_q[asks, h] / math.sqrt(layer.dim_key)
            A_dot = scores.softmax(dim=0) @ v[others, g]
            gate = torch.sigmoid(layer.betas[0, h, 0])
            A_mem = reference.retrieve(q[asks, h], M[g], z[g])
            mixed = gate * A_mem + (1 - gate) * A_dot
            rows[asks, h] = mixed if written or layer.init_mem is not None else A_dot
    return rows.flatten(1) @ layer.proj_out.weight.T


def _start(layer: CompressiveMemory) -> tuple[list[Tensor], list[Tensor]]:
    if layer.init_mem is not None and layer.init_z is not None:
        return list(layer.init_mem[0]), list(layer.init_z[0, :, :, 0])
    zeros = torch.zeros(layer.num_kv_heads, layer.dim_key, layer.dim_value, dtype=torch.float64)
    return list(zeros), list(zeros[..., 0])


def _turned(layer: CompressiveMemory, vectors: Tensor, at: Sequence[int]) -> Tensor:
    """RoPE of vectors [T, H, D] by its definition: each pair (2i, 2i+1) as a complex number, turned."""
    embedder = layer.position_embedder
    if embedder is None:
        return vectors
    width = embedder.effective_dim
    pairs = torch.view_as_complex(vectors[..., :width].unflatten(-1, (-1, 2)).contiguous())
    angles = [[(1 + p) * embedder.base ** (-2 * i / width) for i in range(width // 2)] for p in at]
    turned = pairs * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))[:, None]
    return torch.cat((torch.view_as_real(turned).flatten(-2), vectors[..., width:]), dim=-1)
