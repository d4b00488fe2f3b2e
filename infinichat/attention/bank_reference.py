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

LEAST_SHARE = 0.05
"""A value is followed from this share of the last read on."""

HEIR_SHARE, HEIR_NEAR, HEIR_MARGIN = 0.45, 0.5, 8.0
"""A token that replaces something by more than this inherits reads from what has more than this part of the
largest share, if it does not answer so many nats worse."""

KIN = 2.0
"""A token replaces only what a question in its own words would miss by no more nats than this."""

NEARLY, ON = 5.0, 4.0
"""By how much a token's write gate may be too low when the next one's is open, and when the token before is
written."""

LEAST_OPEN = 0.05
"""Below this, what a read carries on is shut."""


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
    novelty: Tensor
    gate_taps: Tensor
    gate_bias: Tensor
    gate_in: Tensor
    gate_in_bias: Tensor
    gate_out: Tensor
    matrix_gain: Tensor
    softness: Tensor
    out: Tensor
    alpha: Tensor
    confidence: Tensor
    ending: Tensor
    found_bias: Tensor
    read_gate: Tensor
    read_confidence: Tensor
    read_bias: Tensor
    adapt_in: Tensor
    adapt_in_bias: Tensor
    adapt_out: Tensor
    carry: Tensor
    carry_bias: Tensor
    say_final: Tensor
    say_out: Tensor
    say: Tensor
    topics: TopicParameters | None = None


@dataclass(frozen=True, slots=True)
class TopicParameters:
    """The parameters of the topic heads under the names that the model gives them."""

    by_state: Tensor
    by_token: Tensor
    bias: Tensor
    fading: Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """One written token: its unit key [K], its mark [F], its value [C], its id, how far it has faded, the
    number of its write, whether the token right before was written, too, its weight in the last read, and the
    number of the write that has replaced it, 0 for none."""

    key: Tensor
    mark: Tensor
    value: Tensor
    id: int
    faded: Tensor
    order: int
    joined: bool
    weight: Tensor
    heir: int = 0


@dataclass(frozen=True, slots=True)
class Banked:
    """What the memory ``added`` to the residual [T, C] and carries on: how far adapters are ``opened`` [T],
    the logits of saying the ``values`` [T, C], ``wish`` [T]; the pairs in the bank and M per head at the
    end."""

    added: Tensor
    opened: Tensor
    values: Tensor
    wish: Tensor
    bank: list[Pair]
    M: list[Tensor]


