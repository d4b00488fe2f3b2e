"""The state of one conversation (or a batch of them): window, memory and position, per layer.

``InfiniCache`` is what transformers calls ``past_key_values`` and what a snapshot holds. ``to_tensors`` and
``from_tensors`` turn it into named tensors and back, copying both ways, so no snapshot ever changes under its
owner. The model fills it in place; two caches never share memory.

Most conversations are *uniform*: batch rows without padding, all equally long. Then positions are plain
integers and no mask is needed to decode. The first padding that arrives makes a cache ragged for good: each
row then counts its own tokens, and leaves its own segments at its own time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from infinichat.attention.memory import MemoryState
from infinichat.attention.window import room
from infinichat.errors import StateError
from infinichat.model.configuration_infini import InfiniConfig


class Slots:
    """A tensor that grows at its end and shrinks at its front along one dimension.

    Without gradients it appends in place into spare room (decoding must not copy the window at every token);
    with gradients it concatenates, so that autograd sees plain values. ``front`` slots at the start are kept
    apart from the content, for the attention sinks.
    """

    __slots__ = ("_buffer", "dim", "front", "length", "limit")

    def __init__(self, buffer: Tensor, *, dim: int, limit: int, front: int = 0) -> None:
        self._buffer = buffer
        self.dim = dim
        self.front = front
        self.limit = limit
        self.length = buffer.shape[dim] - front

    @property
    def content(self) -> Tensor:
        """The filled slots, oldest first; a view."""
        return self._buffer.narrow(self.dim, self.front, self.length)

    @property
    def with_front(self) -> Tensor:
        """The front slots and the filled ones; a view."""
        return self._buffer.narrow(self.dim, 0, self.front + self.length)

    def append(self, new: Tensor) -> None:
        """Add slots at the end."""
        end = self.front + self.length
        count = new.shape[self.dim]
        if torch.is_grad_enabled() and (new.requires_grad or self._buffer.requires_grad):
            self._buffer = torch.cat((self._buffer.narrow(self.dim, 0, end), new), dim=self.dim)
        else:
            if end + count > self._buffer.shape[self.dim]:
                self._grow(end + count)
            self._buffer.narrow(self.dim, end, count).copy_(new)
        self.length += count

    def drop(self, count: int) -> None:
        """Remove the oldest ``count`` slots; the front stays."""
        kept = self.length - count
        old = self._buffer.narrow(self.dim, self.front + count, kept)
        if torch.is_grad_enabled() and self._buffer.requires_grad:
            self._buffer = torch.cat((self._buffer.narrow(self.dim, 0, self.front), old), dim=self.dim)
        else:
            self._buffer.narrow(self.dim, self.front, kept).copy_(old.clone())
        self.length = kept

    def set_front(self, value: Tensor) -> None:
        """Replace the front slots."""
        if torch.is_grad_enabled() and (value.requires_grad or self._buffer.requires_grad):
            rest = self._buffer.narrow(self.dim, self.front, self._buffer.shape[self.dim] - self.front)
            self._buffer = torch.cat((value, rest), dim=self.dim)
        else:
            self._buffer.narrow(self.dim, 0, self.front).copy_(value)

    def select_rows(self, rows: Tensor) -> None:
        """Keep and reorder batch rows."""
        self._buffer = self._buffer.index_select(0, rows)

    def detach(self) -> None:
        """Cut from the graph, in a buffer of its own."""
        self._buffer = self._buffer.detach().clone()

    def clone(self) -> Slots:
        """An independent copy without spare room."""
        copy = Slots(self.with_front.clone(), dim=self.dim, limit=self.limit, front=self.front)
        return copy

    def _grow(self, needed: int) -> None:
        # Doubling up to the window keeps short conversations small and appends amortised.
        size = max(needed, min(2 * needed, self.front + self.limit))
        shape = list(self._buffer.shape)
        shape[self.dim] = size
        grown = self._buffer.new_zeros(shape)
        filled = self.front + self.length
        grown.narrow(self.dim, 0, filled).copy_(self._buffer.narrow(self.dim, 0, filled))
        self._buffer = grown


@dataclass(slots=True)
class LayerState:
    """One layer's part. ``k`` (rotated) and ``v`` hold the window, [B, Hkv, sinks + n, D]; ``sink_k`` (rotated
    at its natural position) and ``sink_v`` [B, Hkv, sinks, D] are set once a segment has left. A layer with a
    memory also has what its tokens in the window will be written with: ``memory_k`` (recall: projected keys
    [B, n, H * Dk]; paper: keys without position [B, Hkv, n, D]), ``strength`` [B, n] (recall), and ``tail``
    [B, taps, hidden], the last inputs of the layer, for the convolutions (recall)."""

    k: Slots
    v: Slots
    sink_k: Tensor | None = None
    sink_v: Tensor | None = None
    memory: MemoryState | None = None
    memory_k: Slots | None = None
    strength: Slots | None = None
    tail: Tensor | None = None

    def slots(self) -> list[Slots]:
        """All growing tensors of this layer; they always have equal length."""
        return [s for s in (self.k, self.v, self.memory_k, self.strength) if s is not None]


class InfiniCache(Cache):
    """State of ``batch_size`` conversations for one model configuration. See the module's docstring.

    ``seen`` and ``evicted`` are the tokens ever fed and those that have left the window: integers while the
    cache is uniform; for a ragged one the per-row tensors ``row_seen``, ``row_evicted`` [B] and the window's
    ``positions`` [B, n] (-1 for padding) hold instead, and ``seen`` is the longest row's.
    """

    batch_size: int = 1  # a property in transformers' Cache, worked out from layers that are not used here
    row_seen: Tensor | None
    row_evicted: Tensor | None
    positions: Tensor | None
    last_hidden: Tensor | None

    def __init__(
        self,
        config: InfiniConfig,
        batch_size: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        # Deliberately not Cache.__init__: its per-layer key-value objects are not used here.
        self.config = config
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = torch.device(device)
        self.layers: list[Any] = []
        self.slots_fed = 0
        self.seen = 0
        self.evicted = 0
        self.row_seen: Tensor | None = None
        self.row_evicted: Tensor | None = None
        self.positions: Tensor | None = None
        self.sinks_turned: Any = None  # the E that the front slots of k are turned for; None: not yet
        self.ids = Slots(torch.zeros(batch_size, 0, dtype=torch.int64, device=device), dim=1, limit=config.window)
        self.last_hidden: Tensor | None = None
        self.states = [self._empty_layer(layer) for layer in range(config.num_hidden_layers)]

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
        """Tokens that fit into one forward before the next segment leaves; at least 1."""
        return room(self.seen, window=self.config.window, segment=self.config.segment)

    @property
    def uniform(self) -> bool:
        """True while no padding has been fed."""
        return self.row_seen is None

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
        """A memory cannot be un-written: only cropping to the present length is possible."""
        if max_length not in (self.slots_fed, -self.slots_fed) or max_length < 0:
            raise StateError(
                f"crop to {max_length} tokens was asked of a state that has seen {self.slots_fed}; a compressive "
                "memory cannot be un-written. Keep a clone() from before and use that."
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices`` [N], in that order."""
        rows = indices.to(self.device)
        self.batch_size = rows.shape[0]
        self.ids.select_rows(rows)
        for name in ("row_seen", "row_evicted", "positions", "last_hidden"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, rows))
        for state in self.states:
            for slots in state.slots():
                slots.select_rows(rows)
            for name in ("sink_k", "sink_v", "tail"):
                value = getattr(state, name)
                if value is not None:
                    setattr(state, name, value.index_select(0, rows))
            if state.memory is not None:
                memory = state.memory
                z = None if memory.z is None else memory.z.index_select(0, rows)
                state.memory = MemoryState(
                    memory.M.index_select(0, rows), z, memory.written.index_select(0, rows)
                )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        rows = torch.arange(self.batch_size, device=self.device).repeat_interleave(repeats)
        self.batch_select_indices(rows)

    # ---- copies

    def clone(self) -> InfiniCache:
        """An independent copy: feeding one never changes the other."""
        return InfiniCache.from_tensors(self.config, self.to_tensors(), device=self.device)

    def detach(self) -> None:
        """Cut the whole state from the autograd graph (truncated backpropagation)."""
        for state in self.states:
            for slots in state.slots():
                slots.detach()
            for name in ("sink_k", "sink_v", "tail"):
                value = getattr(state, name)
                if value is not None:
                    setattr(state, name, value.detach())
            if state.memory is not None:
                state.memory = state.memory.detach()
        if self.last_hidden is not None:
            self.last_hidden = self.last_hidden.detach()

    def to_tensors(self) -> dict[str, Tensor]:
        """Copies of everything, by name, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._named().items()}

    @classmethod
    def from_tensors(
        cls, config: InfiniConfig, tensors: dict[str, Tensor], *, device: torch.device | str = "cpu"
    ) -> InfiniCache:
        """A state from ``to_tensors``' result, copied.

        Raises ``StateError`` naming the tensor when one is missing, unknown, or of another shape or type.
        """
        counts = _take(tensors, "counts")
        if counts.shape != (4,):
            raise StateError(
                f"counts has shape {tuple(counts.shape)}, expected (4,): not a state of this program."
            )
        batch, slots_fed, seen, evicted = (int(value) for value in counts)
        dtype = _take(tensors, "layers.0.k").dtype
        cache = cls(config, batch, dtype=dtype, device=device)
        cache.slots_fed, cache.seen, cache.evicted = slots_fed, seen, evicted
        window = _take(tensors, "ids").shape[-1]
        if "row_seen" in tensors:
            for name, shape in (("row_seen", (batch,)), ("row_evicted", (batch,)), ("positions", (batch, window))):
                setattr(cache, name, _checked(tensors, name, shape, torch.int64).to(device, copy=True))
        if "last_hidden" in tensors:
            hidden = _checked(tensors, "last_hidden", (batch, config.hidden_size), None)
            cache.last_hidden = hidden.to(device, copy=True)
        cache.ids.append(_checked(tensors, "ids", (batch, window), torch.int64).to(device))
        for index, state in enumerate(cache.states):
            _fill_layer(state, tensors, f"layers.{index}.", window, evicted > 0, cache)
        unknown = sorted(set(tensors) - set(cache._named()))
        if unknown:
            raise StateError(f"The state has {unknown[0]!r}, which this model has no place for.")
        return cache

    # ---- inside

    def _named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {
            "counts": torch.tensor([self.batch_size, self.slots_fed, self.seen, self.evicted]),
            "ids": self.ids.content,
        }
        for name in ("row_seen", "row_evicted", "positions", "last_hidden"):
            value = getattr(self, name)
            if value is not None:
                named[name] = value
        for index, state in enumerate(self.states):
            prefix = f"layers.{index}."
            named[prefix + "k"], named[prefix + "v"] = state.k.content, state.v.content
            for name in ("sink_k", "sink_v", "tail"):
                value = getattr(state, name)
                if value is not None:
                    named[prefix + name] = value
            for name in ("memory_k", "strength"):
                slots = getattr(state, name)
                if slots is not None:
                    named[prefix + name] = slots.content
            if state.memory is not None:
                named[prefix + "M"], named[prefix + "written"] = state.memory.M, state.memory.written
                if state.memory.z is not None:
                    named[prefix + "z"] = state.memory.z
        return named

    def _empty_layer(self, layer: int) -> LayerState:
        config, batch = self.config, self.batch_size
        kv = (batch, config.num_key_value_heads, config.sinks, config.head_dim)

        def slots(shape: tuple[int, ...], dim: int, dtype: torch.dtype, front: int = 0) -> Slots:
            empty = torch.zeros(shape, dtype=dtype, device=self.device)
            return Slots(empty, dim=dim, limit=config.window, front=front)

        state = LayerState(slots(kv, 2, self.dtype, config.sinks), slots(kv, 2, self.dtype, config.sinks))
        if layer not in config.memory_layers or not config.memory_trained:
            return state
        if config.memory == "recall":
            heads, value_dim = config.memory_heads, config.memory_value_dim
            width = heads * config.memory_key_dim
            state.memory_k = slots((batch, 0, width), 1, torch.float32)
            state.strength = slots((batch, 0), 1, torch.float32)
            state.tail = torch.zeros(
                batch, RECALL_TAPS, config.hidden_size, dtype=torch.float32, device=self.device
            )
        else:
            heads, value_dim = config.num_key_value_heads, config.head_dim
            state.memory_k = slots((batch, heads, 0, config.head_dim), 2, self.dtype)
        state.memory = MemoryState.empty(
            batch,
            heads,
            config.memory_features,
            value_dim,
            normalised=config.memory != "recall",
            device=self.device,
        )
        return state


RECALL_TAPS = 4
"""States before the present one that the recall memory's convolutions look at."""


