"""Memory on, off, wiped, swapped: the same model, the same question, another state.

Nothing in the model knows about these. *off* takes the memories out of a state, as in a checkpoint that has
none, so from there on it is a sliding window; *wiped* empties them; *swapped* puts another conversation's in
their place. The window is left alone by all of them.
"""

from __future__ import annotations

import torch

from infinichat.model.cache import InfiniCache
from infinichat.model.layer_state import TAILS


@torch.inference_mode()
def without_memory(cache: InfiniCache) -> InfiniCache:
    """A copy of ``cache`` that has a window only, now and for whatever is fed later."""
    copy = cache.clone()
    for state in copy.states:
        state.memory = state.bank = None
        state.memory_k = state.strength = None
        for name in TAILS:
            setattr(state, name, None)
    return copy


@torch.inference_mode()
def wiped(cache: InfiniCache) -> InfiniCache:
    """A copy of ``cache`` whose memories hold nothing. What is in the window can still be
    written later, unless it is written at once (a bank)."""
    fresh = InfiniCache(cache.config, cache.batch_size, dtype=cache.dtype, device=cache.device)
    return swapped(cache, fresh)


@torch.inference_mode()
def swapped(cache: InfiniCache, donor: InfiniCache) -> InfiniCache:
    """A copy of ``cache`` with the memories of ``donor``, another conversation with the same model."""
    copy, theirs = cache.clone(), donor.clone()
    for state, other in zip(copy.states, theirs.states, strict=True):
        state.memory, state.bank = other.memory, other.bank
    return copy
