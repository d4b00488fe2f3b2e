"""What one forward over one segment needs to know, worked out once for all layers.

``plan_segment`` answers, for the next T slots: their positions, rotary tables, and additive masks.
``leaving``, ``keep_sinks`` and ``drop_left`` are the steps of moving the oldest segment out of the window
before those slots are processed; ``turn_sinks`` puts the attention sinks where the new window begins. All
treat uniform caches with integers alone, and ragged ones (padding) row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infinichat.attention.memory import wide
from infinichat.attention.window import (
    QueryBlock,
    causal_blocks,
    evicted_before,
    evicted_before_each,
    rotary,
    rotate,
    visible,
)
from infinichat.model.adapters import Adapters, Carried
from infinichat.model.cache import InfiniCache
from infinichat.model.layer_state import LayerState, wide_dtype
from infinichat.model.rope import Rotation, Rotations

QUERY_BLOCK = 128
"""Queries in one call of the attention kernel on a CPU: 24 % less time than one call for the first 512
tokens, 2 % less for 256 after 768 (measured with 32 to 512 queries)."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the queries of T new slots see: ``cos`` and ``sin`` broadcastable to [B, H, T, D], ``blocks`` of
    queries with their masks, and ``span``, how many keys one query sees at most (None: all)."""

    cos: Tensor
    sin: Tensor
    blocks: tuple[QueryBlock, ...]
    span: int | None = None


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """For T new slots: ``positions`` [T] (uniform) or [B, T], what layers see that see the whole window
    (``full``) or a ``sliding`` part of it, ``real`` [B, T] True where a slot is a token (None: all are),
    ``use_front``: the sinks are attended, ``ids`` [B, T], and ``embeddings`` [B, T, C], the tokens' rows of
    the embedding table. ``carried``: what the memories have read so far, the latest last; layers add to
    it."""

    positions: Tensor
    full: Sight
    sliding: Sight
    real: Tensor | None
    use_front: bool
    ids: Tensor
    embeddings: Tensor
    carried: list[Carried] = field(default_factory=list)

    @property
    def changing(self) -> tuple[Adapters, Tensor] | None:
        """As ``Carried.changing``, of the latest read."""
        return self.carried[-1].changing if self.carried else None

    def spoken(self, final: Tensor) -> Tensor:
        """The last tokens' final states [B, t, C] with what the memories say."""
        for carried in self.carried:
            final = carried.spoken(final)
        return final


def pieces(cache: InfiniCache, attention_mask: Tensor | None, length: int) -> int:
    """How many of the next ``length`` slots can be processed in one forward, at least 1.

    ``attention_mask`` [B, length] bool, or None. For a ragged cache the first row that reaches the end of its
    segment decides.
    """
    if cache.uniform and attention_mask is None:
        return min(length, cache.room)
    seen, _ = _row_counts(cache)
    mask = attention_mask if attention_mask is not None else _all_real(cache, length)
    positions = torch.where(mask, seen[:, None] + mask.cumsum(dim=1) - 1, -1)
    window, segment = cache.config.window, cache.config.segment
    leaves = evicted_before_each(positions, window=window, segment=segment)
    # E at each row's first token of this call; a later slot with a larger E starts the next piece.
    first = evicted_before_each(seen, window=window, segment=segment)
    crossing = (leaves > first[:, None]).any(dim=0).nonzero()
    return length if crossing.numel() == 0 else max(1, int(crossing[0]))


def plan_segment(
    cache: InfiniCache,
    attention_mask: Tensor | None,
    ids: Tensor,
    embeddings: Tensor,
    *,
    rotations: Rotations,
) -> SegmentPlan:
    """The plan for the next T slots of ``cache``, whose tokens are ``ids`` [B, T] and have ``embeddings``
    [B, T, C], made after what is due has left it. ``attention_mask`` [B, T] bool or None."""
    length, dtype = embeddings.shape[1], embeddings.dtype
    group = cache.config.num_attention_heads // cache.config.num_key_value_heads
    if not cache.uniform:
        real = attention_mask if attention_mask is not None else _all_real(cache, length)
        return _plan_ragged(cache, real, ids, embeddings, rotations)
    positions = torch.arange(cache.seen, cache.seen + length, device=cache.device)
    use_front = cache.evicted > 0 and cache.config.sinks > 0
    # The sinks stand right before the window, so slots are as far from each other as positions.
    before = cache.window_tokens + (cache.config.sinks if use_front else 0)
    # One launch for everything where launches cost more than the masked half of the work.
    block = QUERY_BLOCK if cache.device.type == "cpu" else length

    def sight(rotation: Rotation, span: int | None) -> Sight:
        cos, sin = rotary(positions, rotation.inv_freq, dtype, scale=rotation.scale)
        blocks = causal_blocks(
            length, before, group=group, block=block, dtype=dtype, device=cache.device, span=span
        )
        return Sight(cos, sin, blocks, span)

    full, sliding = _sights(cache, sight, rotations, longest=before + length)
    return SegmentPlan(positions, full, sliding, None, use_front, ids, embeddings)


