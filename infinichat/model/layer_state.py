"""One layer's part of a conversation's state, and the table of the tensors it consists of.

``layer_tensors`` is the only place that says which tensors a layer has, in which shape: empty states, copies
and the checks of loaded ones all follow it. What the tensors mean:

    k, v         the window [B, Hkv, n, D]; keys rotated at their position
    sink_k/v     the first tokens' keys (rotated at their position) and values [B, Hkv, sinks, D], kept when
                 their segment leaves the window
    memory_k     what the window's tokens will be written under. Recall: projected keys [B, n, H * Dk]; bank:
                 projected keys and marks [B, n, H * Dk + F]; paper: keys without position [B, Hkv, n, D]
    strength     their write strengths [B, n] (recall); of the tokens before each of them (bank), to which
                 then memory_k belongs as well
    tail         the layer's last inputs [B, taps, C], for the convolutions (recall, bank)
    tail_tokens  the last tokens' embeddings [B, taps, C] (bank)
    tail_ids     the last token's id and one, 0 for no token [B, 1, 1] (bank)
    tail_key     the last tokens' projections [B, 2, H * Dk], the keys of those after them (bank)
    tail_around  what those were projected from [B, 2, 10 C], for the marks of those after them (bank)
    tail_gate    the last token's write gate before it is cut [B, 1, 1] (bank)
    tail_strength  how strongly the token before that was written [B, 1, 1] (bank)
    tail_recent  the last tokens' embeddings [B, RECENT - 1, C], for topic heads (bank)
    tail_salient  how much each of those stands out, 0 for no token [B, RECENT - 1, heads] (bank)
    bank_*       the exact pairs, ``infinichat.attention.bank.BankState`` (bank)
    M, z, written  the memory itself (``infinichat.attention.memory.MemoryState``)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from infinichat.attention.bank import BankState
from infinichat.attention.memory import MemoryState
from infinichat.attention.topics import RECENT
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.slots import Slots

RECALL_TAPS = 4
"""States before the present one that the recall and bank memories look at."""

TOKEN_TAPS = 5
"""Tokens before the present one whose embeddings the bank memory looks at."""

BANK_TENSORS = ("keys", "marks", "values", "ids", "faded", "order", "joined", "route", "heir")
TAILS = (
    "tail",
    "tail_tokens",
    "tail_ids",
    "tail_key",
    "tail_around",
    "tail_gate",
    "tail_strength",
    "tail_recent",
    "tail_salient",
)
PLAIN_TENSORS = ("sink_k", "sink_v", *TAILS)
"""The fields of a layer's state that are single tensors or None."""

Precision = Literal["weights", "wide", "count"]
"""A tensor's type: the weights'; float32 (float64 under float64 weights); int64."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor of a state must look like."""

    shape: tuple[int, ...]
    precision: Precision = "weights"

    def dtype(self, weights: torch.dtype) -> torch.dtype:
        """The type under weights of type ``weights``."""
        if self.precision == "count":
            return torch.int64
        return wide_dtype(weights) if self.precision == "wide" else weights


def wide_dtype(weights: torch.dtype) -> torch.dtype:
    """The type that memories have under weights of type ``weights``."""
    return torch.float64 if weights == torch.float64 else torch.float32


