"""Is this file the one that is meant? SHA-256 of big files, remembered, and a quick digest for unpinned ones.

Base weights are pinned by size and SHA-256. Hashing a gigabyte takes a second or more, so a file that was
found right is remembered by path, size and modification time in the cache folder; a start then costs one
``stat``. ``infinichat models verify`` and ``pull`` hash anew. Files that nobody pinned (a user's own weights)
are told apart by ``quick_digest``: size, head, tail and 64 samples between, which any retraining changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from infinichat.errors import CancelledError, ModelFileError
from infinichat.protocols import CancelFlag

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_PIECE = 1 << 20
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


def sha256_of(path: Path, *, on_progress: Progress | None = None, cancel: CancelFlag | None = None) -> str:
    """Hex SHA-256 of a file. Raises ``ModelFileError`` when it cannot be read, ``CancelledError``."""
    digest = hashlib.sha256()
    done = 0
    try:
        total = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                if cancel is not None and cancel.is_set():
                    raise CancelledError(f"Checking {path.name} was stopped.")
                digest.update(piece)
                done += len(piece)
                if on_progress is not None:
                    on_progress(done, total)
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror or error}. Check the file.") from error
    return digest.hexdigest()


def quick_digest(path: Path) -> str:
    """Hex SHA-256 over the file's size and samples of it: the same on every machine, whatever the file is
    called. Raises ``ModelFileError`` when it cannot be read."""
    digest = hashlib.sha256(b"infinichat-quick-1\0")
    try:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb", buffering=0) as file:
            last = max(0, size - _SAMPLE_BYTES)
            for at in sorted({last * sample // (_SAMPLES + 1) for sample in range(_SAMPLES + 2)}):
                file.seek(at)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror or error}. Check the file.") from error
    return digest.hexdigest()


def check_pinned(
    path: Path,
    size: int,
    sha256: str,
    *,
    stamps: Path | None = None,
    on_progress: Progress | None = None,
    cancel: CancelFlag | None = None,
) -> None:
    """Raise ``ModelFileError``, naming the file and what differs, unless it has this size and SHA-256.

    With ``stamps`` (a JSON file, made when missing) a file that was right before and has the same size and
    modification time is believed; without it the bytes are always read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror or error}. Check the file.") from error
    if status.st_size != size:
        what = "truncated" if status.st_size < size else "altered"
        raise ModelFileError(
            f"{path} is {what}: it has {status.st_size:,} bytes, expected {size:,}. Get it again with "
            "`infinichat models pull`."
        )
    stamp: list[int | str] = [status.st_size, status.st_mtime_ns, sha256]
    key = str(path.resolve())
    if stamps is not None and _read_stamps(stamps).get(key) == stamp:
        return
    found = sha256_of(path, on_progress=on_progress, cancel=cancel)
    if found != sha256:
        raise ModelFileError(
            f"{path} is altered: its SHA-256 is {found}, expected {sha256}. Get it again with "
            "`infinichat models pull`."
        )
    if stamps is not None:
        _write_stamp(stamps, key, stamp)


def _read_stamps(stamps: Path) -> dict[str, object]:
    try:
        known = json.loads(stamps.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # missing or damaged: the files are simply hashed again
    return known if isinstance(known, dict) else {}


def _write_stamp(stamps: Path, key: str, stamp: list[int | str]) -> None:
    known = {**_read_stamps(stamps), key: stamp}
    # Only a saving of time: where the cache cannot be written, the next start hashes again.
    with contextlib.suppress(OSError):
        stamps.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=stamps.parent, prefix=stamps.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(known, file)
            os.replace(name, stamps)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
