"""The GGUF container: what a file says about itself, without reading one weight and without torch.

A GGUF (little-endian, version 2 or 3) is: magic, version, counts; key-value metadata; a table of tensors
(name, dimensions, type, offset); padding; the tensors. The whole header is parsed here in one pass over a
memory map (60 ms for the default checkpoint's 98,000 strings; the ``gguf`` package's own reader takes 2.6 s
for the same file, most of the time that a start may take), and every length in it is checked against the
file's size before it is believed: a truncated or altered file is refused by name, never half read.

It does not know what the metadata means (``gguf.py``) nor which checkpoint wants the file (``registry.py``).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinichat.errors import ModelFileError, UnsupportedModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# GGUF's value types by number: the struct code of each scalar; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
GROUP = 32
"""Weights in a block of the simple types."""

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
"""ggml's numbers of the types that are known without the ``gguf`` package, whose import takes 30 ms."""

SIZES: dict[int, tuple[int, int]] = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q4_0: (GROUP, 18),
    Q4_1: (GROUP, 20),
    Q8_0: (GROUP, 34),
}
"""Weights and bytes of one block of each of them."""

# ggml allows four dimensions; more means that the table is not a table.
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table. ``shape`` is row-major (GGUF stores it reversed), ``type_id`` ggml's
    number of the data type, ``offset`` counts bytes from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A parsed header. Metadata values are plain Python values; arrays are lists."""

    path: Path
    size: int
    data_start: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def own(self, key: str, default: Any) -> Any:
        """The architecture's metadata ``key``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: int | None = None) -> int:
        """``own``, a whole number above 0. Raises ``ModelFileError`` for anything else."""
        value = self.own(key, default)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]  # some converters write one number per layer
        if not isinstance(value, int) or value <= 0:
            raise ModelFileError(
                f"{self.path.name} has {self.architecture}.{key} = {value!r}, expected a positive whole "
                "number."
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """``own``, a number above 0. Raises ``ModelFileError`` for anything else."""
        value = self.own(key, default)
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ModelFileError(
                f"{self.path.name} has {self.architecture}.{key} = {value!r}, expected a positive number."
            )
        # Stored as float32: 9.999999747378752e-06 is meant to be 1e-05.
        return float(f"{value:.7g}")

    def forget_arrays(self) -> None:
        """Let go of the metadata's long lists, once the tokenizer has been made of them: 12 MB of the default
        checkpoint's, and what is loaded next takes their place rather than a new one."""
        for key in [
            key for key, value in self.metadata.items() if isinstance(value, list) and len(value) > 999
        ]:
            del self.metadata[key]

    @property
    def parameters(self) -> int:
        """Number of weights in the file; a tied output matrix counts once because it is stored once."""
        return sum(tensor.elements for tensor in self.tensors.values())


class _Cursor:
    """Reads values one after another and never past the end of the file."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.size = len(buffer)
        self.at = len(MAGIC)

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            raise ModelFileError(
                f"{self.path.name} is truncated or altered: its header asks for {count:,} bytes at offset "
                f"{self.at:,}, but the file ends at {self.size:,}. Get the file again."
            )

    def scalar(self, code: str) -> Any:
        width = struct.calcsize("<" + code)
        self.need(width)
        (value,) = struct.unpack_from("<" + code, self.buffer, self.at)
        self.at += width
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.need(length)
        raw = self.buffer[self.at : self.at + length]
        self.at += length
        return self.decoded(raw)

    def decoded(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{self.path.name} is altered: a text in its header before offset {self.at:,} is not UTF-8. "
                "Get the file again."
            ) from error

    def strings(self, count: int) -> list[str]:
        # The same as `count` times string(), written out: vocabularies have 100,000 of them.
        self.need(8 * count)
        unpack, buffer, size, at = struct.Struct("<Q").unpack_from, self.buffer, self.size, self.at
        found: list[bytes] = []
        for _ in range(count):
            if at + 8 > size:
                self.at = min(at, size)
                self.need(8)
            (length,) = unpack(buffer, at)
            end = at + 8 + length
            if end > size:
                self.at = min(at + 8, size)
                self.need(length)
            found.append(buffer[at + 8 : end])
            at = end
        self.at = at
        try:
            return [raw.decode() for raw in found]
        except UnicodeDecodeError:
            return [self.decoded(raw) for raw in found]  # raises with a sentence

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        raise ModelFileError(
            f"{self.path.name} is altered: metadata type {kind} at offset {self.at:,} does not exist (0 to "
            "12 do). Get the file again."
        )

    def array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return self.strings(count)
        if kind not in _SCALARS:
            raise UnsupportedModelError(
                f"{self.path.name} has a metadata array of type {kind}; only arrays of numbers and texts are "
                "read."
            )
        code = _SCALARS[kind]
        width = struct.calcsize("<" + code)
        self.need(width * count)
        values = struct.unpack_from(f"<{count}{code}", self.buffer, self.at)
        self.at += width * count
        return list(values)


def read_gguf_header(path: Path) -> GgufFile:
    """Parse the header of ``path``. Raises ``ModelFileError`` (missing, truncated, altered) or
    ``UnsupportedModelError`` (big-endian, version 1, not a GGUF)."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise UnsupportedModelError(
                    f"{path.name} is not a GGUF file: it starts with {magic!r}, expected {MAGIC!r}."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                return _parse(_Cursor(buffer, path))
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from error


def _parse(cursor: _Cursor) -> GgufFile:
    path = cursor.path
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise UnsupportedModelError(
            f"{path.name} has GGUF version {version}; versions 2 and 3, little-endian, are read. Convert it "
            "again."
        )
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.string()
        if key in metadata:
            raise ModelFileError(f"{path.name} is altered: metadata key {key!r} is there twice.")
        metadata[key] = cursor.value(cursor.scalar("I"))
    tensors: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        tensor = _tensor_row(cursor)
        if tensor.name in tensors:
            raise ModelFileError(f"{path.name} is altered: tensor {tensor.name!r} is there twice.")
        tensors[tensor.name] = tensor
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ModelFileError(f"{path.name} is altered: alignment {alignment!r}, expected a positive number.")
    data_start = -(-cursor.at // alignment) * alignment
    return GgufFile(path, cursor.size, data_start, metadata, tensors)


def _tensor_row(cursor: _Cursor) -> GgufTensor:
    name = cursor.string()
    dimensions = cursor.scalar("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ModelFileError(
            f"{cursor.path.name} is altered: tensor {name!r} has {dimensions} dimensions, expected 1 to 4."
        )
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    return GgufTensor(name, shape, cursor.scalar("I"), cursor.scalar("Q"))


def block_size(kind: int) -> tuple[int, int]:
    """Weights and bytes of a block of ggml's type ``kind``; raises ``LookupError`` or ``ValueError`` for a
    type that the installed ``gguf`` package does not know."""
    if kind in SIZES:
        return SIZES[kind]
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return int(block), int(size)


def tensor_bytes(file: GgufFile, tensor: GgufTensor) -> int:
    """Bytes that ``tensor`` takes in the file. Raises ``UnsupportedModelError`` for a type that the installed
    ``gguf`` package does not know."""
    try:
        block, size = block_size(tensor.type_id)
    except (LookupError, ValueError) as error:
        raise UnsupportedModelError(
            f"{file.path.name}: tensor {tensor.name!r} has type {tensor.type_id}, which the installed gguf "
            "package does not know. Upgrade it (pip install --upgrade gguf) or convert the model to Q8_0."
        ) from error
    if tensor.shape[-1] % block:
        raise ModelFileError(
            f"{file.path.name} is altered: tensor {tensor.name!r} has rows of {tensor.shape[-1]} weights, "
            f"expected a multiple of {block}."
        )
    return tensor.elements // block * size


def check_extents(file: GgufFile) -> None:
    """Raise ``ModelFileError``, naming the tensor, unless every tensor lies inside the file and on its
    own."""
    reached = 0
    for tensor in sorted(file.tensors.values(), key=lambda row: row.offset):
        end = tensor.offset + tensor_bytes(file, tensor)
        if tensor.offset < reached:
            raise ModelFileError(
                f"{file.path.name} is altered: tensor {tensor.name!r} starts at {tensor.offset:,}, inside "
                f"the tensor before it, which ends at {reached:,}. Get the file again."
            )
        if file.data_start + end > file.size:
            raise ModelFileError(
                f"{file.path.name} is truncated: tensor {tensor.name!r} ends at byte "
                f"{file.data_start + end:,}, but the file has {file.size:,}. Get the file again."
            )
        reached = end
