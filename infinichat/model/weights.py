"""Reading a model's weights, tensor by tensor, and putting them into a model, each exactly once.

``read_weights`` streams a GGUF or a folder's safetensors files under transformers' names; ``fill`` puts what
comes into a model that was built without memory of its own (torch's meta device). Nothing is skipped in
silence: a missing, unknown, doubled or misshapen tensor and a weight that is not a number are refused by
name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.blocks import Blocks
from infinichat.model.gguf import gguf_tensors
from infinichat.model.gguf_file import GgufFile, read_gguf_header
from infinichat.model.safetensors_file import check_safetensors, refuse_pickle, weight_files
from infinichat.model.stored import put

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as it was read, a copy independent of ``file``."""

    file: Path
    name: str
    tensor: Tensor | Blocks


Precision = Callable[[str], torch.dtype]
"""The dtype that a tensor of this name is wanted in."""


def read_weights(
    path: Path, *, dtype: Precision, header: GgufFile | None = None, blocks: bool = False
) -> Iterator[Stored]:
    """Every tensor of a GGUF (whose ``header`` may be there already), a safetensors file or a folder of them.
    ``blocks``: a GGUF's matrices in 4 or 8 bits as ``Blocks``.

    Raises ``ModelFileError`` and ``UnsupportedModelError`` as the readers of the formats do.
    """
    refuse_pickle(path)
    if path.is_dir():
        for file in weight_files(path):
            yield from _read_safetensors(file, dtype)
    elif path.suffix.lower() == ".safetensors":
        yield from _read_safetensors(path, dtype)
    else:
        for name, tensor in gguf_tensors(header or read_gguf_header(path), dtype=dtype, blocks=blocks):
            yield Stored(path, name, tensor)


def stored_names(path: Path) -> list[str]:
    """The names of a folder's tensors as they are stored; of a GGUF none, it never holds memories."""
    return [name for file in weight_files(path) for name in check_safetensors(file)] if path.is_dir() else []


def _read_safetensors(file: Path, dtype: Precision) -> Iterator[Stored]:
    for name, row in check_safetensors(file).items():
        if row.dtype not in _FLOATS:
            raise UnsupportedModelError(
                f"{file}: tensor {name!r} has type {row.dtype}; only {', '.join(sorted(_FLOATS))} are read. "
                "Use the unquantized model or a GGUF."
            )
    try:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                # A copy: what comes back is a view of the file, which would keep it open and mapped.
                yield Stored(file, name, stored.get_tensor(name).to(dtype(name), copy=True))
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"Cannot read {file}: {error}. Get the file again.") from error


def fill(
    model: nn.Module,
    weights: Iterable[Stored],
    *,
    wanted: Iterable[str],
    unpack: Callable[[str, Tensor], Mapping[str, Tensor]] = lambda name, tensor: {name: tensor},
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Put ``weights`` into the parameters ``wanted`` of ``model``, each exactly once.

    ``unpack`` gives the model's tensors in a stored one, none for one that holds nothing to read. The output
    matrix of tied embeddings may be missing, or there and equal to the embedding. Raises ``ModelFileError``
    naming the file, the tensor and the shapes.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    left = set(wanted) - ({_HEAD} if tied else set())
    total = len(left)
    state: dict[str, Tensor | Blocks] = {}
    origin = Path()
    for stored in weights:
        origin = stored.file
        # Blocks are only read of families whose tensors are ours one by one.
        stored_tensor = stored.tensor
        held: Mapping[str, Tensor | Blocks] = (
            {stored.name: stored_tensor}
            if isinstance(stored_tensor, Blocks)
            else unpack(stored.name, stored_tensor)
        )
        for name, tensor in held.items():
            known = name in left or (tied and name == _HEAD)
            part = Stored(stored.file, stored.name, tensor)
            _check_place(part, name, known=known, taken=name in state, shapes=shapes)
            state[name] = tensor
            left.discard(name)
        if on_progress is not None:
            on_progress(total - len(left), total)
    if left:
        some = ", ".join(f"{name} {list(shapes[name])}" for name in sorted(left)[:3])
        raise ModelFileError(
            f"{origin} lacks {len(left)} tensors that the configuration asks for: {some}"
            f"{', ...' if len(left) > 3 else ''}. Get the model again."
        )
    if tied and _HEAD in state and not torch.equal(_floats(state.pop(_HEAD)), _floats(state[_EMBEDDING])):
        raise ModelFileError(
            f"{origin} says that input and output embeddings are tied, but {_HEAD!r} differs from "
            f"{_EMBEDDING!r}. Set tie_word_embeddings to false in its config.json, or get the model again."
        )
    dense = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    model.load_state_dict(dense, strict=False, assign=True)
    for name, blocks in state.items():
        if isinstance(blocks, Blocks):
            put(model, name.removesuffix(".weight"), blocks, torch.float32)


def _floats(tensor: Tensor | Blocks) -> Tensor:
    return tensor.weight(torch.float32) if isinstance(tensor, Blocks) else tensor


def _check_place(
    stored: Stored, name: str, *, known: bool, taken: bool, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    what = f"{stored.file} has tensor {stored.name!r} of shape {list(stored.tensor.shape)}"
    if taken:
        raise ModelFileError(f"{what} a second time. Get the model again.")
    if not known:
        raise ModelFileError(
            f"{what}, for which the model has no place; the configuration is another model's. Get the model "
            "again."
        )
    if tuple(stored.tensor.shape) != shapes[name]:
        raise ModelFileError(f"{what}, but the configuration says {list(shapes[name])}. Get the model again.")
    check_finite(stored)


def check_finite(stored: Stored) -> None:
    """Raise ``ModelFileError`` when the tensor holds NaN or Inf."""
    # A finite sum proves it in one pass; a sum may overflow without any Inf in it, hence the second look.
    if isinstance(stored.tensor, Blocks):
        if stored.tensor.finite():
            return
        tensor = stored.tensor.weight(torch.float32)
    else:
        tensor = stored.tensor
    if math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(torch.isfinite(tensor).all()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise ModelFileError(
        f"{stored.file} has {bad:,} of {tensor.numel():,} weights in tensor {stored.name!r} that are NaN or "
        f"Inf in {str(tensor.dtype).removeprefix('torch.')}. Get the model again, or load it as float32."
    )
