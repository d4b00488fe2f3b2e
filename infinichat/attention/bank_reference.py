"""The definition of the bank memory, one token at a time: what ``bank.py`` and its layer are tested against.

As ``reference.py``, whose units and delta rule it uses: one conversation without padding, any
floating type, nothing shared with the fast path. A written token is a ``Pair`` in a plain list; the list is
the bank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinichat.attention.reference import recall_features, store, unit


@dataclass(frozen=True, slots=True)
class BankParameters:
    """The parameters of a bank memory under the names that the model gives them; shapes as there."""

    context: Tensor
    fade: Tensor
    head_weight: Tensor
    beta: Tensor
    null: Tensor
    recency: Tensor
    erase: Tensor
    gate_taps: Tensor
    gate_bias: Tensor
    matrix_gain: Tensor
    softness: Tensor
    out: Tensor
    alpha: Tensor
    confidence: Tensor
    found_bias: Tensor
    read_gate: Tensor
    read_confidence: Tensor
    read_bias: Tensor
    adapt_in: Tensor
    adapt_in_bias: Tensor
    adapt_out: Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """One written token: its unit key [K], its mark [F], its value [C], how far it has faded, the number of
    its write."""

    key: Tensor
    mark: Tensor
    value: Tensor
    faded: Tensor
    order: int


@dataclass(frozen=True, slots=True)
class Banked:
    """What the memory ``added`` to the residual [T, C], the pairs in the bank and M per head at the end."""

    added: Tensor
    bank: list[Pair]
    M: list[Tensor]


def bank_layer(x: Tensor, values: Tensor, p: BankParameters, *, order: int, slots: int) -> Banked:
    """x [T, C] are the layer's normed inputs, values [T, H, D] of ``reference.token_values``; ``order`` is
    DPFP's, ``slots`` the size of the bank. Each token first reads, then is written."""
    length, heads, _ = values.shape
    words = values.flatten(1)
    weights = p.head_weight.softmax(dim=0)

    def back(rows: Tensor, t: int, j: int) -> Tensor:
        return rows[t - j] if t >= j else torch.zeros_like(rows[0])

    def projection(t: int, by: Tensor = p.context) -> Tensor:
        seen = [back(x, t, j) for j in range(4)] + [back(words, t, j) for j in range(6)]
        return by @ torch.cat(seen) if t >= 0 else torch.zeros_like(by[:, 0])

    def key(t: int) -> Tensor:
        parts = projection(t).chunk(heads)
        return torch.cat([unit(part) * weights[h].sqrt() for h, part in enumerate(parts)])

    def strength(t: int) -> Tensor:
        logit = sum((tap @ back(x, t, j) for j, tap in enumerate(p.gate_taps)), p.gate_bias)
        return 2 * (torch.sigmoid(logit) - 0.5).clamp(min=0)

    bank: list[Pair] = []
    M = [x.new_zeros(len(recall_features(projection(0), 0, heads, order)), values.shape[2])] * heads
    written, rows = 0, []
    for t in range(length):
        features = [recall_features(projection(t), h, heads, order) for h in range(heads)]
        blurred = [features[h] @ M[h] for h in range(heads)]
        nothing = torch.zeros_like(x[0])
        rows.append(_addition(x[t], key(t), blurred, bank, written, p) if written else nothing)
        b = strength(t)
        if b > 0:
            written += 1
            mark = unit(projection(t - 1, p.fade))
            bank = _written(bank, Pair(key(t - 1), mark, words[t], b.new_zeros(()), written), p)
            bank = _readiest(bank, written, p, slots)
            features = [recall_features(projection(t - 1), h, heads, order) for h in range(heads)]
            M = [store(M[h], features[h], values[t, h], b) for h in range(heads)]
    return Banked(torch.stack(rows), bank, M)


def _written(bank: list[Pair], new: Pair, p: BankParameters) -> list[Pair]:
    """A token takes from every earlier pair by how much of an answer it would have been in the token's
    place."""
    alike, nothing, force = p.erase[0].exp(), p.erase[1], p.erase[2].exp()
    answers = [(alike * (old.mark @ new.mark) + old.faded).exp() for old in bank]
    whole = sum(answers, (alike * nothing).exp())
    faded = [replace(old, faded=old.faded - force * a / whole) for old, a in zip(bank, answers, strict=True)]
    return [*faded, new]


def _readiness(pair: Pair, written: int, p: BankParameters) -> Tensor:
    return pair.faded - p.recency.clamp(min=0) * math.log(1 + written - pair.order)


def _readiest(bank: list[Pair], written: int, p: BankParameters, slots: int) -> list[Pair]:
    """The ``slots`` pairs that would be read most readily, oldest first."""
    best = sorted(bank, key=lambda pair: -_readiness(pair, written, p).item())[:slots]
    return sorted(best, key=lambda pair: pair.order)


def _addition(
    x: Tensor, query: Tensor, blurred: list[Tensor], bank: list[Pair], written: int, p: BankParameters
) -> Tensor:
    """g (alpha W_om (v + n mu m) + (1 - n) w + u + B silu(A [x, 1 - n] + a)) for one token."""
    beta = p.beta.exp()
    scores = [beta * (query @ pair.key) + _readiness(pair, written, p) for pair in bank]
    weights = torch.stack([*scores, beta * p.null]).softmax(dim=0)
    n = weights[-1]
    v = sum((w * pair.value for w, pair in zip(weights, bank, strict=False)), torch.zeros_like(x))
    full = math.sqrt(len(blurred[0]))
    pieces = zip(blurred, p.softness, strict=True)
    m = torch.cat([full * r / (r.square().sum() + soft.square()).sqrt() for r, soft in pieces])
    g = torch.sigmoid(p.read_gate @ x + p.read_confidence * (1 - n) + p.read_bias)
    inner = p.adapt_in @ torch.cat((x, (1 - n)[None])) + p.adapt_in_bias
    adapted = p.adapt_out @ (inner * torch.sigmoid(inner))
    read = p.alpha * (p.out @ (v + n * p.matrix_gain * m))
    return g * (read + (1 - n) * p.confidence + p.found_bias + adapted)
