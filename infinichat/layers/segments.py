"""Infini-attention of projected tokens, segment by segment, from a state to the next state.

The rule is that of ``infinichat.attention.window``: before the token at position p is processed, the E(p)
oldest have left the window for the memory; p attends exactly to E(p)..p (without ``causal``, to its whole
segment) and reads a memory of everything older. E depends on nothing but p, so cutting a sequence into calls
changes nothing, and only a segment that has been left is ever written.

Two ways through the same rule: ``attend_even`` where every row is its newest tokens without gaps (plain
slices), ``attend_ragged`` for padding and for Mixture-of-Depths, where rows have different tokens at
different positions (gathers and masks, one loop for the whole batch). Memory and gate are computed in float32
at least, under autocast too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.memory import (
    MemoryState,
    UpdateRule,
    elu1,
    read_normalised,
    wide,
    write_normalised,
)
from infinichat.attention.window import evicted_before, evicted_before_each
from infinichat.layers.positions import PositionEmbeddings
from infinichat.layers.state import InfiniState

NOWHERE = 1 << 62
"""The position of padding while tokens are sorted: after every real one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one layer attends: ``window`` W and ``segment`` S in positions, ``betas`` [1, H, 1, Dv], and
    whether its memory ``starts_empty`` (no learned initial one): the gate is then skipped until something
    has been written."""

    window: int
    segment: int
    causal: bool
    update: UpdateRule
    betas: Tensor
    embedder: PositionEmbeddings | None
    starts_empty: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of B rows: ``q`` [B, H, n, Dk], ``k`` [B, Hkv, n, Dk], ``v`` [B, Hkv, n, Dv]."""

    q: Tensor
    k: Tensor
    v: Tensor


def spans(columns: int, window: int, segment: int) -> Iterator[tuple[int, int, int]]:
    """E, and the columns ``start`` to ``stop`` of the tokens p with E(p) = E, for columns 0..columns-1."""
    start, stop = 0, window
    while start < columns:
        yield evicted_before(start, window=window, segment=segment), start, min(stop, columns)
        start, stop = stop, stop + segment


def attend_even(new: Tokens, state: InfiniState, rule: Rule, *, fresh: bool) -> tuple[Tensor, InfiniState]:
    """A [B, H, n, Dv] of the new tokens, and the state after them. ``fresh``: the state is known to hold
    nothing. The window begins where the last segment ended, so what leaves before a token follows from its
    column among window and new tokens just as from its position."""
    held = state.keys.shape[2]
    keys, values = _joined(new, state)
    columns = keys.shape[2]
    base = (state.seen - held)[:, None]  # the position of column 0
    memory, parts, evicted = state.memory, [], 0
    for evicted, start, stop in spans(columns, rule.window, rule.segment):
        if evicted:
            left = slice(evicted - rule.segment, evicted)
            memory = write(memory, keys[:, :, left], values[:, :, left], rule)
        if stop <= held:
            continue
        start = max(start, held)
        q = new.q[:, :, start - held : stop - held]
        local = _local_even(q, keys[:, :, evicted:stop], values[:, :, evicted:stop], base + evicted, rule)
        parts.append(local if fresh and not evicted and rule.starts_empty else mix(local, q, memory, rule))
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    # Copies: a slice would keep the keys and values of the whole call alive.
    window = (keys[:, :, evicted:].clone(), values[:, :, evicted:].clone())
    return out, InfiniState(memory, *window, state.seen + new.q.shape[2])


