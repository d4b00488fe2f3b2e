"""One saved state as one safetensors file, written and read without torch or numpy.

    8 bytes    length of the header, little-endian
    header     JSON: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}, ...}, padded with
    blanks data       the tensors, one after the other

The metadata holds the format version, what the state is bound to (``SnapshotHeader``), the state's own
strings (prefix ``state.``) and a SHA-256 over all of that and over every tensor. The reader checks
everything before it returns anything, and names what differs: a wrong state that is used silently is worse
than none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from infinichat.errors import SnapshotError
from infinichat.protocols import StateDump, TensorRecord
from infinichat.store.files import atomic_file
from infinichat.store.records import SnapshotHeader

FORMAT = 1
MAX_HEADER = 16 * 1024 * 1024

_PREFIX = "infinichat."
_STATE = "state."
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
_REBUILD = "The state will be rebuilt from the transcript."
_COMPARED = {
    "fingerprint": "model fingerprint",
    "tokenizer": "tokenizer",
    "chat_format": "chat format",
    "dtype": "number type",
    "window": "window size",
    "segment": "segment size",
    "tokens_seen": "tokens seen",
    "chain": "chain",
}


def write_snapshot(path: Path, dump: StateDump, *, header: SnapshotHeader) -> int:
    """Write ``dump`` to ``path`` (temporary file, fsync, rename) and return its size in bytes.

    Raises ``DiskError``; the file that was there before is then still there.
    """
    metadata = {f"{_PREFIX}{field.name}": str(getattr(header, field.name)) for field in fields(header)}
    metadata |= {f"{_STATE}{key}": value for key, value in dump.meta.items()}
    metadata[f"{_PREFIX}format"] = str(FORMAT)
    layout: dict[str, dict[str, Any]] = {}
    end = 0
    for name, record in dump.tensors.items():
        start, end = end, end + len(record.data)
        layout[name] = {"dtype": record.dtype, "shape": list(record.shape), "data_offsets": [start, end]}
    metadata[f"{_PREFIX}checksum"] = _checksum(metadata, layout, [r.data for r in dump.tensors.values()])
    text = json.dumps({"__metadata__": metadata, **layout}, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with atomic_file(path, doing="saving the state") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for record in dump.tensors.values():
            file.write(record.data)
    return 8 + len(text) + end


def read_snapshot(path: Path, *, expected: SnapshotHeader | None) -> StateDump:
    """The state in ``path``, after its checksum and every field of ``expected`` have been compared.

    Without ``expected`` only the file itself is checked. Raises ``SnapshotError`` naming what is missing,
    damaged or different.
    """
    with _opened(path) as file:
        metadata, layout, size = _read_header(path.name, file)
        _check_format(path.name, metadata)
        pieces = [file.read(length) for length in _lengths(path.name, layout, size)]
    if _checksum(metadata, layout, pieces) != metadata.get(f"{_PREFIX}checksum"):
        raise SnapshotError(
            f"The saved state {path.name} is damaged: its checksum does not match its content. {_REBUILD}"
        )
    if expected is not None:
        _check_binding(path.name, metadata, expected)
    tensors = {
        name: TensorRecord(dtype=entry["dtype"], shape=tuple(entry["shape"]), data=piece)
        for (name, entry), piece in zip(layout.items(), pieces, strict=True)
    }
    state = {key.removeprefix(_STATE): value for key, value in metadata.items() if key.startswith(_STATE)}
    return StateDump(tensors=tensors, meta=state)


def stored_header(path: Path) -> SnapshotHeader:
    """What the state in ``path`` says it is bound to; reads no tensors. Raises ``SnapshotError``."""
    with _opened(path) as file:
        metadata, _, _ = _read_header(path.name, file)
    _check_format(path.name, metadata)
    values: dict[str, Any] = {
        field.name: metadata.get(f"{_PREFIX}{field.name}", "") for field in fields(SnapshotHeader)
    }
    try:
        for name in ("window", "segment", "tokens_seen"):
            values[name] = int(values[name])
    except ValueError as exc:
        raise _damaged(path.name, f"a number in its header is not one ({exc})") from exc
    return SnapshotHeader(**values)


def _damaged(name: str, what: str) -> SnapshotError:
    return SnapshotError(f"The saved state {name} is damaged: {what}. {_REBUILD}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as exc:
        raise SnapshotError(f"The saved state {path.name} is missing. {_REBUILD}") from exc
    except OSError as exc:
        raise SnapshotError(f"The saved state {path} cannot be read ({exc.strerror}). {_REBUILD}") from exc


def _read_header(name: str, file: BinaryIO) -> tuple[dict[str, str], dict[str, Any], int]:
    """(metadata, tensor layout, bytes of tensors that follow); ``file`` then stands at the first tensor."""
    total = os.fstat(file.fileno()).st_size
    if total < 8:
        raise _damaged(name, f"it has {total} bytes and no header (truncated)")
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise _damaged(name, f"its header claims {length} bytes, at most {MAX_HEADER} are possible")
    if total < 8 + length:
        raise _damaged(name, f"it has {total} bytes, its header alone {8 + length} (truncated)")
    try:
        layout = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise _damaged(name, f"its header cannot be read ({type(exc).__name__})") from exc
    metadata = layout.pop("__metadata__", None) if isinstance(layout, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(name, "its header holds no metadata")
    return metadata, layout, total - 8 - length


def _check_format(name: str, metadata: Mapping[str, str]) -> None:
    text = metadata.get(f"{_PREFIX}format", "")
    if not text.isdecimal():
        raise _damaged(name, f"its format version is {text[:20]!r}, expected {FORMAT}")
    found = int(text[:9])
    if found != FORMAT:
        age = "an older" if found < FORMAT else "a newer"
        raise SnapshotError(
            f"The saved state {name} has the format {found} of {age} infinichat; "
            f"this one reads format {FORMAT}. {_REBUILD}"
        )


def _lengths(name: str, layout: Mapping[str, Any], size: int) -> list[int]:
    """How many bytes each tensor has; together they must fill the data exactly, in order."""
    lengths = []
    end = 0
    for entry in layout.values():
        if not isinstance(entry, dict):
            raise _damaged(name, "its header does not say where the tensors lie")
        offsets, shape = entry.get("data_offsets"), entry.get("shape")
        if (
            not _integers(offsets)
            or not _integers(shape)
            or len(offsets) != 2
            or offsets[0] != end
            or offsets[1] < end
            or not isinstance(entry.get("dtype"), str)
            or not _DTYPE.fullmatch(entry["dtype"])
        ):
            raise _damaged(name, "its header does not say where the tensors lie")
        lengths.append(offsets[1] - end)
        end = offsets[1]
    if end != size:
        kind = "truncated" if size < end else "something was added"
        raise _damaged(name, f"its tensors have {size} bytes, expected {end} ({kind})")
    return lengths


def _integers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_binding(name: str, metadata: Mapping[str, str], expected: SnapshotHeader) -> None:
    differences = []
    for field, words in _COMPARED.items():
        found, wanted = metadata.get(f"{_PREFIX}{field}", ""), str(getattr(expected, field))
        if found != wanted:
            differences.append(f"{words} {_short(found)} instead of {_short(wanted)}")
    if not differences:
        return
    maker = metadata.get(f"{_PREFIX}model", "") or "unknown"
    raise SnapshotError(
        f"The saved state {name} was made by model {_short(maker)} and does not fit "
        f"{_short(expected.model)}: {'; '.join(differences)}. {_REBUILD}"
    )


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:12]}…"


def _checksum(metadata: Mapping[str, str], layout: Mapping[str, Any], pieces: list[bytes]) -> str:
    """SHA-256 (hex) over the sorted metadata without the checksum, the layout, and all tensors."""
    described = {key: value for key, value in metadata.items() if key != f"{_PREFIX}checksum"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode("utf-8"))
    digest.update(json.dumps(layout).encode("utf-8"))
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def remove_file(path: Path) -> None:
    """Remove a snapshot file; one that is gone is fine, one that cannot be removed waits."""
    try:
        os.unlink(path)
    except OSError:
        return