def bank_layer(
    x: Tensor, values: Tensor, ids: list[int], p: BankParameters, *, order: int, slots: int
) -> Banked:
    """x [T, C] are the layer's normed inputs, values [T, H, D] of ``reference.token_values`` for the tokens
    ``ids``; ``order`` is DPFP's, ``slots`` the size of the bank. Each token first reads; then the one before
    it is written."""
    length, heads, _ = values.shape
    words = values.flatten(1)
    weights = p.head_weight.softmax(dim=0)

    def back(rows: Tensor, t: int, j: int) -> Tensor:
        return rows[t - j] if t >= j else torch.zeros_like(rows[0])

    def projection(t: int, by: Tensor = p.context) -> Tensor:
        seen = [back(x, t, j) for j in range(4)] + [back(words, t, j) for j in range(6)]
        if p.topics is not None and by is p.context and t >= 0:
            seen += _topics(x, words, t, p.topics)
        return by @ torch.cat(seen) if t >= 0 else torch.zeros_like(by[:, 0])

    def key(t: int) -> Tensor:
        parts = projection(t).chunk(heads)
        return torch.cat([unit(part) * weights[h].sqrt() for h, part in enumerate(parts)])

    def gate(t: int) -> Tensor:
        seen = torch.cat([back(x, t, j) for j in range(len(p.gate_taps))])
        inner = p.gate_in @ seen + p.gate_in_bias
        return p.gate_taps.flatten() @ seen + p.gate_bias + p.gate_out @ (inner * torch.sigmoid(inner))

    def strength(s: int) -> Tensor:
        """Of token s, when the one after it has been read."""
        logit = torch.maximum(gate(s), torch.minimum(gate(s) + NEARLY, gate(s + 1)))
        if last and logit <= 0:
            logit = gate(s) + ON
        return 2 * (torch.sigmoid(logit) - 0.5).clamp(min=0)

    bank: list[Pair] = []
    M = [x.new_zeros(len(recall_features(projection(0), 0, heads, order)), values.shape[2])] * heads
    written, rows, last = 0, [], False
    for t in range(length):
        features = [recall_features(projection(t), h, heads, order) for h in range(heads)]
        blurred = [features[h] @ M[h] for h in range(heads)]
        nothing = torch.zeros_like(x[0])
        if written:
            read, *said = _weights(key(t), ids[t], bank, written, p)
            bank = [replace(pair, weight=w) for pair, w in zip(bank, read, strict=False)]
            rows.append(_addition(x[t], read, said, blurred, bank, p))
        else:
            rows.append((nothing, nothing[0], nothing, nothing[0]))
        s = t - 1
        b = strength(s) if t else x.new_zeros(())
        if b > 0:
            written += 1
            mark, zero = unit(projection(s - 1, p.fade)), b.new_zeros(())
            novelty = projection(s - 1, p.novelty[None])[0]
            doubt = 0.5 * (torch.logit((1 + b) / 2, eps=1e-6) - 6).clamp(max=0)
            if last and bank and bank[-1].order == written - 1:
                doubt = torch.maximum(doubt, bank[-1].faded)
            pair = Pair(key(s - 1), mark, words[s], ids[s], doubt, written, last, zero)
            bank = _written(bank, pair, novelty, p)
            bank = _readiest(bank, written, p, slots)
            features = [recall_features(projection(s - 1), h, heads, order) for h in range(heads)]
            M = [store(M[h], features[h], values[s, h], b) for h in range(heads)]
        last = bool(b > 0)
    added, opened, found, wish = (torch.stack(column) for column in zip(*rows, strict=True))
    return Banked(added, opened, found, wish, bank, M)


def _topics(x: Tensor, words: Tensor, t: int, p: TopicParameters) -> list[Tensor]:
    """For each head the mean of the last 32 words up to token t by how much they stand out, and beside them
    a 1 for nothing that does."""
    found = []
    for head in range(len(p.bias)):
        weight, whole = torch.ones_like(p.bias[0]), torch.zeros_like(words[0])
        for s in range(max(0, t - 31), t + 1):
            before = x[s - 1] if s else torch.zeros_like(x[0])
            score = p.by_state[head] @ torch.cat((x[s], before)) + p.by_token[head] @ words[s] + p.bias[head]
            share = (score.clamp(max=12.0) + p.fading[head, t - s]).exp()
            weight, whole = weight + share, whole + share * words[s]
        found.append(whole / weight)
    return found


def cut(logit: Tensor) -> Tensor:
    """sigmoid, and exactly 0 where that is below 0.05; its gradient is the sigmoid's everywhere."""
    gate = torch.sigmoid(logit)
    return gate if gate >= LEAST_OPEN else gate - gate.detach()


def wide_open(logit: Tensor) -> Tensor:
    """Twice the sigmoid, at most 1, and exactly 0 where the sigmoid is below 0.05; its gradient is the
    sigmoid's everywhere."""
    gate = torch.sigmoid(logit)
    opened = min(1.0, 2 * gate.item()) if gate >= LEAST_OPEN else 0.0
    return gate + (opened - gate).detach()