def attend_ragged(
    new: Tokens,
    positions: Tensor,
    fed: Tensor,
    state: InfiniState,
    rule: Rule,
    *,
    fresh: bool,
    longest: int,
    densest: int,
) -> tuple[Tensor, InfiniState]:
    """``attend_even`` for rows that differ: the new tokens stand at ``positions`` [B, n], increasing, NOWHERE
    at padding, which comes last; ``fed`` [B] positions pass in this call, at most ``longest``, and at most
    ``densest`` new tokens stand in any one segment. Padding gets any finite numbers."""
    n, held = new.q.shape[2], state.keys.shape[2]
    keys, values, where = _sorted_window(new, positions, state)
    columns = where.shape[1]
    dense = min(rule.segment, densest)
    # Tokens in any window. It begins with a segment, but the queries of a step need not.
    most = min(columns, rule.window, dense * -(-rule.window // rule.segment) + held)
    in_segment = min(most, dense + held)
    before, after = _evicted(state.seen - 1, rule), _evicted(state.seen + fed - 1, rule)
    leaves = evicted_before_each(positions, window=rule.window, segment=rule.segment)
    place = torch.zeros_like(positions)
    memory, parts, total = state.memory, [], 0
    steps = -(-longest // rule.segment) + 1
    if fresh:
        steps = evicted_before(longest - 1, window=rule.window, segment=rule.segment) // rule.segment + 1
    for step in range(steps):
        evicted = (before + step * rule.segment)[:, None]  # [B, 1]
        first = (leaves < evicted).sum(dim=1, keepdim=True)
        width = min(n, dense * (2 if rule.window % rule.segment else 1) if step else most)
        asked = first + torch.arange(width, device=first.device)
        asked, live = asked.clamp(max=n - 1), asked < n
        live = live & (leaves.gather(1, asked) == evicted)
        at_q = torch.where(live, positions.gather(1, asked), NOWHERE)

        oldest = (where < evicted).sum(dim=1, keepdim=True)
        shown = oldest + torch.arange(most, device=first.device)
        at_k = torch.where(shown < columns, where.gather(1, shown.clamp(max=columns - 1)), NOWHERE)
        shown = shown.clamp(max=columns - 1)
        q, k, v = _take(new.q, asked), _take(keys, shown), _take(values, shown)
        local = _local_ragged(q, k, v, at_q, at_k, evicted, rule)
        parts.append(mix(local, q, memory, rule))

        mine = leaves == evicted
        place = torch.where(mine, total + torch.arange(n, device=first.device) - first, place)
        total += asked.shape[1]
        if step < steps - 1:
            left = slice(0, in_segment)
            leaving = (at_k[:, left] < evicted + rule.segment) & (evicted < after[:, None])
            memory = write(memory, k[:, :, left], v[:, :, left], rule, mask=leaving)
    out = _take(torch.cat(parts, dim=2), place)

    kept = (where < after[:, None]).sum(dim=1, keepdim=True) + torch.arange(most, device=where.device)
    at = torch.where(kept < columns, where.gather(1, kept.clamp(max=columns - 1)), NOWHERE)
    size = longest_row(at < NOWHERE)
    at, kept = at[:, :size], kept[:, :size].clamp(max=columns - 1)
    window = (_take(keys, kept), _take(values, kept))
    return out, InfiniState(memory, *window, state.seen + fed, torch.where(at < NOWHERE, at, -1))


def longest_row(mask: Tensor) -> int:
    """How many columns the fullest row of ``mask`` [B, n] needs; all of them while a graph is captured, where
    a number that depends on values would break it."""
    if torch.compiler.is_compiling():
        return mask.shape[1]
    return int(mask.sum(dim=1).max())


def mix(local: Tensor, q: Tensor, memory: MemoryState, rule: Rule) -> Tensor:
    """Eq. 10 per head and value channel: g A_mem + (1 - g) A_dot with g = sigmoid(betas), for queries q
    without position. Rows whose memory is empty keep A_dot [B, H, T, Dv] bit for bit."""
    with _full_precision(q.device):
        gate = torch.sigmoid(wide(rule.betas))
        read = read_normalised(elu1(wide(q)), memory)
        mixed = (gate * read + (1 - gate) * wide(local)).to(local.dtype)
    if not rule.starts_empty:
        return mixed
    return torch.where((memory.written > 0)[:, None, None, None], mixed, local)


def write(
    memory: MemoryState, k: Tensor, v: Tensor, rule: Rule, *, mask: Tensor | None = None
) -> MemoryState:
    """The memory after a segment's keys (without position) and values; ``mask`` as ``write_normalised``."""
    with _full_precision(k.device):
        return write_normalised(memory, elu1(wide(k)), v, rule=rule.update, mask=mask)


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast would round every product with the memory to half precision."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _local_even(q: Tensor, k: Tensor, v: Tensor, base: Tensor, rule: Rule) -> Tensor:
    """A_dot of the last columns q of a window k, v whose first column stands at ``base`` [B, 1]."""
    count, length = k.shape[2], q.shape[2]
    before = count - length
    if rule.embedder is not None:
        at = torch.arange(count, device=k.device)[None] + (0 if rule.embedder.relative else base)
        q = rule.embedder.at(q, at[:, before:], total_seq_len=rule.window)
        k = rule.embedder.at(k, at, total_seq_len=rule.window)
    grouped = k.shape[1] != q.shape[1]
    if not rule.causal or length == 1:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    if before == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    mask = torch.ones(length, count, dtype=torch.bool, device=k.device).tril(diagonal=before)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def _local_ragged(
    q: Tensor, k: Tensor, v: Tensor, at_q: Tensor, at_k: Tensor, evicted: Tensor, rule: Rule
) -> Tensor:
    """A_dot of queries at ``at_q`` [B, Q] over keys at ``at_k`` [B, K], NOWHERE at padding, which see the
    keys from ``evicted`` [B, 1] on."""
    if rule.embedder is not None:
        origin = evicted if rule.embedder.relative else torch.zeros_like(evicted)
        q, k = (
            rule.embedder.at(x, torch.where(at < NOWHERE, at - origin, -1), total_seq_len=rule.window)
            for x, at in ((q, at_q), (k, at_k))
        )
    last = at_q if rule.causal else torch.where(at_q < NOWHERE, evicted + rule.window - 1, NOWHERE)
    # NOWHERE is later than every token: keys of padding are seen by queries of padding alone, and these see
    # all keys, because for a row of the mask without any some kernels give NaN.
    seen = at_k[:, None, :] <= last[:, :, None]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen[:, None], enable_gqa=k.shape[1] != q.shape[1]
    )


def _joined(new: Tokens, state: InfiniState) -> tuple[Tensor, Tensor]:
    """Keys and values of the window and the new tokens, in the new ones' type."""
    if not state.keys.shape[2]:
        return new.k, new.v
    keys = torch.cat((state.keys.to(new.k.dtype), new.k), dim=2)
    return keys, torch.cat((state.values.to(new.v.dtype), new.v), dim=2)


def _sorted_window(new: Tokens, positions: Tensor, state: InfiniState) -> tuple[Tensor, Tensor, Tensor]:
    """Window and new tokens in one sequence per row, padding last: keys, values, and positions [B, w + n]."""
    held = state.keys.shape[2]
    keys, values = _joined(new, state)
    if not held:
        return keys, values, positions
    if state.positions is None:
        before = (state.seen - held)[:, None] + torch.arange(held, device=positions.device)
    else:
        before = torch.where(state.positions < 0, NOWHERE, state.positions)
    where, order = torch.cat((before, positions), dim=1).sort(dim=1, stable=True)
    return _take(keys, order), _take(values, order), where


def _evicted(position: Tensor, rule: Rule) -> Tensor:
    return evicted_before_each(position, window=rule.window, segment=rule.segment)


def _take(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, H, N, D] at ``columns`` [B, n] of each row: [B, H, n, D]."""
    return x.gather(2, columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
