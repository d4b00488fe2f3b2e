"""Which files of a folder hold its weights, and whether each is whole, read from headers alone.

A safetensors file is: header length, a JSON header (name -> type, shape, byte range), the bytes. Everything
is checked against the file's size before any weight is read, so that a truncated or altered file is refused
by name. Pickle checkpoints (``.bin``, ``.pt``, ``.pth``) can run code when they are opened and are never
opened.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinichat.errors import ModelFileError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_HEADER = 100_000_000  # the format's own limit
_WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_WIDTHS |= {"I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One row of the header; ``dtype`` is safetensors' name ("F32", "BF16", ...)."""

    dtype: str
    shape: tuple[int, ...]


def refuse_pickle(path: Path) -> None:
    """Raise ``UnsupportedModelError`` for a file that Python's pickle would read."""
    if path.suffix.lower() in _PICKLES:
        raise UnsupportedModelError(
            f"{path} is a pickle checkpoint, which can run code when it is opened, so it is not. Use the "
            "model's safetensors files, or convert it with the tools it came with."
        )


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights as safetensors."""
    return (folder / INDEX).is_file() or (folder / SINGLE).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a folder's weights: those that the index names, or the single one.

    Raises ``ModelFileError`` for a missing or damaged one, ``UnsupportedModelError`` when there are only
    pickles.
    """
    index = folder / INDEX
    if index.is_file():
        files = sorted({folder / name for name in read_index(index).values()})
    elif (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    else:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(("pytorch_model", "model", "consolidated")):
                refuse_pickle(path)
        raise ModelFileError(
            f"{folder} has no {SINGLE} and no {INDEX}. Get the model again, with safetensors."
        )
    for file in files:
        if not file.is_file():
            raise ModelFileError(f"{folder} lacks {file.name}, which {INDEX} names. Get the missing file.")
    return files


def read_index(index: Path) -> dict[str, str]:
    """Tensor name to file name. Raises ``ModelFileError`` for anything but plain names in the same folder."""
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"Cannot read {index}: {error!r}. Get the file again.") from error
    for file in names.values():
        refuse_pickle(index.parent / file)
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelFileError(
                f"{index} names {file!r}, expected the plain name of a .safetensors file. Get the file again."
            )
    return names


def check_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The header's rows, after checking that it describes exactly the bytes there are.

    Raises ``ModelFileError`` naming the file and, where there is one, the tensor.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size - 8, _MAX_HEADER):
                raise _damaged(
                    path, f"its header would end at byte {length + 8:,}, but the file has {size:,}"
                )
            header = json.loads(file.read(length))
        rows = {str(name): row for name, row in header.items() if name != "__metadata__"}
        return _check_rows(path, rows, size - 8 - length)
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror or error}. Check the file.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read ({error!r})") from error


def _check_rows(path: Path, rows: dict[str, Any], data: int) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    reached = 0
    for name, row in sorted(rows.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        begin, end = row["data_offsets"]
        shape = tuple(int(side) for side in row["shape"])
        if row["dtype"] not in _WIDTHS:
            raise UnsupportedModelError(
                f"{path}: tensor {name!r} has type {row['dtype']!r}, which is not known."
            )
        expected = math.prod(shape) * _WIDTHS[row["dtype"]]
        if begin != reached or end - begin != expected:
            raise _damaged(
                path,
                f"tensor {name!r} of shape {list(shape)} lies at {begin:,} to {end:,}, expected {reached:,} "
                f"to {reached + expected:,}",
            )
        reached = end
        found[name] = StoredTensor(row["dtype"], shape)
    if reached != data:
        raise _damaged(path, f"its tensors take {reached:,} bytes, but it has {data:,} for them")
    return found


def _damaged(path: Path, what: str) -> ModelFileError:
    return ModelFileError(f"{path} is truncated or altered: {what}. Get the file again.")
