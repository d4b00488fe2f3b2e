"""How near to what this machine can do: the bytes and operations that a token needs, and the machine's rates.

A token's time is at least its bytes over the memory's bandwidth and its operations over the rate of
arithmetic, whichever takes longer: that is the roof. Both rates are measured here, in the process and on the
threads that run the engine: bytes by summing more memory than any cache holds, operations by the products of
whole segments in the number format that text is read in. What is needed is counted from the model itself:
every weight once (for single tokens in the format that they are packed in), keys and values of the window,
and two operations for each weight and each attended number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from infinichat.bench.wire import Task
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.kernels import PlainStep
from infinichat.engine.native import NativeStep
from infinichat.model.pending import first_above
from infinichat.model.stored import StoredEmbedding, StoredLinear

BANDWIDTH_BYTES = 256 * 2**20
_ROUNDS = 5
_RARE = (".fade", ".novelty", ".adapters.")
"""In the names of a memory's parameters that only a few tokens are multiplied with."""


@dataclass(frozen=True, slots=True)
class Roof:
    """What one token needs, and what the machine does in a second."""

    bytes: float
    operations: float
    bytes_per_s: float
    operations_per_s: float

    @property
    def tokens_per_s(self) -> float:
        """The most that this machine can do."""
        return 1 / max(self.bytes / self.bytes_per_s, self.operations / self.operations_per_s)


def machine_rates(dtype: torch.dtype, rows: int) -> tuple[float, float]:
    """Bytes/s read from memory, and operations/s of products of ``rows`` tokens in ``dtype``."""
    memory = torch.ones(BANDWIDTH_BYTES // 4)
    x, weight = torch.ones(rows, 1024, dtype=dtype), torch.ones(4096, 1024, dtype=dtype)
    read_s = _best_seconds(lambda: memory.sum())
    product_s = _best_seconds(lambda: nn.functional.linear(x, weight))
    return memory.nbytes / read_s, 2 * rows * weight.numel() / product_s


def needed(engine: InfiniEngine, task: Task, history: int) -> tuple[float, float]:
    """Bytes and operations of a token: of an answer after ``history`` tokens ("decode"), or on average of so
    many that are read ("prefill"; "read": without the layers above the memory)."""
    model, config = engine.model, engine.model.config
    layers = config.num_hidden_layers
    if task == "read":
        layers = first_above(config) or layers
    weights = {
        name: _elements(module)
        for name, module in model.model.named_modules()
        if isinstance(module, nn.Linear | StoredLinear) and ".memory." not in name
    }
    in_layers = sum(size for name, size in weights.items() if int(name.split(".")[1]) < layers)
    memory = {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".memory." in name and not any(part in name for part in _RARE)
    }
    in_memory = sum(parameter.numel() for parameter in memory.values())
    head = _elements(model.lm_head) if task == "decode" else 0
    slots = float(min(history, config.window)) if task == "decode" else _mean_slots(history, config.window)
    heads = config.num_attention_heads * config.head_dim
    operations = 2.0 * (in_layers + in_memory + head) + 4.0 * slots * heads * layers
    number = torch.finfo(model.model.norm.weight.dtype).bits // 8
    window = 2 * slots * config.num_key_value_heads * config.head_dim * layers * number
    of_memory = sum(parameter.nbytes for parameter in memory.values())
    if task == "decode":
        return _packed_bytes(engine) + of_memory + window, operations
    # A segment's tokens share the weights.
    return (in_layers * number + of_memory) / config.segment + window / config.segment, operations


def roof(engine: InfiniEngine, task: Task, history: int, rates: tuple[float, float]) -> Roof:
    """Needs and rates together."""
    return Roof(*needed(engine, task, history), *rates)


def _mean_slots(history: int, window: int) -> float:
    """Slots that a token attends to, on average over the first ``history``."""
    filling = min(history, window)
    return (filling * filling / 2 + (history - filling) * window) / history


def _elements(module: nn.Module) -> int:
    if isinstance(module, StoredLinear | StoredEmbedding):
        rows, columns = module.store.shape
        return rows * columns
    assert isinstance(module, nn.Linear)
    return module.weight.numel()


def _packed_bytes(engine: InfiniEngine) -> int:
    """All weights that a single token is multiplied with, as they are packed."""
    if isinstance(engine.step, NativeStep | PlainStep):
        return engine.step.nbytes
    own = {id(p): p for name, p in engine.model.named_parameters() if ".memory." not in name}
    return sum(parameter.nbytes for parameter in own.values())


@torch.inference_mode()
def _best_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
