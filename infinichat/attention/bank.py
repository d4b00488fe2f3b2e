"""A bank of exact pairs beside the compressive matrix: a few hundred bindings, kept word for word.

A matrix of fixed size blurs what it holds: its reads are mixtures once a hundred correlated keys are in it.
The bank keeps up to S written tokens as they are, unit key and token, and reads them with a softmax that has
a null slot, so that "nothing matches" is an answer too (after HOLA, arXiv 2607.02303, with another rule for
what leaves):

    p_i ~ exp(beta q.k_i + f_i - rho ln(1 + a_i)),   p_null ~ exp(beta n),   read = sum_i p_i v_i

a_i is how many tokens were written after i. f_i <= 0 is how far it has faded; a token that the write gate
was not sure of starts out faded (``doubted``). A token j replaces what would have been the answer in its
place: from every i before it, it takes kappa t_ij with

    t_ij = exp(beta' m_j.m_i + f_i) / (exp(beta' n'_j) + sum_{i' before j} exp(beta' m_j.m_i' + f_i'))

over all i, i' that the same question would find, beta k_i.k_j > beta n - ``KIN``, which is how a correction
wins over what it corrects, however often. The marks m are units of their own: "about the same thing" is wider
than "asked for in the same words". So a mark alone takes one person's street for another's; what is not asked
for alike is not the same fact. n'_j is high for what sounds told for the
first time, low for "actually" and "not any more". Where j replaces something, sum_i t_ij > ``HEIR_SHARE``,
it is the heir of the i with the largest t_ij, of those that come near it (the same thing, told twice), and of
whatever these are the heirs of: the question is often put in the words of the first telling, and what i is
read with goes to j,

    p_j <- p_j + p_i,  p_i <- 0        where beta (q.k_i - q.k_j) < ``HEIR_MARGIN``

unless j answers the question so much worse that it must be about something else. When the bank is full, the
pair that would be read least readily leaves; the matrix M still has it. Size and cost are fixed, whatever has
been written.

A value of several tokens is followed along the order in which it was written. Let r be the weights with
which the token before was read, the null slot's left out, and s_i = 1 where slot i holds the token that came
then (what was read has been said). Then the present token is read with

    p'_j    = (1 - G) p_j + r_i s_i    for j written right after i,     G = sum_i r_i s_i
    p'_null = (1 - G) p_null + e

where e is the part of G at slots right after which nothing was written: there the value has ended, and what
was asked for has been said. Shares G up to ``LEAST_SHARE`` are not followed. Without this every token of a
value is looked for anew, and a name can go on with the end of somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.memory import EPS

HEIR_SHARE, HEIR_NEAR, HEIR_MARGIN = 0.45, 0.5, 8.0
"""How surely a token replaces something before it inherits reads, from what has how much of the largest
share, and by how many nats it may answer worse. Chosen on generated conversations at a beta of 120: with
sharper keys the same difference between them is more nats."""

KIN = 2.0
"""By how many nats a question in the words of one telling may miss the other, and one still replaces the
other. Chosen on generated conversations, where 0 and 5 do as well."""

SURE, DOUBT = 6.0, 0.5
"""The write gate's logit from which on a token is as good as any, and how many nats each unit below it costs.
What is let through of talk that tells nothing is below it more often than what tells something: so a stray is
read less readily, and leaves a full bank first. Chosen on ``evals/stories.json``."""

LEAST_SHARE = 0.05
"""Chance agreement with what was hardly read is not followed; most tokens then cost nothing more."""


NEARLY, ON = 5.0, 4.0
"""By how much the write gate may miss a token that stands right before one that opens it, and one right after
one that is written."""


@dataclass(frozen=True, slots=True)
class BankState:
    """S slots of each of B conversations: ``keys`` [B, S, K] and ``marks`` [B, S, F] of unit norm,
    ``values`` [B, S, C], ``ids`` [B, S] the tokens they stand for, ``faded`` [B, S] <= 0, ``order`` [B,
    S], the number of the write, from 1; 0 marks an empty slot; ``joined`` [B, S], 1 where the token right
    before was written, too; ``route`` [B, S], the weights of the last read; ``heir`` [B, S], the order of
    what has replaced it, 0 for nothing. A value: writing returns a new one. Filled slots stand first, oldest
    first.
    """

    keys: Tensor
    marks: Tensor
    values: Tensor
    ids: Tensor
    faded: Tensor
    order: Tensor
    joined: Tensor
    route: Tensor
    heir: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, in the order of the fields."""
        first = (self.keys, self.marks, self.values, self.ids)
        return *first, self.faded, self.order, self.joined, self.route, self.heir

    def clone(self) -> BankState:
        """A copy that shares nothing, outside the graph."""
        return BankState(*(tensor.detach().clone() for tensor in self.tensors()))

    def detach(self) -> BankState:
        """The same values cut from the graph."""
        return BankState(*(tensor.detach() for tensor in self.tensors()))

    def first(self, count: int) -> BankState:
        """Its first ``count`` slots, as views: all that can be filled after so many writes."""
        return BankState(*(tensor[:, :count] for tensor in self.tensors()))

    def select_rows(self, rows: Tensor) -> BankState:
        """The batch rows ``rows`` [N], in that order."""
        return BankState(*(tensor.index_select(0, rows) for tensor in self.tensors()))


