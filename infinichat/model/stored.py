"""Linear layers and embeddings over weights that are not kept in floating point.

A ``Store`` gives its matrix, or some rows of it, in the type that is asked for, worked out anew each time:
``Blocks`` as they come from a file, or the engine's tiles, which its single tokens are multiplied with too.
One copy of the weights then serves both, a third of what it takes in bfloat16. ``put`` and ``dense`` change a
model from one kind to the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_AT_ONCE = 8192
"""Rows of a matrix in floating point at the same time: all of a layer's, not those of a vocabulary."""

_scratch = threading.local()


class Store(Protocol):
    """A matrix [rows, columns]."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int: ...

    def weight(self, dtype: torch.dtype, first: int = 0, count: int | None = None) -> Tensor:
        """``count`` rows from ``first`` on (all) in ``dtype``, a tensor of the caller's own."""
        ...

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``ids`` [...] as [..., columns] in ``dtype``."""
        ...


class WritesInto(Protocol):
    """A ``Store`` that can write where it is told to."""

    def write(self, out: Tensor, first: int) -> None:
        """Rows from ``first`` on into ``out`` [count, columns]."""
        ...


class Multiplies(Protocol):
    """A ``Store`` that many tokens can be multiplied with directly."""

    def times(self, x: Tensor) -> Tensor | None:
        """x W^T for x [..., columns], with x rounded to 8 bits in groups of 32; None where it cannot."""
        ...


@contextlib.contextmanager
def rounded_inputs() -> Iterator[None]:
    """Within this, in this thread, linear layers may round what comes in to 8 bits (``Multiplies``): for
    tokens whose successors nobody predicts. A prediction from rounded inputs is a little worse."""
    before = getattr(_scratch, "rounding", False)
    _scratch.rounding = True
    try:
        yield
    finally:
        _scratch.rounding = before


class StoredLinear(nn.Module):
    """y = x W^T + bias; ``dtype`` is that of ``weight``, a product has the type of its x."""

    def __init__(self, store: Store, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.store, self.dtype, self.bias = store, dtype, bias

    @property
    def weight(self) -> Tensor:
        """The whole matrix, a copy."""
        return self.store.weight(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.store.shape[0]
        if self.bias is None and getattr(_scratch, "rounding", False) and hasattr(self.store, "times"):
            product: Tensor | None = self.store.times(x)
            if product is not None:
                return product
        parts = []
        for first in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - first)
            bias = None if self.bias is None else self.bias[first : first + count]
            parts.append(F.linear(x, _borrowed(self.store, x.dtype, first, count), bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


class StoredEmbedding(nn.Module):
    """Rows for ids, in ``dtype``."""

    def __init__(self, store: Store, dtype: torch.dtype) -> None:
        super().__init__()
        self.store, self.dtype = store, dtype

    @property
    def weight(self) -> Tensor:
        """The whole matrix, a copy."""
        return self.store.weight(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.store.shape[0]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(f"ids go from {int(ids.min())} to {int(ids.max())}; there are {rows} rows")
        return self.store.rows(ids, self.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


def put(model: nn.Module, name: str, store: Store, dtype: torch.dtype) -> None:
    """Have the linear layer or embedding ``name`` of ``model`` take its weights from ``store``."""
    module = model.get_submodule(name)
    if isinstance(module, StoredLinear | StoredEmbedding):
        module.store = store
    elif isinstance(module, nn.Embedding):
        _replace(model, name, StoredEmbedding(store, dtype))
    elif isinstance(module, nn.Linear):
        _replace(model, name, StoredLinear(store, module.bias, dtype))
    else:
        raise TypeError(f"{name} is a {type(module).__name__}")


def tie(model: Any) -> None:
    """Make head and embedding one matrix where the configuration says so."""
    embedding = model.model.embed_tokens
    if model.config.tie_word_embeddings and isinstance(embedding, StoredEmbedding):
        model.lm_head = StoredLinear(embedding.store, None, embedding.dtype)
    else:
        model.tie_weights()


def stored(model: nn.Module) -> dict[str, StoredLinear | StoredEmbedding]:
    """The modules of this kind in ``model``, by name."""
    kinds = (StoredLinear, StoredEmbedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def dense(model: Any, dtype: torch.dtype, *, keep: type[Any] | None = None) -> None:
    """Back to ordinary modules in ``dtype``, but for those whose store is a ``keep``."""
    for name, module in stored(model).items():
        if keep is not None and isinstance(module.store, keep):
            continue
        rows, columns = module.store.shape
        with torch.device("meta"):
            made: nn.Embedding | nn.Linear
            if isinstance(module, StoredEmbedding):
                made = nn.Embedding(rows, columns)
            else:
                made = nn.Linear(columns, rows, bias=False)
                made.bias = module.bias  # type: ignore[assignment]  # None is allowed
        made.weight = nn.Parameter(module.store.weight(dtype), requires_grad=False)
        _replace(model, name, made.train(module.training))
    if isinstance(model.model.embed_tokens, nn.Embedding) and isinstance(model.lm_head, nn.Linear):
        model.tie_weights()


def parameter_count(model: nn.Module) -> int:
    """Weights of ``model``, those of stores included, each once."""
    stores = {id(module.store): module.store.shape for module in stored(model).values()}
    return sum(p.numel() for p in model.parameters()) + sum(rows * cols for rows, cols in stores.values())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _borrowed(store: Any, dtype: torch.dtype, first: int, count: int) -> Tensor:
    """Rows in memory that this thread uses again for the next matrix: it stays in the processor's cache."""
    if not hasattr(store, "write"):
        rows: Tensor = store.weight(dtype, first, count)
        return rows
    size = count * store.shape[1]
    buffer: Tensor | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.dtype != dtype or buffer.numel() < size:
        buffer = _scratch.buffer = torch.empty(size, dtype=dtype)
    out = buffer[:size].view(count, -1)
    store.write(out, first)
    return out
