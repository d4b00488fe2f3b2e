"""Feeding long fillers: through all layers, only as far as the memory needs, or only from there on.

A token that has left the window before a question is asked reaches the answer through the memory alone, and
what the memory of layer L gets from it is made of layer L's input. ``stream_below`` therefore runs such
tokens through the layers 0 to L and no further. The other half: layers below L never see a memory, so what
they make of the last tokens before a question is the same for every memory. ``stream_above`` takes those
states, kept from one stream (``Passed``), and runs the layers from L on with another memory.

Both work through the text in the pieces that the engine uses, so the products have the same sizes and round
the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infinichat.engine.generate import InfiniEngine
from infinichat.errors import UsageError
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.segments import SegmentPlan, advance, plan_segment

BeforeEviction = Callable[[InfiniCache], None]
"""Looks at a cache right before what is due leaves its window."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A piece that went through all layers: its ids, and the states [1, T, C] that entered the lowest memory
    layer."""

    ids: tuple[int, ...]
    entering: Tensor


def stream(engine: InfiniEngine, cache: InfiniCache, ids: Sequence[int]) -> None:
    """Feed ``ids`` as the product does, through all layers."""
    for _ in engine.feed(cache, ids):
        pass


@torch.inference_mode()
def stream_below(
    engine: InfiniEngine,
    cache: InfiniCache,
    ids: Sequence[int],
    *,
    before_eviction: BeforeEviction | None = None,
) -> None:
    """Feed ``ids`` through the layers up to the highest memory layer only, in the same pieces as ``stream``.

    Exact, to the last bit: the memories (matrix, bank, counts), and in every layer up to the highest memory
    layer the window. All that those layers ever see comes from below them.

    Not exact: the layers above. They get zeros as keys and values for these tokens, so the cache must not be
    asked anything before at least window + segment further tokens went through ``stream``: then no zero is in
    any window. Those tokens' own states above the memory layer were computed beside windows that still held
    zeros, where a full stream has what older tokens left; the more tokens are fed in full, the less of that
    is left. ``last_hidden`` is None afterwards, so that generating at once is an error.

    Raises ``UsageError`` when the attention sinks have not been seen yet, or for a batch with padding.
    """
    model = engine.model
    config = model.config
    if cache.seen < max(1, config.sinks) or not cache.uniform:
        raise UsageError(
            f"stream_below got a state of {cache.seen} tokens; one without padding is needed that saw the "
            f"{config.sinks} attention sinks. Next: feed the beginning through all layers."
        )
    top = max(cache.memories, default=len(model.model.layers) - 1)
    for piece, plan in _pieces(engine, cache, ids, before_eviction):
        _through(model, cache, plan, plan.embeddings, range(top + 1))
        advance(cache, piece, plan)
    cache.last_hidden = None


@torch.inference_mode()
def stream_keeping(
    engine: InfiniEngine,
    cache: InfiniCache,
    ids: Sequence[int],
    *,
    layer: int,
    before_eviction: BeforeEviction | None = None,
) -> list[Passed]:
    """Feed ``ids`` through all layers, as ``stream`` does, and keep what enters ``layer``."""
    kept: list[Passed] = []
    model = engine.model
    layers = len(model.model.layers)
    for piece, plan in _pieces(engine, cache, ids, before_eviction):
        h = _run(model, cache, plan, plan.embeddings, range(layer))
        kept.append(Passed(tuple(piece[0].tolist()), h))
        h = _run(model, cache, plan, h, range(layer, layers))
        advance(cache, piece, plan)
        cache.last_hidden = plan.spoken(model.model.norm(h[:, -1:]))[:, 0]
    return kept


@torch.inference_mode()
def stream_above(
    engine: InfiniEngine, cache: InfiniCache, passed: Sequence[Passed], below: InfiniCache, *, layer: int
) -> None:
    """Feed what ``stream_keeping`` kept through the layers from ``layer`` on. ``cache`` stands where that
    stream stood before, ``below`` is its state afterwards: the windows below ``layer`` are copied from it."""
    model = engine.model
    layers = len(model.model.layers)
    for part in passed:
        for piece, plan in _pieces(engine, cache, part.ids, None):
            h = _through(model, cache, plan, part.entering, range(layer, layers))
            advance(cache, piece, plan)
            cache.last_hidden = plan.spoken(model.model.norm(h[:, -1:]))[:, 0]
    for index in range(layer):
        cache.states[index] = below.states[index].clone()


def _pieces(
    engine: InfiniEngine, cache: InfiniCache, ids: Sequence[int], before: BeforeEviction | None
) -> Iterator[tuple[Tensor, SegmentPlan]]:
    """The next piece [1, T] and its plan, after what is due has left the window."""
    body = engine.model.model
    done = 0
    while done < len(ids):
        if before is not None:
            before(cache)
        body.evict(cache)
        count = min(engine._to_segment_end(cache), len(ids) - done)
        piece = torch.tensor([list(ids[done : done + count])], device=cache.device)
        turning = body._rotations(cache.device)
        yield piece, plan_segment(cache, None, piece, body.embed_tokens(piece), rotations=turning)
        done += count


def _run(model: InfiniForCausalLM, cache: InfiniCache, plan: SegmentPlan, h: Tensor, which: range) -> Tensor:
    for index in which:
        h = model.model.layers[index](h, plan, cache.states[index])
    return h


def _through(
    model: InfiniForCausalLM, cache: InfiniCache, plan: SegmentPlan, h: Tensor, which: range
) -> Tensor:
    """The layers in ``which``; all others get zeros for these tokens."""
    config = model.config
    h = _run(model, cache, plan, h, which)
    nothing = h.new_zeros(1, config.num_key_value_heads, h.shape[1], config.head_dim)
    for index, state in enumerate(cache.states):
        if index not in which:
            state.k.append(nothing)
            state.v.append(nothing)
    return h


def least_tail(model: InfiniForCausalLM) -> int:
    """Tokens after which no window holds anything that ``stream_below`` fed: window + segment."""
    return int(model.config.window + model.config.segment)