def _written(bank: list[Pair], new: Pair, novelty: Tensor, p: BankParameters) -> list[Pair]:
    """A token takes from every earlier pair that is asked for alike by how much of an answer it would have
    been in the token's place; of those that it replaces, and of what those had replaced, it is the heir."""
    alike, nothing, force = p.erase[0].exp(), p.erase[1] + novelty, p.erase[2].exp()
    kin = [p.beta.exp() * (old.key @ new.key - p.null) > -KIN for old in bank]
    answers = [
        (alike * (old.mark @ new.mark) + old.faded).exp() * k for old, k in zip(bank, kin, strict=True)
    ]
    whole = sum(answers, (alike * nothing).exp())
    faded = [replace(old, faded=old.faded - force * a / whole) for old, a in zip(bank, answers, strict=True)]
    gone: set[int] = set()
    if sum(answers) / whole > HEIR_SHARE:
        gone = {old.order for old, a in zip(bank, answers, strict=True) if a > HEIR_NEAR * max(answers)}
    heirs = [replace(old, heir=new.order) if old.order in gone or old.heir in gone else old for old in faded]
    return [*heirs, new]


def _readiness(pair: Pair, written: int, p: BankParameters) -> Tensor:
    return pair.faded - p.recency.clamp(min=0) * math.log(1 + written - pair.order)


def _readiest(bank: list[Pair], written: int, p: BankParameters, slots: int) -> list[Pair]:
    """The ``slots`` pairs that would be read most readily, oldest first."""
    best = sorted(bank, key=lambda pair: -_readiness(pair, written, p).item())[:slots]
    return sorted(best, key=lambda pair: pair.order)


def _weights(
    query: Tensor, token: int, bank: list[Pair], written: int, p: BankParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of all pairs and of the null slot, with values followed to their end, and the shares of
    those that go on and of those that have ended. ``token`` is the one that reads."""
    beta = p.beta.exp()
    answers = [beta * (query @ pair.key) for pair in bank]
    scores = [answer + _readiness(pair, written, p) for answer, pair in zip(answers, bank, strict=True)]
    weights = torch.stack([*scores, beta * p.null]).softmax(dim=0)
    places = {pair.order: place for place, pair in enumerate(bank)}
    given = list(weights)
    for place, pair in enumerate(bank):
        heir = places.get(pair.heir)
        if heir is not None and answers[place] - answers[heir] < HEIR_MARGIN:
            given[heir], given[place] = given[heir] + weights[place], given[place] - weights[place]
    weights = torch.stack(given)
    said = {pair.order: pair.weight for pair in bank if pair.id == token}
    share = sum(said.values(), torch.zeros_like(weights[0]))
    if share <= LEAST_SHARE:
        return weights, torch.zeros_like(share), torch.zeros_like(share)
    on = [said.get(pair.order - 1, share * 0) if pair.joined else share * 0 for pair in bank]
    going = sum(on, share * 0)
    ended = share - going
    return (1 - share) * weights + torch.stack([*on, ended]), going, ended


def _addition(
    x: Tensor, weights: Tensor, said: list[Tensor], blurred: list[Tensor], bank: list[Pair], p: BankParameters
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o g (alpha W_om (v + n mu m) + (1 - n) w + e w' + u + B z), z = silu(A [x, 1 - n, e] + a), for one
    token; o, by how much the adapters above are open; o P v and the logit of saying it."""
    n, (going, ended) = weights[-1], said
    v = sum((w * pair.value for w, pair in zip(weights, bank, strict=False)), torch.zeros_like(x))
    full = math.sqrt(len(blurred[0]))
    pieces = zip(blurred, p.softness, strict=True)
    m = torch.cat([full * r / (r.square().sum() + soft.square()).sqrt() for r, soft in pieces])
    seen = torch.stack((1 - n, ended))
    g = torch.sigmoid(p.read_gate @ x + p.read_confidence @ seen + p.read_bias)
    inner = p.adapt_in @ torch.cat((x, seen)) + p.adapt_in_bias
    z = inner * torch.sigmoid(inner)
    v = v + n * p.matrix_gain * m
    read = p.alpha * (p.out @ v) + p.adapt_out @ z
    added = g * (read + (1 - n) * p.confidence + ended * p.ending + p.found_bias)
    opening, wish = p.carry @ torch.cat((x, seen, z)) + p.carry_bias
    opened = torch.maximum(wide_open(opening), going)
    return opened * added, opened, opened * (p.say_out @ v), wish