def layer_tensors(
    config: InfiniConfig, layer: int, *, batch: int, slots: int, left: bool
) -> dict[str, TensorSpec]:
    """The tensors of ``layer`` for ``slots`` tokens in the window; ``left``: a segment has left it."""
    kv = (batch, config.num_key_value_heads)
    specs = {name: TensorSpec((*kv, slots, config.head_dim)) for name in ("k", "v")}
    if left and config.sinks:
        specs |= {name: TensorSpec((*kv, config.sinks, config.head_dim)) for name in ("sink_k", "sink_v")}
    if layer not in config.memory_layers or not config.memory_trained:
        return specs
    if config.memory in ("recall", "bank"):
        heads, value_dim = config.memory_heads, config.memory_value_dim
        # Of a bank also the marks and how new a token sounds.
        more = config.memory_fade_dim + 1 if config.memory == "bank" else 0
        width = heads * config.memory_key_dim + more
        specs["memory_k"] = TensorSpec((batch, slots, width), "wide")
        specs["strength"] = TensorSpec((batch, slots), "wide")
        specs["tail"] = TensorSpec((batch, RECALL_TAPS, config.hidden_size), "wide")
    else:
        heads, value_dim = config.num_key_value_heads, config.head_dim
        specs["memory_k"] = TensorSpec((*kv, slots, config.head_dim))
        specs["z"] = TensorSpec((batch, heads, config.memory_features), "wide")
    if config.memory == "bank":
        specs |= _bank_tensors(config, batch)
    specs["M"] = TensorSpec((batch, heads, config.memory_features, value_dim), "wide")
    specs["written"] = TensorSpec((batch,), "count")
    return specs


def _bank_tensors(config: InfiniConfig, batch: int) -> dict[str, TensorSpec]:
    width, hidden, size = config.memory_heads * config.memory_key_dim, config.hidden_size, config.memory_slots
    recent = {
        "tail_recent": TensorSpec((batch, RECENT - 1, hidden), "wide"),
        "tail_salient": TensorSpec((batch, RECENT - 1, config.memory_topics), "wide"),
    }
    return (recent if config.memory_topics else {}) | {
        "tail_tokens": TensorSpec((batch, TOKEN_TAPS, hidden), "wide"),
        "tail_ids": TensorSpec((batch, 1, 1), "count"),
        "tail_key": TensorSpec((batch, 2, width), "wide"),
        "tail_around": TensorSpec((batch, 2, (RECALL_TAPS + TOKEN_TAPS + 1) * hidden), "wide"),
        "tail_gate": TensorSpec((batch, 1, 1), "wide"),
        "tail_strength": TensorSpec((batch, 1, 1), "wide"),
        "bank_keys": TensorSpec((batch, size, width), "wide"),
        "bank_marks": TensorSpec((batch, size, config.memory_fade_dim), "wide"),
        "bank_values": TensorSpec((batch, size, hidden), "wide"),
        "bank_ids": TensorSpec((batch, size), "count"),
        "bank_faded": TensorSpec((batch, size), "wide"),
        "bank_order": TensorSpec((batch, size), "count"),
        "bank_joined": TensorSpec((batch, size), "count"),
        "bank_route": TensorSpec((batch, size), "wide"),
        "bank_heir": TensorSpec((batch, size), "count"),
    }


