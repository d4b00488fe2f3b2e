"""Feeding long fillers: through all layers, or only as far as the memory needs.

A token that has left the window before a question is asked reaches the answer through the memory alone, and
what the memory of layer L gets from it is made of layer L's input. ``stream_below`` therefore runs such
tokens through the layers 0 to L and no further."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from infinichat.engine.generate import InfiniEngine
from infinichat.errors import UsageError
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.segments import advance, plan_segment


def stream(engine: InfiniEngine, cache: InfiniCache, ids: Sequence[int]) -> None:
    """Feed ``ids`` as the product does, through all layers."""
    for _ in engine.feed(cache, ids):
        pass


@torch.inference_mode()
def stream_below(model: InfiniForCausalLM, cache: InfiniCache, ids: Sequence[int]) -> None:
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
    config = model.config
    if cache.seen < max(1, config.sinks) or not cache.uniform:
        raise UsageError(
            f"stream_below got a state of {cache.seen} tokens; one without padding is needed that saw the "
            f"{config.sinks} attention sinks. Next: feed the beginning through all layers."
        )
    body, layers = model.model, len(model.model.layers)
    top = max(cache.memories, default=layers - 1)
    done = 0
    while done < len(ids):
        body.evict(cache)
        count = min(cache.room, config.segment - cache.seen % config.segment, len(ids) - done)
        piece = torch.tensor([list(ids[done : done + count])], device=cache.device)
        h = body.embed_tokens(piece)
        plan = plan_segment(cache, None, h, inv_freq=body._frequencies(cache.device))
        for index, (layer, state) in enumerate(zip(body.layers, cache.states, strict=True)):
            if index <= top:
                h = layer(h, plan, state)
                continue
            nothing = h.new_zeros(1, config.num_key_value_heads, count, config.head_dim)
            state.k.append(nothing)
            state.v.append(nothing)
        advance(cache, piece, plan)
        done += count
    cache.last_hidden = None


def least_tail(model: InfiniForCausalLM) -> int:
    """Tokens after which no window holds anything that ``stream_below`` fed: window + segment."""
    return int(model.config.window + model.config.segment)