def _take(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise StateError(f"The state has no tensor {name!r}; it was made by another model or cut short.")
    return tensors[name]


def _checked(
    tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype | None
) -> Tensor:
    tensor = _take(tensors, name)
    if tuple(tensor.shape) != shape or (dtype is not None and tensor.dtype != dtype):
        raise StateError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} in the state; this model expects "
            f"{dtype or tensor.dtype} {shape}."
        )
    return tensor


def _fill_layer(
    state: LayerState, tensors: dict[str, Tensor], prefix: str, window: int, left: bool, cache: InfiniCache
) -> None:
    config, batch, device, dtype = cache.config, cache.batch_size, cache.device, cache.dtype
    kv = (batch, config.num_key_value_heads, window, config.head_dim)
    state.k.append(_checked(tensors, prefix + "k", kv, dtype).to(device))
    state.v.append(_checked(tensors, prefix + "v", kv, dtype).to(device))
    if left and config.sinks:
        shape = (*kv[:2], config.sinks, kv[3])
        state.sink_k = _checked(tensors, prefix + "sink_k", shape, dtype).to(device, copy=True)
        state.sink_v = _checked(tensors, prefix + "sink_v", shape, dtype).to(device, copy=True)
    if state.memory is None or state.memory_k is None:
        return
    M = _checked(tensors, prefix + "M", tuple(state.memory.M.shape), torch.float32).to(device, copy=True)
    written = _checked(tensors, prefix + "written", (batch,), torch.int64).to(device, copy=True)
    z = None
    if state.memory.z is not None:
        z = _checked(tensors, prefix + "z", tuple(state.memory.z.shape), torch.float32).to(device, copy=True)
    state.memory = MemoryState(M, z, written)
    shape = list(state.memory_k.content.shape)
    shape[state.memory_k.dim] = window
    pending = _checked(tensors, prefix + "memory_k", tuple(shape), state.memory_k.content.dtype)
    state.memory_k.append(pending.to(device))
    if state.strength is not None and state.tail is not None:
        strength = _checked(tensors, prefix + "strength", (batch, window), torch.float32)
        state.strength.append(strength.to(device))
        tail = _checked(tensors, prefix + "tail", tuple(state.tail.shape), torch.float32)
        state.tail = tail.to(device, copy=True)
