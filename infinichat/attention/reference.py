"""The definition: Infini-attention one token and one head at a time, to be read beside the paper.

Nothing here is fast and nothing is shared with the fast paths, which are tested against it in values and
gradients. One conversation without padding, tensors of any floating type (float64 in tests), no state hidden
anywhere. For each token p, in this order:

    1. if the window holds W tokens, its oldest S leave it, and are written to the memory (the first few of
       the conversation, the attention sinks, are not written);
    2. the token joins the window, and its query attends to the sinks, if they have left, and the window;
    3. the query reads the memory, which holds what left before p, and the two are combined.

With W = S this is arXiv 2404.07143 (v2): hard segments, retrieval before the segment's own update. Letters
are the paper's: sigma, M, z, beta, A_mem, A_dot; T tokens, H query heads, Hkv key-value heads, D values a
head, C hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FLOOR = 1e-6
"""Smallest denominator and norm: reads of an empty memory give 0 and not 0 / 0."""


@dataclass(frozen=True, slots=True)
class Window:
    """How many tokens are attended exactly (``tokens``, W), how many leave at once (``segment``, S <= W), and
    how many first tokens stay attended for ever (``sinks`` <= S)."""

    tokens: int
    segment: int
    sinks: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """Before token ``position`` the tokens ``leaving`` leave the window, which then starts at ``first``."""

    position: int
    leaving: range
    first: int


def steps(length: int, window: Window) -> Iterator[Step]:
    """What happens at each of ``length`` tokens. ``Step.first`` is what ``window.py`` calls E(p)."""
    first = 0
    for position in range(length):
        leaving = range(first, first)
        if position - first == window.tokens:
            leaving = range(first, first + window.segment)
            first = leaving.stop
        yield Step(position, leaving, first)


# ---- exact attention


def rotated(x: Tensor, position: int, theta: float) -> Tensor:
    """RoPE of one vector x [D]: its pair (x_i, x_{i + D/2}) is turned by position * theta^(-2i/D)."""
    half = x.shape[-1] // 2
    angles = [position * theta ** (-2 * i / (2 * half)) for i in range(half)]
    cos = torch.tensor([math.cos(a) for a in angles], dtype=x.dtype)
    sin = torch.tensor([math.sin(a) for a in angles], dtype=x.dtype)
    left, right = x[:half], x[half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin))


def attend_locally(q: Tensor, k: Tensor, v: Tensor, step: Step, window: Window, theta: float) -> Tensor:
    """A_dot [D] of one head at ``step``: q [D] is the token's query, k, v [T, D] all keys and values, none
    rotated. Sinks that have left stand right before the window, at E - sinks .. E - 1."""
    seen = [(step.first - window.sinks + i, i) for i in range(window.sinks)] if step.first > 0 else []
    seen += [(position, position) for position in range(step.first, step.position + 1)]
    query = rotated(q, step.position, theta)
    scores = torch.stack([query @ rotated(k[token], at, theta) for at, token in seen]) / math.sqrt(len(q))
    weights = (scores - scores.max()).exp()
    weights = weights / weights.sum()
    return sum((weight * v[token] for weight, (_, token) in zip(weights, seen, strict=True)), 0 * v[0])


# ---- the paper's memory (arXiv 2404.07143)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's ``output`` [H, T, D] and the memory after the last token: M and z per key-value head."""

    output: Tensor
    M: list[Tensor]
    z: list[Tensor]


def sigma(x: Tensor) -> Tensor:
    """ELU(x) + 1."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def retrieve(q: Tensor, M: Tensor, z: Tensor) -> Tensor:
    """Eq. 7: A_mem = sigma(q) M / (sigma(q) z), for one query q [D]."""
    return (sigma(q) @ M) / (sigma(q) @ z).clamp(min=FLOOR)


def update(
    M: Tensor, z: Tensor, keys: list[Tensor], values: list[Tensor], rule: Literal["linear", "delta"]
) -> tuple[Tensor, Tensor]:
    """Eq. 8 (linear) or 9 (delta) for one segment; every retrieval sees the memory from before it."""
    new_M, new_z = M, z
    for k, v in zip(keys, values, strict=True):
        stored = v if rule == "linear" else v - retrieve(k, M, z)
        new_M = new_M + torch.outer(sigma(k), stored)
        new_z = new_z + sigma(k)
    return new_M, new_z


def paper_layer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    window: Window,
    rule: Literal["linear", "delta"],
    theta: float = 10000.0,
) -> Layer:
    """A whole layer: q [H, T, D], k, v [Hkv, T, D] without position, beta [H]. Query head h uses the keys,
    values and memory of key-value head h // (H / Hkv)."""
    heads, length, dim = q.shape
    kv_heads = k.shape[0]
    M, z = [k.new_zeros(dim, dim) for _ in range(kv_heads)], [k.new_zeros(dim) for _ in range(kv_heads)]
    empty = True
    rows: list[Tensor] = []
    for step in steps(length, window):
        written = [t for t in step.leaving if t >= window.sinks]
        empty = empty and not written
        for g in range(kv_heads):
            M[g], z[g] = update(M[g], z[g], [k[g, t] for t in written], [v[g, t] for t in written], rule)
        row = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            A_dot = attend_locally(q[h, step.position], k[g], v[g], step, window, theta)
            A_mem = retrieve(q[h, step.position], M[g], z[g])
            gate = torch.sigmoid(beta[h])
            row.append(A_dot if empty else gate * A_mem + (1 - gate) * A_dot)  # eq. 10
        rows.append(torch.stack(row))
    return Layer(torch.stack(rows, dim=1), M, z)