@dataclass(frozen=True, slots=True)
class BankRule:
    """The trained scalars: ``beta`` (sharpness, > 0), ``null`` (similarity at which nothing is the better
    answer), ``recency`` (rho >= 0); for what a token replaces ``alike`` (beta' > 0), ``new`` (n', the
    similarity at which it replaces nothing, before what the token itself says) and ``force`` (kappa,
    nats)."""

    beta: Tensor
    null: Tensor
    recency: Tensor
    alike: Tensor
    new: Tensor
    force: Tensor


@dataclass(frozen=True, slots=True)
class BankRead:
    """``values`` [B, T, C], the mean of the stored values by weight; ``null`` [B, T], the weight of the null
    slot: 1 where nothing matches; ``going`` [B, T], how much of a value is being said and goes on, G - e;
    ``ended`` [B, T], e, how much of the null slot's weight is a value that has been said to its end;
    ``route`` [B, S], the last token's weights."""

    values: Tensor
    null: Tensor
    going: Tensor
    ended: Tensor
    route: Tensor


def with_neighbours(
    alone: Tensor, following: Tensor, there: Tensor, before: Callable[[Tensor], Tensor]
) -> Tensor:
    """The write gate's logits [...] of tokens, ``alone``, when those of the next ones are known. What begins
    something to be written is written if it nearly would have been by itself, and so is what goes on with
    it, "Wednes" as "Wednesdays". ``there`` [...] is False where no token is; ``before`` gives for each token
    what the one before it has."""
    logits = torch.maximum(alone, torch.minimum(alone + NEARLY, following))
    written = (logits > 0) & there
    near = (alone + ON > 0) & there
    while bool((more := near & ~written & (before(written.to(alone.dtype)) > 0)).any()):
        written = written | more
    return torch.where(written & (logits <= 0), alone + ON, logits)


