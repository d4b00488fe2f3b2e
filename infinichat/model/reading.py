"""Reading without the layers above the memory: they change nothing that is written.

What a memory writes depends on the layers up to its own. While a long text is read, ``read_piece`` runs only
those, and keeps what the layers above would have got as input: the ``Pending`` part of the state. ``settle``
runs these layers over it when something is asked at last, and the state is an ordinary one again::

    read_piece(model, cache, ids)  ...  settle(model, cache)  ->  cache.last_hidden, every layer's window

The inputs of the last ``KEPT_WINDOWS`` windows are kept. Texts that fit are settled exactly: every result is
that of reading with all layers, up to rounding. Of longer ones the layers above begin where what was kept
begins, with nothing but the attention sinks before it. Their keys in the last window then differ from those
of a reading with all layers in what has come through stacked windows from further back: a layer's input
reaches window * (layers above the memory) tokens back, and all but the nearest of that is faint. The memory,
the layers below and the sinks are exact however long the text is.

Where the engine's weights can do so, these layers multiply with inputs rounded to 8 bits
(``stored.rounded_inputs``): nobody asks them for a prediction. A message is never read like that.

What is kept depends on the position alone: a text that is stopped anywhere, saved, and read on gives the same
state as one that never was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from infinichat.attention.window import evicted_before
from infinichat.model.adapters import Carried
from infinichat.model.bank_memory import BankMemory
from infinichat.model.cache import InfiniCache
from infinichat.model.layer_state import wide_dtype
from infinichat.model.modeling_infini import InfiniModel
from infinichat.model.pending import Pending, first_above, pending_tensors
from infinichat.model.segments import advance, drop_left, keep_sinks, plan_segment, turn_sinks
from infinichat.model.slots import Slots
from infinichat.model.stored import rounded_inputs

KEPT_WINDOWS = 2
"""Windows of inputs that are kept for the layers above: one that they have in the end, and the one before it,
from which the first of them get all that their windows hold."""


def can_read(cache: InfiniCache) -> bool:
    """Whether ``read_piece`` can go on from here: the sinks have been through all layers."""
    return first_above(cache.config) is not None and cache.uniform and cache.seen > cache.config.sinks


def read_piece(model: InfiniModel, cache: InfiniCache, ids: Tensor) -> None:
    """Feed ``ids`` [B, T], no more than ``cache.room``, to the layers up to the memory's. The state has no
    ``last_hidden`` then until it is settled."""
    first = first_above(model.config)
    assert first is not None
    if cache.pending is None:
        cache.pending = _nothing(cache, first)
        cache.last_hidden = None
    model.evict(cache)
    h = model.embed_tokens(ids)
    plan = plan_segment(cache, None, ids, h, rotations=model._rotations(cache.device))
    with rounded_inputs():
        for layer, state in zip(model.layers[:first], cache.live, strict=True):
            h = layer(h, plan, state)
    advance(cache, ids, plan)
    _keep(cache, h, plan.carried)


def settle(model: InfiniModel, cache: InfiniCache) -> None:
    """Run the layers above over what is pending; ``cache`` is an ordinary state then."""
    pending = cache.pending
    if pending is None:
        return
    above = _above(cache, pending)
    count, top = pending.hidden.shape[1], len(model.layers) - 1
    turning = model._rotations(cache.device)
    at = 0
    while at < count:
        _leave(above)
        turn_sinks(above, turning)
        stop = min(count, at + above.room)
        h = pending.hidden[:, at:stop]
        ids = torch.zeros(h.shape[:2], dtype=torch.int64, device=cache.device)
        plan = plan_segment(above, None, ids, h, rotations=turning)
        plan.carried.extend(_carried(model, pending, slice(at, stop)))
        for number, state in enumerate(above.states, start=pending.layer):
            # Nobody looks at the others' output: they need no more than the top layer's keys and values.
            h = model.layers[number](h, plan, state, last=number == top)
        advance(above, ids, plan)
        at = stop
    cache.last_hidden = plan.spoken(model.norm(h[:, -1:]))[:, -1].clone()
    cache.pending, cache.sinks_turned = None, None


def _nothing(cache: InfiniCache, layer: int) -> Pending:
    specs = pending_tensors(cache.config, batch=cache.batch_size, tokens=0)
    empty = [
        torch.zeros(spec.shape, dtype=spec.dtype(cache.dtype), device=cache.device) for spec in specs.values()
    ]
    return Pending(layer, *empty)


def _keep(cache: InfiniCache, hidden: Tensor, carried: Sequence[Carried]) -> None:
    """Add what the layers above are to get, and let go what is too far back."""
    pending = cache.pending
    assert pending is not None
    if carried:
        opened, values, wish = carried[-1].opened, carried[-1].values[:, -1:], carried[-1].wish[:, -1:]
    else:
        opened = hidden.new_zeros((*hidden.shape[:2], 1), dtype=wide_dtype(hidden.dtype))
        values, wish = pending.values, pending.wish
    pending.hidden = torch.cat((pending.hidden, hidden), dim=1)
    pending.opened = torch.cat((pending.opened, opened), dim=1)
    pending.values, pending.wish = values.clone(), wish.clone()
    window, segment = cache.config.window, cache.config.segment
    left = evicted_before(cache.seen - 1, window=window, segment=segment)
    begins = left - (KEPT_WINDOWS - 1) * window
    gone = begins - (cache.seen - pending.hidden.shape[1])
    if gone <= 0:
        return
    pending.hidden, pending.opened = pending.hidden[:, gone:].clone(), pending.opened[:, gone:].clone()
    for state in cache.states[pending.layer :]:
        if state.sink_k is None and cache.config.sinks:
            # Nothing has left this layer's window yet, so it begins with them.
            state.sink_k = state.k.content[:, :, : cache.config.sinks].clone()
            state.sink_v = state.v.content[:, :, : cache.config.sinks].clone()
        for slots in state.slots():
            slots.drop(slots.length)


def _above(cache: InfiniCache, pending: Pending) -> InfiniCache:
    """The layers above as a state of their own, which stands where they stopped: it shares their tensors."""
    above = copy.copy(cache)
    above.pending, above.sinks_turned = None, None
    above.states = cache.states[pending.layer :]
    held = above.states[0].k.length
    above.seen = above.slots_fed = cache.seen - pending.hidden.shape[1]
    above.evicted = above.seen - held
    held_ids = torch.zeros(cache.batch_size, held, dtype=torch.int64, device=cache.device)
    above.ids = Slots(held_ids, dim=1, limit=cache.config.window)
    return above


def _leave(above: InfiniCache) -> None:
    """As ``InfiniModel.evict``, for layers without memory, whose window may begin later than by the rule."""
    window, segment = above.config.window, above.config.segment
    due = evicted_before(above.seen, window=window, segment=segment)
    if due > above.evicted:
        if any(state.sink_k is None for state in above.states):
            keep_sinks(above)
        drop_left(above, due - above.evicted)


def _carried(model: InfiniModel, pending: Pending, part: slice) -> list[Carried]:
    memory = model.layers[pending.layer - 1].memory
    if not isinstance(memory, BankMemory):
        return []
    opened = pending.opened[:, part]
    adapters = memory.adapters if bool(opened.any()) else None
    return [Carried(adapters, opened, pending.values, pending.wish, memory.say_final, memory.say)]
