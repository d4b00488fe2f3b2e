"""Is a dictionary of tensors really a state of this model? Asked before any of it is used.

A state comes from disk, perhaps from another model, another program version or a damaged file. Every shape,
type and count is compared with what the configuration implies, and the first that differs is named in a
``StateError``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinichat.attention.window import evicted_before
from infinichat.errors import StateError
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.layer_state import TensorSpec, layer_tensors
from infinichat.model.pending import first_above, pending_tensors

WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, slots=True)
class Counts:
    """A state's counts: rows, slots ever fed, tokens ever seen and gone (of the longest row), slots in the
    window, the type of the weights, and whether rows count for themselves; tokens that the layers above the
    memory have not seen, and slots that these hold meanwhile (``reading``)."""

    batch: int
    slots_fed: int
    seen: int
    evicted: int
    window: int
    dtype: torch.dtype
    ragged: bool
    pending: int = 0
    held: int = 0


def check_state(config: InfiniConfig, tensors: Mapping[str, Tensor]) -> Counts:
    """The counts of a state that fits ``config``. Raises ``StateError`` naming what does not."""
    counts = _counts(config, tensors)
    specs = state_tensors(config, counts)
    for name, spec in specs.items():
        _check_tensor(tensors, name, spec, counts.dtype)
    unknown = sorted(str(name) for name in set(tensors) - set(specs))
    if unknown:
        raise StateError(f"The state has a tensor {unknown[0]!r}, which this model has no place for.")
    for name, tensor in tensors.items():
        limits = _limits(name, config, counts)
        if limits is not None and tensor.numel():
            lowest, highest = tensor.min().item(), tensor.max().item()
            if lowest < limits[0] or highest > limits[1]:
                raise StateError(
                    f"{name} goes from {lowest} to {highest} in the state; this model expects {limits[0]} to "
                    f"{limits[1]}."
                )
    if counts.ragged:
        _check_rows(config, tensors, counts)
    else:
        _check_row(config, counts.seen, counts.evicted, counts.window)
        if counts.slots_fed != counts.seen or counts.window != counts.seen - counts.evicted:
            raise StateError(
                f"counts say {counts.slots_fed} slots, {counts.seen} tokens and {counts.evicted} gone, and "
                f"the window holds {counts.window}; without padding these do not add up."
            )
    return counts


def _limits(name: str, config: InfiniConfig, counts: Counts) -> tuple[int, int] | None:
    """The least and the greatest value of a tensor, where there are such."""
    kind = name.rpartition(".")[2]
    if kind in ("ids", "bank_ids"):
        return 0, config.vocab_size - 1
    if kind == "tail_ids":
        return 0, config.vocab_size
    if kind in ("written", "bank_order", "bank_heir"):
        return 0, counts.seen
    return (0, 1) if kind in ("strength", "tail_strength", "bank_joined", "bank_route") else None


def state_tensors(config: InfiniConfig, counts: Counts) -> dict[str, TensorSpec]:
    """All tensors of a state with these counts, by name."""
    rows = (counts.batch,)
    specs = {"counts": TensorSpec((4,), "count"), "ids": TensorSpec((*rows, counts.window), "count")}
    if counts.ragged:
        specs |= {name: TensorSpec(rows, "count") for name in ("row_seen", "row_evicted")}
        specs["positions"] = TensorSpec((*rows, counts.window), "count")
    if counts.slots_fed and not counts.pending:
        specs["last_hidden"] = TensorSpec((*rows, config.hidden_size))
    above = first_above(config) if counts.pending else None
    if above is not None:
        named = pending_tensors(config, batch=counts.batch, tokens=counts.pending)
        specs |= {f"pending.{name}": spec for name, spec in named.items()}
    for layer in range(config.num_hidden_layers):
        slots, left = counts.window, counts.evicted > 0
        if above is not None and layer >= above:
            # Where these layers stopped; when what is pending has left their window whole, they hold nothing.
            slots, left = counts.held, counts.held == 0 or counts.seen - counts.pending > counts.held
        inner = layer_tensors(config, layer, batch=counts.batch, slots=slots, left=left)
        specs |= {f"layers.{layer}.{name}": spec for name, spec in inner.items()}
    return specs


def _counts(config: InfiniConfig, tensors: Mapping[str, Tensor]) -> Counts:
    counts = _take(tensors, "counts")
    if tuple(counts.shape) != (4,) or counts.dtype != torch.int64:
        raise StateError(
            f"counts is {counts.dtype} {tuple(counts.shape)}, expected torch.int64 (4,): not a state of this "
            "program."
        )
    batch, slots_fed, seen, evicted = (int(value) for value in counts)
    ids, keys = _take(tensors, "ids"), _take(tensors, "layers.0.k")
    if ids.dim() != 2 or ids.shape[0] != batch or batch < 1 or not 0 <= evicted <= seen <= slots_fed:
        raise StateError(
            f"counts are {batch} rows, {slots_fed} slots fed, {seen} tokens, {evicted} gone from the window, "
            f"and ids has shape {tuple(ids.shape)}; these cannot belong together."
        )
    if keys.dtype not in WEIGHT_TYPES:
        raise StateError(f"layers.0.k is {keys.dtype} in the state; expected a floating-point type.")
    counted = Counts(batch, slots_fed, seen, evicted, ids.shape[1], keys.dtype, "row_seen" in tensors)
    return _with_pending(counted, config, tensors) if "pending.hidden" in tensors else counted


def _with_pending(counts: Counts, config: InfiniConfig, tensors: Mapping[str, Tensor]) -> Counts:
    hidden, above = _take(tensors, "pending.hidden"), first_above(config)
    if above is None or counts.ragged or hidden.dim() != 3 or not 0 < hidden.shape[1] < counts.seen:
        raise StateError(
            f"pending.hidden has shape {tuple(hidden.shape)} in a state of {counts.seen} tokens; this model "
            "expects fewer tokens there, and at least one, or no such tensor."
        )
    keys = _take(tensors, f"layers.{above}.k")
    held = keys.shape[2] if keys.dim() == 4 else -1
    if not 0 <= held <= min(config.window, counts.seen - hidden.shape[1]):
        raise StateError(
            f"layers.{above}.k has shape {tuple(keys.shape)} in the state, beside {hidden.shape[1]} tokens "
            f"that are pending of {counts.seen}; these cannot belong together."
        )
    return replace(counts, pending=hidden.shape[1], held=held)


def _take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise StateError(f"The state has no tensor {name!r}; it was made by another model or cut short.")
    tensor = tensors[name]
    if not isinstance(tensor, Tensor):
        raise StateError(f"{name} is a {type(tensor).__name__} in the state, expected a tensor.")
    return tensor


def _check_tensor(tensors: Mapping[str, Tensor], name: str, spec: TensorSpec, weights: torch.dtype) -> None:
    tensor, dtype = _take(tensors, name), spec.dtype(weights)
    if tuple(tensor.shape) != spec.shape or tensor.dtype != dtype:
        raise StateError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} in the state; this model expects {dtype} "
            f"{spec.shape}."
        )
    # One pass of sums instead of a mask: a NaN or infinity anywhere makes the sum one.
    if dtype.is_floating_point and not bool(tensor.sum(dtype=torch.float64).isfinite()):
        raise StateError(f"{name} holds NaN or infinity in the state; it is damaged.")


def _check_row(config: InfiniConfig, seen: int, evicted: int, held: int) -> None:
    """A row of ``seen`` tokens, ``evicted`` gone, ``held`` in the window: is that the window rule's?"""
    limits = {"window": config.window, "segment": config.segment}
    # Before the last token, or before the next one: a segment may leave as soon as it can.
    allowed = {evicted_before(max(seen - 1, 0), **limits), evicted_before(seen, **limits)}
    if evicted not in allowed or held < seen - evicted:
        expected = max(allowed)
        raise StateError(
            f"The state has seen {seen} tokens, {evicted} of them gone and {held} in the window; this "
            f"model's window {config.window} and segment {config.segment} give {expected} gone and "
            f"{seen - expected} in the window. It was made with other settings."
        )


def _check_rows(config: InfiniConfig, tensors: Mapping[str, Tensor], counts: Counts) -> None:
    seen, evicted = tensors["row_seen"].tolist(), tensors["row_evicted"].tolist()
    # Rows may have been taken out of a larger batch, so that none that is left is as far as ``evicted``.
    if max(seen) != counts.seen or max(evicted) > counts.evicted or min(seen) < 0:
        raise StateError(
            f"row_seen {seen} and row_evicted {evicted} do not agree with the counts: {counts.seen} tokens, "
            f"{counts.evicted} gone."
        )
    for row, positions in enumerate(tensors["positions"]):
        held = positions[positions >= 0].tolist()
        if held != list(range(seen[row] - len(held), seen[row])):
            raise StateError(f"positions of row {row} are not the last of its {seen[row]} tokens, in order.")
        _check_row(config, seen[row], evicted[row], len(held))