def _sights(
    cache: InfiniCache,
    sight: Callable[[Rotation, int | None], Sight],
    rotations: Rotations,
    *,
    longest: int,
) -> tuple[Sight, Sight]:
    """What full and sliding layers see; the same object as long as that is the same for all of at most
    ``longest`` keys."""
    full, span = sight(rotations.full, None), cache.config.sliding_window
    if span is None or (span >= longest and rotations.sliding is rotations.full):
        return full, full
    return full, sight(rotations.sliding, span)


def make_ragged(cache: InfiniCache) -> None:
    """Give each row its own counts; from here on padding can be told apart."""
    if not cache.uniform:
        return
    cache.row_seen, cache.row_evicted = _row_counts(cache)
    first = cache.seen - cache.window_tokens
    cache.positions = torch.arange(first, cache.seen, device=cache.device).repeat(cache.batch_size, 1)


def leaving(cache: InfiniCache) -> tuple[int, Tensor | None] | None:
    """What has to leave before the next token: (slots to drop, write mask), or None when nothing does.

    The mask [B, n] says which of the window's oldest n slots are to be written: not sinks, not padding, and
    of a ragged cache only rows whose segment is due. None: exactly the dropped slots, all of them.
    """
    window, segment, sinks = cache.config.window, cache.config.segment, cache.config.sinks
    if cache.uniform:
        count = evicted_before(cache.seen, window=window, segment=segment) - cache.evicted
        if count == 0:
            return None
        if cache.evicted > 0 or sinks == 0:
            return count, None
        write = torch.ones(cache.batch_size, count, dtype=torch.bool, device=cache.device)
        write[:, :sinks] = False
        return count, write
    assert cache.row_seen is not None
    assert cache.row_evicted is not None
    assert cache.positions is not None
    after = evicted_before_each(cache.row_seen, window=window, segment=segment)
    if bool((after <= cache.row_evicted).all()):
        return None
    p = cache.positions
    write = (p >= cache.row_evicted[:, None]) & (p < after[:, None]) & (p >= sinks)
    gone = (p < after[:, None]).all(dim=0).to(torch.int64)
    return int(gone.cumprod(dim=0).sum()), write


def advance(cache: InfiniCache, ids: Tensor, plan: SegmentPlan) -> None:
    """Count the slots that were just processed."""
    length = ids.shape[1]
    cache.ids.append(ids)
    cache.slots_fed += length
    if cache.uniform:
        cache.seen += length
        return
    assert cache.row_seen is not None
    assert cache.positions is not None
    assert plan.real is not None
    cache.row_seen = cache.row_seen + plan.real.sum(dim=1)
    cache.positions = torch.cat((cache.positions, plan.positions), dim=1)
    cache.seen = int(cache.row_seen.max())


def keep_last_hidden(cache: InfiniCache, hidden: Tensor, real: Tensor) -> None:
    """Remember each row's state of its last token in a piece: hidden [B, T, C], ``real`` [B, T]. A row of
    nothing but padding keeps what it had."""
    place = torch.arange(1, real.shape[1] + 1, device=real.device)
    last = (real * place).argmax(dim=1)
    found = hidden[torch.arange(real.shape[0], device=real.device), last]
    old = cache.last_hidden
    cache.last_hidden = found if old is None else torch.where(real.any(dim=1)[:, None], found, old)


def drop_left(cache: InfiniCache, count: int) -> None:
    """Forget the ``count`` oldest slots after their layers have been written, and move E forward."""
    window, segment = cache.config.window, cache.config.segment
    for state in cache.live:
        for slots in state.slots():
            slots.drop(count)
    cache.ids.drop(count)
    if cache.uniform:
        cache.evicted += count
        return
    assert cache.row_seen is not None
    assert cache.positions is not None
    cache.positions = cache.positions[:, count:]
    cache.row_evicted = evicted_before_each(cache.row_seen, window=window, segment=segment)
    cache.evicted = int(cache.row_evicted.max())


