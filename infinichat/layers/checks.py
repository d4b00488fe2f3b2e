"""What a layer is given, checked before it is used: one sentence with what was got and what was expected.

All are ``ValueError`` except for a wrong kind of object (``TypeError``). Checks that have to look at values,
and so wait for the device, are left out while a graph is captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from infinichat.attention.memory import wide
from infinichat.layers.positions import PositionEmbeddings
from infinichat.layers.state import InfiniState

if TYPE_CHECKING:
    from infinichat.layers.compressive_memory import CompressiveMemory


def check_input(layer: nn.Module, x: Tensor, dim_input: int, weight: Tensor) -> None:
    """x has to be [B, S, dim_input], S at least 1, of the weights' type and on their device."""
    name = type(layer).__name__
    if x.dim() != 3 or x.shape[2] != dim_input or 0 in x.shape:
        raise ValueError(
            f"{name} got x of shape {tuple(x.shape)}; expected (batch, tokens, {dim_input}) with at least "
            "one of each."
        )
    if x.device != weight.device:
        raise ValueError(f"{name} got x on {x.device}; its weights are on {weight.device}. Move one of them.")
    autocast = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
    # Quantised weights have types of their own, and take what their kernels take.
    wrong = weight.is_floating_point() and x.dtype != weight.dtype and not autocast
    if wrong or not x.is_floating_point():
        raise ValueError(
            f"{name} got x of type {x.dtype}; its weights are {weight.dtype}. Convert one of them, or use "
            "torch.autocast."
        )


def check_mask(layer: nn.Module, name: str, mask: Tensor, shape: Sequence[int]) -> Tensor:
    """``mask`` as bool [B, S]; whole numbers are taken as 0 and 1."""
    if tuple(mask.shape) != tuple(shape) or mask.is_floating_point():
        raise ValueError(
            f"{type(layer).__name__} got {name} {tuple(mask.shape)} of type {mask.dtype}; expected "
            f"{tuple(shape)} of bool, True at tokens."
        )
    return mask.bool()


def check_selection(
    layer: CompressiveMemory, x: Tensor, sampled: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``sample_mask`` and ``padding_mask`` [B, N] as bool; x [B, S, C] has to hold what is selected."""
    name = type(layer).__name__
    if layer.sampling_factor is None:
        raise ValueError(f"{name} got a sample_mask, which needs a sampling_factor; it is None.")
    if sampled.dim() != 2 or sampled.shape[1] < x.shape[1]:
        raise ValueError(
            f"{name} got sample_mask {tuple(sampled.shape)} for x {tuple(x.shape)}; expected "
            f"({x.shape[0]}, N) with N at least {x.shape[1]}, the tokens selected from."
        )
    sampled = check_mask(layer, "sample_mask", sampled, (x.shape[0], sampled.shape[1]))
    if padding is not None:
        padding = check_mask(layer, "padding_mask", padding, sampled.shape)
        sampled = sampled & padding
    if not torch.compiler.is_compiling() and int(sampled.sum(dim=1).max()) > x.shape[1]:
        raise ValueError(
            f"{name} got x with {x.shape[1]} tokens and a sample_mask that selects "
            f"{int(sampled.sum(dim=1).max())} in one row; x has to hold all that are selected."
        )
    return sampled, padding


def check_embedder(owner: type, embedder: object, dim_key: int) -> None:
    """None, or a ``PositionEmbeddings`` for keys of width ``dim_key``."""
    if embedder is None:
        return
    if isinstance(embedder, str):
        raise ValueError(
            f'{owner.__name__}: position_embedder is {embedder!r}; valid are None, "rope" and a '
            "PositionEmbeddings such as YaRNEmbeddings(...), which has lengths of its own to be told."
        )
    if not isinstance(embedder, PositionEmbeddings):
        raise TypeError(
            f'{owner.__name__}: position_embedder is a {type(embedder).__name__}; valid are None, "rope" and '
            "a PositionEmbeddings."
        )
    dim = getattr(embedder, "dim", dim_key)
    if dim != dim_key:
        raise ValueError(
            f"{owner.__name__}: position_embedder is made for keys of width {dim}; dim_key is {dim_key}."
        )


def check_state(layer: CompressiveMemory, state: InfiniState, x: Tensor) -> None:
    """A state of this layer's shapes, for the batch of x; at the end of a segment where not causal."""
    name, batch, heads = type(layer).__name__, x.shape[0], layer.num_kv_heads
    if not isinstance(state, InfiniState):
        raise TypeError(f"{name} got a state of type {type(state).__name__}; expected an InfiniState.")
    held, key, value = state.keys.shape[2], layer.dim_key, layer.dim_value
    expected: dict[str, tuple[int, ...]] = {
        "M": (batch, heads, key, value),
        "z": (batch, heads, key),
        "written": (batch,),
        "keys": (batch, heads, held, key),
        "values": (batch, heads, held, value),
        "seen": (batch,),
    }
    if state.positions is not None:
        expected["positions"] = (batch, held)
    for what, tensor in state.to_tensors().items():
        if tuple(tensor.shape) != expected[what]:
            raise ValueError(
                f"{name} got a state whose {what} is {tuple(tensor.shape)}; expected {expected[what]} for a "
                f"batch of {batch}. It is of another layer or of another batch."
            )
        if tensor.device != x.device:
            raise ValueError(f"{name} got a state on {tensor.device} for x on {x.device}; use state.to(...).")
    memory_type = wide(layer.betas).dtype
    if state.memory.M.dtype != memory_type:
        raise ValueError(f"{name} got a memory of type {state.memory.M.dtype}; expected {memory_type}.")
    if held > layer.window_len:
        raise ValueError(
            f"{name} got a state with {held} tokens in the window; this layer's window is {layer.window_len}."
        )
    if not layer.causal:
        _check_segment_end(name, state, layer)


def _check_segment_end(name: str, state: InfiniState, layer: CompressiveMemory) -> None:
    """Tokens of a begun segment were attended without those to come: causal layers alone can go on there."""
    segment = layer.segment_len if state.positions is None else layer.full_segment_len
    if state.positions is None:
        inside = state.keys.shape[2] % segment
    elif torch.compiler.is_compiling():
        return
    else:
        inside = int((state.seen % segment).max())
    if inside:
        raise ValueError(
            f"{name} has causal=False and got a state that ends {inside} tokens into a segment of {segment}; "
            "tokens there could not see those to come. Feed whole segments, or use causal=True."
        )