# ---- the recall memory


@dataclass(frozen=True, slots=True)
class RecallParameters:
    """The parameters of a recall memory with H heads of key width Dk, under the names that the model gives
    them: k_taps, q_taps [H * Dk, 4 * C], gate_taps [n, C], out [C, C], softness and read_confidence [H],
    confidence [C, H], found_bias and read_gate [C]; gate_bias, alpha and read_bias are scalars."""

    k_taps: Tensor
    q_taps: Tensor
    gate_taps: Tensor
    gate_bias: Tensor
    out: Tensor
    alpha: Tensor
    softness: Tensor
    confidence: Tensor
    found_bias: Tensor
    read_gate: Tensor
    read_confidence: Tensor
    read_bias: Tensor


@dataclass(frozen=True, slots=True)
class Recall:
    """What a recall memory ``added`` to the residual [T, C], the write strengths b [T] of all tokens, and M
    per head after the last token."""

    added: Tensor
    strengths: Tensor
    M: list[Tensor]


def dpfp(x: Tensor, order: int) -> Tensor:
    """arXiv 2102.11174, sec. 5.3, for x [D]: with r = relu([x, -x]), all products r_i r_{i - s} (indices
    round the end), s = 1..order: [2 * D * order]."""
    r = torch.cat((x, -x)).clamp(min=0)
    return torch.stack([r[i] * r[i - s] for s in range(1, order + 1) for i in range(len(r))])


def unit(x: Tensor) -> Tensor:
    """x over its length; a zero vector stays zero."""
    return x / x.square().sum().sqrt().clamp(min=FLOOR) if bool((x != 0).any()) else x


def recall_features(projected: Tensor, head: int, heads: int, order: int) -> Tensor:
    """The unit key or query of one head from a projection [H * Dk]."""
    width = len(projected) // heads
    return unit(dpfp(unit(projected[head * width : (head + 1) * width]), order))


def token_values(embeddings: Tensor, heads: int) -> Tensor:
    """Token embeddings [T, C] as stored values [T, H, D]: each of root mean square 1, cut into heads."""
    rms = (embeddings.square().mean(dim=1, keepdim=True) + FLOOR).sqrt()
    return (embeddings / rms).reshape(len(embeddings), heads, -1)


def store(M: Tensor, key: Tensor, value: Tensor, b: Tensor) -> Tensor:
    """The delta rule for one token: M + b k (v - M^T k)^T."""
    return M + b * torch.outer(key, value - key @ M)


def recall_layer(
    x: Tensor, values: Tensor, parameters: RecallParameters, *, window: Window, order: int
) -> Recall:
    """What the layer adds to the residual of each token: x [T, C] are its normed inputs, values [T, H, D] of
    ``token_values``. Nothing is added while nothing has been written."""
    length, heads, dim = values.shape
    p = parameters

    def back(t: int, j: int) -> Tensor:
        return x[t - j] if t >= j else torch.zeros_like(x[0])

    def key(t: int, head: int) -> Tensor:
        return recall_features(p.k_taps @ torch.cat([back(t, j) for j in (1, 2, 3, 4)]), head, heads, order)

    def query(t: int, head: int) -> Tensor:
        return recall_features(p.q_taps @ torch.cat([back(t, j) for j in (0, 1, 2, 3)]), head, heads, order)

    def strength(t: int) -> Tensor:
        logit = sum((tap @ back(t, j) for j, tap in enumerate(p.gate_taps)), p.gate_bias)
        return 2 * (torch.sigmoid(logit) - 0.5).clamp(min=0)

    strengths = torch.stack([strength(t) for t in range(length)])
    M = [x.new_zeros(len(key(0, 0)), dim) for _ in range(heads)]
    empty = True
    rows: list[Tensor] = []
    for step in steps(length, window):
        for t in step.leaving:
            if t < window.sinks or strengths[t] == 0:
                continue
            empty = False
            M = [store(M[h], key(t, h), values[t, h], strengths[t]) for h in range(heads)]
        if empty:
            rows.append(torch.zeros_like(x[0]))
            continue
        reads = [query(step.position, h) @ M[h] for h in range(heads)]
        rows.append(_addition(x[step.position], reads, p))
    return Recall(torch.stack(rows), strengths, M)


def _addition(x: Tensor, reads: list[Tensor], p: RecallParameters) -> Tensor:
    """g (alpha W_om r + W_c n + u) for one token: r the reads, brought to the length of a stored value where
    they are clear; n how long they were, 0 to 1 a head; g a gate of the token and n."""
    full = math.sqrt(len(reads[0]))  # the length of a stored value: D entries of root mean square 1
    lengths = [r.square().sum().clamp(min=FLOOR**2).sqrt() for r in reads]
    r = torch.cat(
        [
            full * r / (r.square().sum() + softness.square()).sqrt()
            for r, softness in zip(reads, p.softness, strict=True)
        ]
    )
    n = torch.stack([(length / full).clamp(max=1) for length in lengths])
    g = torch.sigmoid(p.read_gate @ x + p.read_confidence @ n + p.read_bias)
    return g * (p.alpha * (p.out @ r) + p.confidence @ n + p.found_bias)