@dataclass(slots=True)
class LayerState:
    """The tensors of the module's docstring; the growing ones as ``Slots``, ``k`` and ``v`` with the sinks,
    turned to stand right before the window, as their front."""

    k: Slots
    v: Slots
    sink_k: Tensor | None = None
    sink_v: Tensor | None = None
    memory: MemoryState | None = None
    memory_k: Slots | None = None
    strength: Slots | None = None
    tail: Tensor | None = None
    tail_tokens: Tensor | None = None
    tail_ids: Tensor | None = None
    tail_key: Tensor | None = None
    tail_around: Tensor | None = None
    tail_gate: Tensor | None = None
    tail_strength: Tensor | None = None
    tail_recent: Tensor | None = None
    tail_salient: Tensor | None = None
    bank: BankState | None = None

    @classmethod
    def empty(
        cls,
        config: InfiniConfig,
        layer: int,
        *,
        batch: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> LayerState:
        """Nothing seen, nothing written."""
        specs = layer_tensors(config, layer, batch=batch, slots=0, left=False)
        named = {
            name: torch.zeros(spec.shape, dtype=spec.dtype(dtype), device=device)
            for name, spec in specs.items()
        }
        return cls.of(named, config)

    @classmethod
    def of(cls, named: dict[str, Tensor], config: InfiniConfig) -> LayerState:
        """From tensors as ``layer_tensors`` lists them. Takes them over: they must be the state's own."""

        def window(name: str, dim: int, front: int = 0) -> Slots:
            content = named[name]
            shape = [*content.shape[:dim], front, *content.shape[dim + 1 :]]
            buffer = torch.cat((content.new_zeros(shape), content), dim=dim) if front else content
            return Slots(buffer, dim=dim, limit=config.window, front=front)

        state = cls(window("k", 2, config.sinks), window("v", 2, config.sinks))
        state.sink_k, state.sink_v = named.get("sink_k"), named.get("sink_v")
        if "M" in named:
            state.memory = MemoryState(named["M"], named.get("z"), named["written"])
            state.memory_k = window("memory_k", 1 if "strength" in named else 2)
        if "strength" in named:
            state.strength, state.tail = window("strength", 1), named["tail"]
        if "bank_keys" in named:
            for name in TAILS[1:]:
                setattr(state, name, named.get(name))
            state.bank = BankState(*(named[f"bank_{name}"] for name in BANK_TENSORS))
        return state

    def named(self) -> dict[str, Tensor]:
        """The tensors by name; views, not copies."""
        named = {"k": self.k.content, "v": self.v.content}
        if self.memory_k is not None:
            named["memory_k"] = self.memory_k.content
        if self.strength is not None:
            named["strength"] = self.strength.content
        if self.memory is not None:
            named |= {"M": self.memory.M, "written": self.memory.written}
            if self.memory.z is not None:
                named["z"] = self.memory.z
        if self.bank is not None:
            named |= {f"bank_{name}": getattr(self.bank, name) for name in BANK_TENSORS}
        optional = {name: getattr(self, name) for name in PLAIN_TENSORS}
        return named | {name: tensor for name, tensor in optional.items() if tensor is not None}

    def slots(self) -> list[Slots]:
        """All growing tensors of this layer; they always have equal length."""
        return [s for s in (self.k, self.v, self.memory_k, self.strength) if s is not None]

    def flowing(self) -> list[Tensor]:
        """What gradients flow through into the tokens to come: every floating-point tensor whole, in a fixed
        order. Of a ``clone`` these are leaves of the graph."""
        found = [slots.whole for slots in self.slots()]
        found += [tensor for name in PLAIN_TENSORS if (tensor := getattr(self, name)) is not None]
        if self.memory is not None:
            found += [self.memory.M] if self.memory.z is None else [self.memory.M, self.memory.z]
        if self.bank is not None:
            found += self.bank.tensors()
        return [tensor for tensor in found if tensor.is_floating_point()]

    def clone(self) -> LayerState:
        """A copy that shares nothing, outside the graph."""
        copy = LayerState(self.k.clone(), self.v.clone())
        copy.memory = None if self.memory is None else self.memory.detach().clone()
        copy.memory_k = None if self.memory_k is None else self.memory_k.clone()
        copy.strength = None if self.strength is None else self.strength.clone()
        for name in PLAIN_TENSORS:
            setattr(copy, name, copied(getattr(self, name)))
        copy.bank = None if self.bank is None else self.bank.clone()
        return copy

    def detach(self) -> None:
        """Cut from the graph."""
        for slots in self.slots():
            slots.detach()
        for name in PLAIN_TENSORS:
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.detach())
        self.memory = None if self.memory is None else self.memory.detach()
        self.bank = None if self.bank is None else self.bank.detach()

    def select_rows(self, rows: Tensor) -> None:
        """Keep the batch rows ``rows`` [N], in that order."""
        for slots in self.slots():
            slots.select_rows(rows)
        for name in PLAIN_TENSORS:
            setattr(self, name, picked(getattr(self, name), rows))
        self.bank = None if self.bank is None else self.bank.select_rows(rows)
        if self.memory is not None:
            M, z, written = self.memory.M, self.memory.z, self.memory.written
            self.memory = MemoryState(M.index_select(0, rows), picked(z, rows), written.index_select(0, rows))


def copied(tensor: Tensor | None) -> Tensor | None:
    """A copy outside the graph."""
    return None if tensor is None else tensor.detach().clone()


def picked(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    """The batch rows ``rows`` of a tensor."""
    return None if tensor is None else tensor.index_select(0, rows)
