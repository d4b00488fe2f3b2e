"""The six models of the comparison: one decoder, and what it has of the tokens before the present segment.

    local    nothing
    xl       the segment before, as cached keys and values without gradient (Transformer-XL)
    full     no segments: exact attention over the longest length that fits
    linear   the paper's memory in all layers, linear update
    delta    the paper's memory in all layers, linear + delta update
    bank     this project's memory in one layer, three fifths up

All have as many parameters: the memories' own are taken from the MLPs of that model. In the paper a segment
reads the memory as it was before its own tokens are written; ``SegmentBank`` does the same with the bank,
which a chat writes token by token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from infinichat.errors import UsageError
from infinichat.model.bank_memory import BankMemory
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.memories import is_paper
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.lm_model import MEMORY

Kind = Literal["local", "xl", "full", "linear", "delta", "bank"]
KINDS: tuple[Kind, ...] = ("local", "xl", "full", "linear", "delta", "bank")
LABELS: dict[Kind, str] = {
    "local": "local window",
    "xl": "Transformer-XL caching",
    "full": "full attention",
    "linear": "Infini, linear",
    "delta": "Infini, linear + delta",
    "bank": "bank (ours)",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of every model: ``inner`` channels of an MLP, ``segment`` tokens; ``full`` tokens of full attention.
    ``slots``, ``key`` and ``fade`` (widths of a head's key and of a mark) are the bank's; ``gate`` is where
    the paper's gates start, before the sigmoid."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    inner: int = 344
    segment: int = 64
    full: int = 1024
    slots: int = 512
    key: int = 16
    fade: int = 16
    gate: float = 0.0


class SegmentBank(BankMemory):
    """A bank that is read by all tokens of a segment before any of them is written."""

    def _cuts(self, writes: list[int], length: int) -> Iterable[tuple[int, slice | list[int]]]:
        return [(length, writes)] if writes else []


def make(kind: Kind, sizes: Sizes, vocabulary: int) -> InfiniForCausalLM:
    """The untrained model; random numbers come from torch's generator. Raises ``UsageError`` where the
    memory alone would have more parameters than all MLPs."""
    model = InfiniForCausalLM(config_of(kind, sizes, vocabulary))
    for index in model.config.memory_layers:
        layer = model.model.layers[index]
        if kind == "bank":
            layer.memory = SegmentBank(model.config, index)
        elif is_paper(layer.memory):
            nn.init.constant_(layer.memory.beta, sizes.gate)
    return model


def config_of(kind: Kind, sizes: Sizes, vocabulary: int) -> InfiniConfig:
    """The configuration whose model has at most as many parameters as the one without memory, and fewer by
    less than one channel of every MLP."""
    plain = _config("local", sizes, vocabulary, sizes.inner)
    whole = _config(kind, sizes, vocabulary, sizes.inner)
    surplus = parameters(whole) - parameters(plain)
    inner = sizes.inner - -(-surplus // (3 * sizes.hidden * sizes.layers))
    if inner < 1:
        raise UsageError(
            f"the memory of {kind!r} has {surplus:,} parameters, more than all MLPs of this model. Raise "
            "--inner or --hidden, or lower --bank_key and --bank_fade."
        )
    return _config(kind, sizes, vocabulary, inner)


def _config(kind: Kind, sizes: Sizes, vocabulary: int, inner: int) -> InfiniConfig:
    everywhere, one = list(range(sizes.layers)), [round(0.6 * (sizes.layers - 1))]
    segment = sizes.full if kind == "full" else sizes.segment
    layers = {"linear": everywhere, "delta": everywhere, "bank": one}.get(kind, [])
    own: dict[str, Any] = {"memory": kind} if layers else {}
    return InfiniConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        # As torch starts a linear layer; 0.02 is for models ten times as wide.
        initializer_range=(3 * sizes.hidden) ** -0.5,
        window=2 * segment if kind == "xl" else segment,
        segment=segment,
        sinks=0,
        memory_layers=layers,
        memory_trained=bool(layers),
        memory_slots=sizes.slots,
        memory_key_dim=sizes.key,
        memory_fade_dim=sizes.fade,
        **own,
    )


def parameters(config: InfiniConfig) -> int:
    """How many a model of ``config`` has."""
    with torch.device("meta"):
        return count(InfiniForCausalLM(config))[0]


def count(model: nn.Module) -> tuple[int, int]:
    """Parameters in all, and those of the memories."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if MEMORY in name)


@torch.no_grad()
def state_numbers(model: InfiniForCausalLM, kind: Kind) -> int:
    """How many numbers a stream keeps beside the segment that is being read: keys and values, memories,
    counters. Full attention keeps the keys and values of all its length."""
    cache = model.model.new_cache()
    ids = torch.zeros(1, model.config.window, dtype=torch.int64, device=cache.device)
    model(ids, past_key_values=cache, logits_to_keep=1)
    if kind != "full":
        model.model.evict(cache)
    tensors = cache.to_tensors()
    return sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("layers."))


def cached_numbers(config: InfiniConfig, tokens: int) -> int:
    """Numbers of the keys and values of ``tokens`` tokens in all layers."""
    return 2 * tokens * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
