"""A model state as plain data and back: what the store writes and what another process reads.

``dump_cache`` copies an ``InfiniCache`` into bytes named as safetensors names them, with a description of
what made it; ``load_cache`` checks that description and every tensor before it builds a cache from them. No
numpy type is involved, because numpy has no bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from infinichat.errors import StateError
from infinichat.model.cache import InfiniCache
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.protocols import StateDump, TensorRecord

FORMAT = "infini-state-1"

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def state_meta(config: InfiniConfig, *, fingerprint: str, dtype: torch.dtype) -> dict[str, str]:
    """What a state must agree on with the engine that loads it."""
    return {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "window": str(config.window),
        "segment": str(config.segment),
        "dtype": _NAMES[dtype],
    }


def dump_cache(cache: InfiniCache, meta: Mapping[str, str]) -> StateDump:
    """A copy of the whole state; feeding ``cache`` afterwards does not change it."""
    return StateDump({name: _record(tensor) for name, tensor in cache.to_tensors().items()}, dict(meta))


def load_cache(
    dump: StateDump, config: InfiniConfig, meta: Mapping[str, str], *, device: torch.device | str = "cpu"
) -> InfiniCache:
    """The cache that was dumped, on ``device``. Raises ``StateError`` naming the first thing that differs
    from ``meta`` or does not fit ``config``."""
    for key, expected in meta.items():
        got = dump.meta.get(key)
        if got != expected:
            raise StateError(
                f"The state's {key} is {got}, this model's is {expected}. "
                "Next: stream the conversation again with this model."
            )
    tensors = {name: _tensor(name, record) for name, record in dump.tensors.items()}
    cache = InfiniCache.from_tensors(config, tensors, device=device)
    if cache.batch_size != 1 or not cache.uniform:
        raise StateError(
            f"The state holds {cache.batch_size} conversations, or one with padding; expected one without. "
            "Next: stream the conversation again with this model."
        )
    return cache


def _record(tensor: Tensor) -> TensorRecord:
    # reshape(-1) first: a tensor without dimensions cannot be viewed as bytes.
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return TensorRecord(_NAMES[tensor.dtype], tuple(tensor.shape), data)


def _tensor(name: str, record: TensorRecord) -> Tensor:
    dtype = _TYPES.get(record.dtype)
    if dtype is None:
        raise StateError(
            f"The state's {name} has type {record.dtype!r}; expected one of {', '.join(_TYPES)}."
        )
    count = 1
    for size in record.shape:
        count *= size
    if count * dtype.itemsize != len(record.data):
        raise StateError(
            f"The state's {name} has {len(record.data)} bytes, expected {count * dtype.itemsize} for shape "
            f"{tuple(record.shape)}. Next: stream the conversation again."
        )
    if count == 0:
        return torch.empty(record.shape, dtype=dtype)
    return torch.frombuffer(bytearray(record.data), dtype=dtype).reshape(record.shape)
