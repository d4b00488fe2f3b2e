"""One token of each of several conversations through a memory: what a batch of answers needs.

The conversations share nothing but the parameters: each has its own state, as long as it is, and what they
have written differs. So what is large and the same for all, the products with the parameters, is done for all
rows at once, and what belongs to one, its bank and its matrix, row by row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from infinichat.attention.memory import wide
from infinichat.model.adapters import Carried
from infinichat.model.bank_memory import BankMemory
from infinichat.model.layer_state import TAILS, LayerState
from infinichat.model.looked_back import LookedBack
from infinichat.model.memories import ResidualMemory


def one_token_each(
    memory: ResidualMemory,
    h: Tensor,
    x: Tensor,
    states: Sequence[LayerState],
    *,
    embeddings: Tensor,
    ids: Tensor,
) -> tuple[Tensor, Carried | None]:
    """``ResidualMemory.forward`` for one token of each of ``states``, of batch 1: h, x and ``embeddings``
    [B, 1, C], ``ids`` [B, 1]. Without gradients. Equal to row after row, up to rounding."""
    if len(states) > 1 and isinstance(memory, BankMemory):
        return _together(memory, h, x, states, embeddings, ids)
    told = [
        memory(
            h[i : i + 1],
            x[i : i + 1],
            state,
            real=None,
            embeddings=embeddings[i : i + 1],
            ids=ids[i : i + 1],
        )
        for i, state in enumerate(states)
    ]
    # Only a bank carries anything.
    return told[0] if len(told) == 1 else (torch.cat([read for read, _ in told]), None)


def _together(
    memory: BankMemory,
    h: Tensor,
    x: Tensor,
    states: Sequence[LayerState],
    embeddings: Tensor,
    ids: Tensor,
) -> tuple[Tensor, Carried]:
    x, tokens = wide(x), memory.unit_rms(embeddings)
    tails = _tails(states)
    seen = memory.looked_back(x, tokens, ids, tails, None)
    for name in _kept_tails(tails):
        for state, tail in zip(states, getattr(tails, name).split(1), strict=True):
            setattr(state, name, tail)
    found, something = [], x.new_zeros(len(states), 1, 1)
    for row, state in enumerate(states):
        assert state.memory is not None
        if int(state.memory.written) > 0:
            something[row] = 1
            found.append(memory.found(seen.projected[row : row + 1], ids[row : row + 1], state))
        else:
            nothing = torch.zeros_like(x[:1])
            found.append((nothing, nothing[..., :1] + 1, nothing[..., :1], nothing[..., :1]))
        _write(memory, state, seen, row)
    values, null, ended, going = (torch.cat(parts) for parts in zip(*found, strict=True))
    added, carried = memory.added(x, values, null, ended, going, something)
    return h + added.to(h.dtype), carried


def _tails(states: Sequence[LayerState]) -> LayerState:
    """A state whose tails are those of all ``states`` below each other; nothing else in it is of use."""
    tails = copy.copy(states[0])
    for name in _kept_tails(tails):
        setattr(tails, name, torch.cat([getattr(state, name) for state in states]))
    return tails


def _kept_tails(state: LayerState) -> list[str]:
    return [name for name in TAILS if getattr(state, name) is not None]


def _write(memory: BankMemory, state: LayerState, seen: LookedBack, row: int) -> None:
    """Keep and, if it is to be written, write what row ``row`` has ``seen`` of the token before."""
    assert state.memory_k is not None
    assert state.strength is not None
    one = seen.row(row)
    writes = one.strength[0].nonzero()[:, 0].tolist()
    keys = memory.marked(one, writes)
    state.strength.append(one.strength)
    state.memory_k.append(keys)
    if writes:
        memory.write(state, keys, one.tokens, one.ids, strength=one.strength, joined=one.joined)