def headwise_unit(projected: Tensor, head_weight: Tensor) -> Tensor:
    """Projections [..., H * D] as unit keys: every head of length 1, then weighted by the root of
    softmax(head_weight [H]), so that the whole has length 1 and q.k is a weighted mean of head cosines."""
    heads = head_weight.shape[0]
    split = projected.view(*projected.shape[:-1], heads, projected.shape[-1] // heads)
    split = split / split.norm(dim=-1, keepdim=True).clamp(min=EPS)
    whole: Tensor = (split * head_weight.softmax(dim=0).sqrt()[:, None]).reshape(projected.shape)
    return whole


def unit(projected: Tensor) -> Tensor:
    """Projections [..., F] with length 1."""
    whole: Tensor = projected / projected.norm(dim=-1, keepdim=True).clamp(min=EPS)
    return whole


def replaced(alike: Tensor, faded: Tensor, there: Tensor, novelty: Tensor, rule: BankRule) -> Tensor:
    """By how much a new token replaces others, shares [..., S]: tokens whose marks have the cosines ``alike``
    [..., S] with its own, that have ``faded`` [..., S] so far, where they were ``there`` [..., S] before it,
    and asked for alike;
    ``novelty`` [...] is how much more than others it sounds told for the first time."""
    scores = (rule.alike * alike + faded).masked_fill(~there, float("-inf"))
    nothing = (rule.alike * (rule.new + novelty))[..., None]
    return torch.cat((scores, nothing), dim=-1).softmax(dim=-1)[..., :-1]


def asked_alike(cosines: Tensor, rule: BankRule) -> Tensor:
    """[...] True where two keys with these ``cosines`` [...] are so near that one question finds both."""
    return rule.beta * (cosines - rule.null) > -KIN


def replaced_for_good(share: Tensor) -> Tensor:
    """[..., S] True where the ``share`` [..., S] of ``replaced`` makes the new token an heir."""
    enough = share.sum(dim=-1, keepdim=True) > HEIR_SHARE
    return enough & (share > HEIR_NEAR * share.amax(dim=-1, keepdim=True))


def bank_read(
    queries: Tensor,
    ids: Tensor,
    bank: BankState,
    written: Tensor,
    rule: BankRule,
    *,
    real: Tensor | None = None,
) -> BankRead:
    """Read for unit ``queries`` [B, T, K] of the tokens ``ids`` [B, T], which come right after those of the
    last call; ``written`` [B] are the tokens ever written, ``real`` [B, T] is False at padding."""
    size = bank.ids.shape[1]
    bank = bank.first(int(written.max()))
    age = torch.log1p((written[:, None] - bank.order).to(bank.faded.dtype))
    bias = (bank.faded - rule.recency * age).masked_fill(bank.order == 0, float("-inf"))
    answers = rule.beta * (queries @ bank.keys.transpose(1, 2))
    null = (rule.beta * rule.null).expand(*answers.shape[:2], 1)
    weights = torch.cat((answers + bias[:, None], null), dim=-1).softmax(dim=-1)
    if bool((bank.heir > 0).any()):
        last = torch.iinfo(torch.int64).max
        order = bank.order.masked_fill(bank.order == 0, last)
        heirs = torch.searchsorted(order, bank.heir.contiguous()).clamp(max=order.shape[1] - 1)
        # An heir may have left the bank.
        weights = inherited(weights, answers, heirs, bank.order.gather(1, heirs) == bank.heir)
    after = bank.joined * (bank.order == bank.order.roll(1, dims=1) + 1)
    after[:, :1] = 0
    weights, going, ended, route = followed(weights, ids, bank.ids, after, bank.route, real=real)
    route = F.pad(route, (0, size - bank.ids.shape[1]))
    return BankRead(weights[..., :-1] @ bank.values, weights[..., -1], going, ended, route)


def inherited(weights: Tensor, answers: Tensor, heirs: Tensor, has: Tensor) -> Tensor:
    """``weights`` [B, T, S + 1] of reads, the null slot last, with those of replaced slots given to their
    ``heirs`` [B, S], places of slots, where a slot ``has`` [B, S] one; ``answers`` [B, T, S] are beta q.k."""
    places = heirs[:, None].expand_as(answers)
    near = (answers - answers.gather(2, places) < HEIR_MARGIN) & has[:, None]
    given = weights[..., :-1] * near
    return torch.cat((weights[..., :-1] - given, weights[..., -1:]), dim=-1).scatter_add(2, places, given)


def followed(
    weights: Tensor,
    ids: Tensor,
    slots: Tensor,
    after: Tensor,
    route: Tensor,
    *,
    real: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``weights`` [B, T, S + 1] of reads, the null slot last, with values followed to their end; the shares
    [B, T] of those that go on and of those that have ended; and the next ``route``. ``ids`` [B, T] are the
    tokens that read, ``slots`` [B, S] those stored; ``after`` [B, S] or [B, T, S] is 1 where a slot continues
    the one before it; ``route`` [B, S] are the weights of the token before. At padding (``real`` [B, T]
    False) nothing moves."""
    said = (ids[..., None] == slots[:, None]).to(weights.dtype)
    before = torch.cat((route[:, None], weights[:, :-1, :-1]), dim=1)
    tried = ((before * said).sum(dim=-1) > LEAST_SHARE).any(dim=0)
    ended = torch.zeros_like(weights[..., -1])
    if real is not None:
        tried = torch.ones_like(tried)
    if not bool(tried.any()):
        return weights, ended, ended, weights[:, -1, :-1]
    steps = after[:, None].expand_as(said) if after.dim() == 2 else after
    rows, goes, ends = (list(of.unbind(dim=1)) for of in (weights, ended, ended))
    going = False
    for at, look in enumerate(tried.tolist()):
        if look or going:
            moved = route * said[:, at]
            share = moved.sum(dim=1, keepdim=True)
            enough = share > LEAST_SHARE
            share, moved = share * enough, moved * enough
            on = F.pad(moved[:, :-1], (1, 0)) * steps[:, at]
            goes[at] = on.sum(dim=1)
            ends[at] = share[:, 0] - goes[at]
            rows[at] = (1 - share) * rows[at] + torch.cat((on, ends[at][:, None]), dim=1)
            going = bool(enough.any())
        now = rows[at][:, :-1]
        route = now if real is None else torch.where(real[:, at, None], now, route)
    return torch.stack(rows, dim=1), torch.stack(goes, dim=1), torch.stack(ends, dim=1), route


def doubted(strength: Tensor) -> Tensor:
    """How far tokens written with ``strength`` [...] (of ``infini.hard_gate``) are faded from the beginning:
    [...] <= 0."""
    logits = torch.logit((1 + strength) / 2, eps=1e-6)
    return DOUBT * (logits - SURE).clamp(max=0)


def bank_write(
    bank: BankState,
    new: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    strength: Tensor,
    joined: Tensor,
    novelty: Tensor,
    written: Tensor,
    rule: BankRule,
) -> BankState:
    """Add ``new`` tokens in order: their unit keys [B, n, K] and marks [B, n, F], values [B, n, C] and ids
    [B, n]; those where ``strength`` [B, n] is 0 are left out. ``joined`` [B, n] is True where the token
    right before was written, too: it is doubted no more than that one. ``novelty`` [B, n] as for
    ``replaced``. ``written`` [B] counts the tokens written before."""
    chosen = strength > 0
    order = torch.where(chosen, written[:, None] + chosen.cumsum(dim=1), 0)
    faded = torch.where(chosen, doubted(strength.to(bank.faded.dtype)), 0)
    size, count = bank.ids.shape[1], order.shape[1]
    filled = min(int(written.max()), size)
    unread, joined = torch.zeros_like(faded), joined.to(order.dtype) * chosen
    added = (*new, faded, order, joined, unread, torch.zeros_like(order))
    pairs = zip(bank.first(filled).tensors(), added, strict=True)
    whole = BankState(*(torch.cat(both, dim=1) for both in pairs))
    alike = whole.marks @ new[1].transpose(1, 2)  # [B, filled + n, n]
    kin = asked_alike(whole.keys @ new[0].transpose(1, 2), rule) & (whole.order > 0)[..., None]
    faded, heir = whole.faded, whole.heir
    for at in range(count):
        there = kin[..., at] & (whole.order < order[:, at, None])
        share = replaced(alike[..., at], faded, there, novelty[:, at], rule) * chosen[:, at, None]
        if bool(joined[:, at].any()):
            last = (whole.order > 0) & (whole.order == order[:, at, None] - 1) & (joined[:, at, None] > 0)
            surer = faded.masked_fill(~last, float("-inf")).amax(dim=1, keepdim=True)
            itself = torch.arange(faded.shape[1], device=faded.device) == filled + at
            faded = torch.where(itself, torch.maximum(faded, surer), faded)
        faded = faded - rule.force * share
        gone = replaced_for_good(share)
        if bool(gone.any()):
            # With what it inherited. No order comes near 2^40, so rows do not mix.
            row = torch.arange(len(heir), device=heir.device)[:, None] << 40
            gone = gone | torch.isin(heir + row, (whole.order + row)[gone])
            heir = torch.where(gone, order[:, at, None], heir)
    whole = replace(whole, faded=faded, heir=heir)
    rest = [tensor[:, filled + count :] for tensor in bank.tensors()]
    whole = BankState(*(torch.cat(both, dim=1) for both in zip(whole.tensors(), rest, strict=True)))
    if filled + count <= size and bool((written == filled).all()) and bool(chosen.all()):
        return whole  # nothing has to leave, and the filled slots stand first as they are
    return _kept(whole, written + chosen.sum(dim=1), size=size, recency=rule.recency)


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
        if kept.shape[0] == 1:
            # Whole rows at once: four times as fast as the gather that several conversations need.
            shape = empty.shape if tensor.dim() == 2 else (*empty.shape, 1)
            return tensor.index_select(1, kept[0]).masked_fill(empty.view(shape), 0)
        if tensor.dim() == 2:
            return tensor.gather(1, kept).masked_fill(empty, 0)
        index = kept[..., None].expand(-1, -1, tensor.shape[-1])
        return tensor.gather(1, index).masked_fill(empty[..., None], 0)

    return BankState(*(pick(tensor) for tensor in bank.tensors()))