def keep_sinks(cache: InfiniCache) -> None:
    """Copy the first tokens' keys and values out of the window, when their segment is about to leave."""
    sinks = cache.config.sinks
    if sinks == 0:
        return
    if cache.uniform:
        if cache.evicted == 0:
            for state in cache.live:
                state.sink_k = state.k.content[:, :, :sinks].clone()
                state.sink_v = state.v.content[:, :, :sinks].clone()
        return
    assert cache.positions is not None
    assert cache.row_evicted is not None
    fresh = cache.row_evicted == 0
    # Position i of a row stands in the only slot that holds i (slot 0 when the row is shorter: masked later).
    where = torch.stack([(cache.positions == i).to(torch.int8).argmax(dim=1) for i in range(sinks)], dim=1)
    for state in cache.states:
        _keep_row_sinks(state, where, fresh)


def turn_sinks(cache: InfiniCache, rotations: Rotations) -> None:
    """Put the sinks into the front slots of every layer, turned so that they end right before the window."""
    sinks = cache.config.sinks
    key = cache.evicted if cache.row_evicted is None else tuple(cache.row_evicted.tolist())
    if sinks == 0 or cache.evicted == 0 or cache.sinks_turned == key:
        return
    evicted = torch.tensor(cache.evicted, device=cache.device) if cache.uniform else cache.row_evicted
    assert evicted is not None
    shift = (evicted - sinks).clamp(min=0)  # a row that nothing has left has no sinks yet
    by = {
        kind: rotary(shift.reshape(-1, 1, 1), kind.inv_freq, wide_dtype(cache.dtype))  # [1 or B, 1, 1, D]
        for kind in (rotations.full, rotations.sliding)
    }
    first = cache.config.num_hidden_layers - len(cache.states)  # a part of a state ends at the top layer
    for layer, state in enumerate(cache.live, start=first):
        cos, sin = by[rotations.sliding if cache.config.slides(layer) else rotations.full]
        assert state.sink_k is not None
        assert state.sink_v is not None
        state.k.set_front(rotate(wide(state.sink_k), cos, sin).to(state.sink_k.dtype))
        state.v.set_front(state.sink_v)
    cache.sinks_turned = key


def _plan_ragged(
    cache: InfiniCache, real: Tensor, ids: Tensor, embeddings: Tensor, rotations: Rotations
) -> SegmentPlan:
    dtype, sinks = embeddings.dtype, cache.config.sinks
    group = cache.config.num_attention_heads // cache.config.num_key_value_heads
    assert cache.row_seen is not None
    assert cache.row_evicted is not None
    assert cache.positions is not None
    evicted = cache.row_evicted
    positions = torch.where(real, cache.row_seen[:, None] + real.cumsum(dim=1) - 1, -1)
    keys = torch.cat((cache.positions, positions), dim=1)
    use_front = cache.evicted > 0 and sinks > 0

    def sight(rotation: Rotation, span: int | None) -> Sight:
        at = positions.clamp(min=0)[:, None]
        cos, sin = rotary(at, rotation.inv_freq, dtype, scale=rotation.scale)
        allowed = visible(positions, keys, evicted, span=span)
        if use_front:
            front = ((evicted > 0)[:, None, None] & real[:, :, None]).expand(-1, -1, sinks)
            if span is not None:
                stand = evicted[:, None] - sinks + torch.arange(sinks, device=evicted.device)
                front = front & (stand[:, None] > positions[:, :, None] - span)
            allowed = torch.cat((front, allowed), dim=2)
        whole = QueryBlock(0, allowed.shape[1], allowed.shape[2], _additive(allowed, group, dtype))
        return Sight(cos, sin, (whole,), span)

    full, sliding = _sights(cache, sight, rotations, longest=sinks + cache.config.window)
    return SegmentPlan(positions, full, sliding, real, use_front, ids, embeddings)


def _additive(allowed: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """Bool [B, T, N] to additive [B, 1, G * T, N]; a row that sees nothing (padding) gets zeros, so that its
    output is finite. Nobody reads it."""
    allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    mask = mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask.repeat(1, group, 1)[:, None]


def _row_counts(cache: InfiniCache) -> tuple[Tensor, Tensor]:
    if cache.row_seen is not None and cache.row_evicted is not None:
        return cache.row_seen, cache.row_evicted
    full = torch.ones(cache.batch_size, dtype=torch.int64, device=cache.device)
    return full * cache.seen, full * cache.evicted


def _all_real(cache: InfiniCache, length: int) -> Tensor:
    return torch.ones(cache.batch_size, length, dtype=torch.bool, device=cache.device)


def _keep_row_sinks(state: LayerState, where: Tensor, fresh: Tensor) -> None:
    def kept(content: Tensor, old: Tensor | None) -> Tensor:
        index = where[:, None, :, None].expand(-1, content.shape[1], -1, content.shape[3])
        found = content.gather(2, index)
        return found if old is None else torch.where(fresh[:, None, None, None], found, old)

    state.sink_k = kept(state.k.content, state.sink_k)
    state.sink_v = kept(state.v.content, state.sink_v)
