"""The state of one conversation (or a batch of them): window, memory and position, per layer.

``InfiniCache`` is what transformers calls ``past_key_values`` and what a snapshot holds. ``to_tensors`` and
``from_tensors`` turn it into named tensors and back, copying both ways, so no snapshot ever changes under its
owner. The model fills it in place; two caches never share memory.

Most conversations are *uniform*: batch rows without padding, all equally long. Then positions are plain
integers and no mask is needed to decode. The first padding that arrives makes a cache ragged for good: each
row then counts its own tokens, and leaves its own segments at its own time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infinichat.attention.memory import MemoryState
from infinichat.attention.window import room
from infinichat.errors import StateError
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.layer_state import LayerState, copied, picked
from infinichat.model.pending import PENDING, Pending, first_above
from infinichat.model.slots import Slots
from infinichat.model.state_check import check_state

PER_ROW = ("row_seen", "row_evicted", "positions", "last_hidden")
"""The tensors, besides ids and layers, that have a row for each conversation of the batch."""


class InfiniCache:
    """State of ``batch_size`` conversations for one model configuration. See the module's docstring.

    ``seen`` and ``evicted`` are the tokens ever fed and those that have left the window: integers while the
    cache is uniform; for a ragged one the per-row tensors ``row_seen``, ``row_evicted`` [B] and the window's
    ``positions`` [B, n] (-1 for padding) hold instead, and ``seen`` is the longest row's. ``last_hidden``
    [B, hidden] is the final hidden state of each row's last token: the vocabulary head of it gives what comes
    next.
    """

    def __init__(
        self,
        config: InfiniConfig,
        batch_size: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = torch.device(device)
        self.slots_fed = 0
        self.seen = 0
        self.evicted = 0
        self.row_seen: Tensor | None = None
        self.row_evicted: Tensor | None = None
        self.positions: Tensor | None = None
        self.sinks_turned: Any = None  # the E that the front slots of k are turned for; None: not yet
        empty = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        self.ids = Slots(empty, dim=1, limit=config.window)
        self.last_hidden: Tensor | None = None
        self.pending: Pending | None = None  # what the layers above the memory have not seen yet
        self.states = [
            LayerState.empty(config, layer, batch=batch_size, dtype=dtype, device=device)
            for layer in range(config.num_hidden_layers)
        ]

    # ---- what callers ask

    @property
    def tokens_seen(self) -> int:
        """Tokens ever fed (of the longest row)."""
        return self.seen

    @property
    def window_tokens(self) -> int:
        """Slots in the exact window now."""
        return self.ids.length

    @property
    def room(self) -> int:
        """Tokens that fit into one forward before the next segment leaves (of any row); at least 1."""
        rows = [self.seen] if self.row_seen is None else self.row_seen.tolist()
        return min(room(seen, window=self.config.window, segment=self.config.segment) for seen in rows)

    @property
    def uniform(self) -> bool:
        """True while no padding has been fed."""
        return self.row_seen is None

    @property
    def live(self) -> list[LayerState]:
        """The states of the layers that have seen every token: all, unless something is pending."""
        return self.states if self.pending is None else self.states[: self.pending.layer]

    @property
    def memories(self) -> dict[int, MemoryState]:
        """The memory of each memory layer."""
        return {i: state.memory for i, state in enumerate(self.states) if state.memory is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of the state as a snapshot would hold it."""
        return sum(tensor.nbytes for tensor in self._named().values())

    # ---- what transformers asks

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots ever fed, padding included: how transformers counts the past."""
        return self.slots_fed

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No limit."""
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return True

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * self.config.num_hidden_layers

    @property
    def max_batch_size(self) -> int:
        return self.batch_size

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        return f"InfiniCache(tokens_seen={self.seen}, window={self.window_tokens}, evicted={self.evicted})"

    def reset(self) -> None:
        """Forget everything."""
        fresh = InfiniCache(self.config, self.batch_size, dtype=self.dtype, device=self.device)
        self.__dict__.update(fresh.__dict__)

    def crop(self, max_length: int) -> None:
        """Keep at most ``max_length`` slots. A memory cannot be un-written, so this raises ``StateError``
        unless there are no more than that anyway."""
        if not 0 <= self.slots_fed <= max_length:
            raise StateError(
                f"crop to {max_length} tokens was asked of a state that has seen {self.slots_fed}; a "
                "compressive memory cannot be un-written. Keep a clone() from before and use that."
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices`` [N], in that order."""
        rows = indices.to(self.device)
        self.batch_size = rows.shape[0]
        self.ids.select_rows(rows)
        for name in PER_ROW:
            setattr(self, name, picked(getattr(self, name), rows))
        if self.row_seen is not None:
            self.seen = int(self.row_seen.max())
        for state in self.states:
            state.select_rows(rows)
        self.pending = None if self.pending is None else self.pending.select_rows(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        rows = torch.arange(self.batch_size, device=self.device).repeat_interleave(repeats)
        self.batch_select_indices(rows)

    # ---- copies

    def clone(self) -> InfiniCache:
        """An independent copy outside the graph: feeding one never changes the other."""
        copy = object.__new__(InfiniCache)
        copy.__dict__.update(self.__dict__)
        copy.ids = self.ids.clone()
        copy.states = [state.clone() for state in self.states]
        copy.pending = None if self.pending is None else self.pending.clone()
        for name in PER_ROW:
            setattr(copy, name, copied(getattr(self, name)))
        return copy

    def detach(self) -> None:
        """Cut the whole state from the autograd graph (truncated backpropagation)."""
        for state in self.states:
            state.detach()
        if self.last_hidden is not None:
            self.last_hidden = self.last_hidden.detach()
        self.pending = None if self.pending is None else self.pending.clone()

    def flowing(self) -> list[Tensor]:
        """The tensors that gradients flow through from these tokens into later ones, in an order that any
        copy of this state shares; of a ``clone`` they are leaves of the graph."""
        return [tensor for state in self.states for tensor in state.flowing()]

    def to_tensors(self) -> dict[str, Tensor]:
        """Copies of everything, by name, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._named().items()}

    @classmethod
    def from_tensors(
        cls, config: InfiniConfig, tensors: Mapping[str, Tensor], *, device: torch.device | str = "cpu"
    ) -> InfiniCache:
        """A state from ``to_tensors``' result, copied.

        Raises ``StateError`` naming the tensor when one is missing, unknown, damaged, or does not fit
        ``config``.
        """
        counts = check_state(config, tensors)
        own = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        cache = cls(config, counts.batch, dtype=counts.dtype, device=device)
        cache.slots_fed, cache.seen, cache.evicted = counts.slots_fed, counts.seen, counts.evicted
        for name in PER_ROW:
            setattr(cache, name, own.get(name))
        cache.ids = Slots(own["ids"], dim=1, limit=config.window)
        first = first_above(config)
        if counts.pending and first is not None:
            cache.pending = Pending(first, *(own[f"pending.{name}"] for name in PENDING))
        for index in range(config.num_hidden_layers):
            prefix = f"layers.{index}."
            inner = {name.removeprefix(prefix): own[name] for name in own if name.startswith(prefix)}
            cache.states[index] = LayerState.of(inner, config)
        return cache

    def _named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {
            "counts": torch.tensor([self.batch_size, self.slots_fed, self.seen, self.evicted]),
            "ids": self.ids.content,
        }
        for name in PER_ROW:
            value = getattr(self, name)
            if value is not None:
                named[name] = value
        if self.pending is not None:
            named |= {f"pending.{name}": tensor for name, tensor in self.pending.named().items()}
        for index, state in enumerate(self.states):
            named |= {f"layers.{index}.{name}": tensor for name, tensor in state.named().items()}
        return named
