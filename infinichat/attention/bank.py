"""A bank of exact pairs beside the compressive matrix: a few hundred bindings, kept word for word.

A matrix of fixed size blurs what it holds: its reads are mixtures once a hundred correlated keys are in it.
The bank keeps up to S written tokens as they are, unit key and token, and reads them with a softmax that has
a null slot, so that "nothing matches" is an answer too (after HOLA, arXiv 2607.02303, with another rule for
what leaves):

    p_i ~ exp(beta q.k_i + f_i - rho ln(1 + a_i)),   p_null ~ exp(beta n),   read = sum_i p_i v_i

a_i is how many tokens were written after i. f_i <= 0 is how far it has faded. A token j replaces what would
have been the answer in its place: with its key as the query it takes

    kappa exp(beta' k_j.k_i) / (exp(beta' n') + sum_{i' before j} exp(beta' k_j.k_i'))

from every i before it, which is how a correction wins over what it corrects. When the bank is full, the pair
that would be read least readily leaves; the matrix M still has it. Size and cost are fixed, whatever has
been written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinichat.attention.memory import EPS


@dataclass(frozen=True, slots=True)
class BankState:
    """S slots of each of B conversations: ``keys`` [B, S, K] of unit norm, ``values`` [B, S, C], ``ids``
    [B, S] the tokens they stand for, ``faded`` [B, S] <= 0, and ``order`` [B, S], the number of the write,
    from 1; 0 marks an empty slot. A value: writing returns a new one. Filled slots stand first, oldest first.
    """

    keys: Tensor
    values: Tensor
    ids: Tensor
    faded: Tensor
    order: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of it, in the order of the fields."""
        return self.keys, self.values, self.ids, self.faded, self.order

    def clone(self) -> BankState:
        """A copy that shares nothing, outside the graph."""
        return BankState(*(tensor.detach().clone() for tensor in self.tensors()))

    def detach(self) -> BankState:
        """The same values cut from the graph."""
        return BankState(*(tensor.detach() for tensor in self.tensors()))

    def select_rows(self, rows: Tensor) -> BankState:
        """The batch rows ``rows`` [N], in that order."""
        return BankState(*(tensor.index_select(0, rows) for tensor in self.tensors()))


@dataclass(frozen=True, slots=True)
class BankRule:
    """The trained scalars: ``beta`` (sharpness, > 0), ``null`` (similarity at which nothing is the better
    answer), ``recency`` (rho >= 0); for what a token replaces ``alike`` (beta' > 0), ``new`` (n', the
    similarity at which it replaces nothing) and ``force`` (kappa, nats)."""

    beta: Tensor
    null: Tensor
    recency: Tensor
    alike: Tensor
    new: Tensor
    force: Tensor


@dataclass(frozen=True, slots=True)
class BankRead:
    """``values`` [B, T, C], the mean of the stored values by weight, and ``null`` [B, T], the weight of the
    null slot: 1 where nothing matches."""

    values: Tensor
    null: Tensor


def headwise_unit(projected: Tensor, head_weight: Tensor) -> Tensor:
    """Projections [..., H * D] as unit keys: every head of length 1, then weighted by the root of
    softmax(head_weight [H]), so that the whole has length 1 and q.k is a weighted mean of head cosines."""
    heads = head_weight.shape[0]
    split = projected.view(*projected.shape[:-1], heads, projected.shape[-1] // heads)
    split = split / split.norm(dim=-1, keepdim=True).clamp(min=EPS)
    whole: Tensor = (split * head_weight.softmax(dim=0).sqrt()[:, None]).reshape(projected.shape)
    return whole


def replaced(earlier: Tensor, later: Tensor, before: Tensor, rule: BankRule) -> Tensor:
    """By how much tokens with unit keys ``later`` [..., n, K] fade those with ``earlier`` [..., S, K]: nats
    [..., S, n], 0 where ``before`` [..., S, n] says that the first was not there when the second came."""
    scores = (rule.alike * (earlier @ later.transpose(-1, -2))).masked_fill(~before, float("-inf"))
    nothing = (rule.alike * rule.new).expand(*scores.shape[:-2], 1, scores.shape[-1])
    return rule.force * torch.cat((scores, nothing), dim=-2).softmax(dim=-2)[..., :-1, :]


def bank_read(queries: Tensor, bank: BankState, written: Tensor, rule: BankRule) -> BankRead:
    """Read for unit ``queries`` [B, T, K]; ``written`` [B] are the tokens ever written."""
    age = torch.log1p((written[:, None] - bank.order).to(bank.faded.dtype))
    bias = (bank.faded - rule.recency * age).masked_fill(bank.order == 0, float("-inf"))
    scores = rule.beta * (queries @ bank.keys.transpose(1, 2)) + bias[:, None]
    null = (rule.beta * rule.null).expand(*scores.shape[:2], 1)
    weights = torch.cat((scores, null), dim=-1).softmax(dim=-1)
    return BankRead(weights[..., :-1] @ bank.values, weights[..., -1])


def bank_write(
    bank: BankState,
    new: tuple[Tensor, Tensor, Tensor],
    *,
    chosen: Tensor,
    written: Tensor,
    rule: BankRule,
) -> BankState:
    """Add ``new`` tokens in order: their unit keys [B, n, K], values [B, n, C] and ids [B, n]; those where
    ``chosen`` [B, n] is False are left out. ``written`` [B] counts the tokens written before."""
    order = torch.where(chosen, written[:, None] + chosen.cumsum(dim=1), 0)
    after = written + chosen.sum(dim=1)
    faded = torch.zeros_like(order, dtype=bank.faded.dtype)
    pairs = zip(bank.tensors(), (*new, faded, order), strict=True)
    joined = BankState(*(torch.cat(both, dim=1) for both in pairs))
    there = (joined.order[:, :, None] > 0) & (order[:, None, :] > joined.order[:, :, None])
    loss = replaced(joined.keys, new[0], there, rule) * chosen[:, None, :]  # [B, S + n, n]
    joined = replace(joined, faded=joined.faded - loss.sum(dim=-1))
    return _kept(joined, after, size=bank.ids.shape[1], recency=rule.recency)


def _kept(bank: BankState, written: Tensor, *, size: int, recency: Tensor) -> BankState:
    """The ``size`` filled slots that would be read most readily, oldest first; empty ones last and zeroed."""
    age = torch.log1p((written[:, None] - bank.order).to(bank.faded.dtype))
    worth = (bank.faded - recency * age).masked_fill(bank.order == 0, float("-inf"))
    kept = worth.topk(size, dim=1).indices
    order = bank.order.gather(1, kept)
    last = torch.iinfo(torch.int64).max
    kept = kept.gather(1, order.masked_fill(order == 0, last).argsort(dim=1, stable=True))
    empty = bank.order.gather(1, kept) == 0

    def pick(tensor: Tensor) -> Tensor:
        if tensor.dim() == 2:
            return tensor.gather(1, kept).masked_fill(empty, 0)
        index = kept[..., None].expand(-1, -1, tensor.shape[-1])
        return tensor.gather(1, index).masked_fill(empty[..., None], 0)

    return BankState(*(pick(tensor) for tensor in bank.tensors()))
