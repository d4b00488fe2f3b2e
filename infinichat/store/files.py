"""Folders and files that only their owner may read, and writes that are whole or not there.

``atomic_file`` is the one way in which the store puts a file beside the database: temporary name, fsync,
``os.replace``, fsync of the folder. A process that dies at any point leaves the old file or the new one,
and perhaps a temporary file that ``sweep_partial`` removes an hour later.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from infinichat.errors import DiskError

PARTIAL = ".partial"
PARTIAL_LIFETIME_S = 3600.0
_POSIX = os.name == "posix"
_counter = itertools.count()


@contextlib.contextmanager
def disk_errors(path: Path, *, doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into a ``DiskError`` that says what was being done, where, and what to do next."""
    try:
        yield
    except OSError as exc:
        raise DiskError(describe(exc, path, doing=doing)) from exc


def describe(exc: OSError, path: Path, *, doing: str) -> str:
    """One sentence for an operating system error, with the next step that fits it."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        step = (
            "Free some space (`infinichat locate` shows the folders) and try again; nothing was half-written."
        )
        return f"The disk is full: {doing} {path} failed. {step}"
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        step = "Make the folder writable or set INFINICHAT_HOME to one that is."
        return f"No permission: {doing} {path} failed ({exc.strerror}). {step}"
    if exc.errno in (errno.ENOTDIR, errno.EEXIST):
        step = "Move that file away or set INFINICHAT_HOME to another folder."
        return f"A file stands where a folder is needed: {doing} {path} failed. {step}"
    return f"{doing} {path} failed: {exc.strerror or exc}. Check the disk, then try again."


def private_folder(path: Path) -> None:
    """Create ``path`` and its missing parents with mode 0700; an existing ``path`` is closed to others too.

    Raises ``DiskError``.
    """
    with disk_errors(path, doing="creating the folder"):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        if _POSIX and path.stat().st_mode & 0o077:
            path.chmod(0o700)


def private_file(path: Path, *, new: bool = False) -> None:
    """Make sure ``path`` exists (with ``new``: that it did not) and that only its owner may read it.

    Raises ``DiskError``.
    """
    with disk_errors(path, doing="creating"):
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | (os.O_EXCL if new else 0), 0o600))
        if _POSIX and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def fsync_folder(path: Path) -> None:
    """Make a rename or removal in ``path`` survive a power cut (POSIX; elsewhere the system does it)."""
    if not _POSIX:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(target: Path, *, doing: str = "writing") -> Iterator[BinaryIO]:
    """A file object whose content becomes ``target`` at the end of the block, or leaves no trace.

    The temporary file lies in ``.partial`` beside ``target``, so that one listing finds what a killed process
    left. Raises ``DiskError``.
    """
    private_folder(target.parent)
    private_folder(target.parent / PARTIAL)
    partial = target.parent / PARTIAL / f"{target.name}.{os.getpid()}-{next(_counter)}"
    with disk_errors(target, doing=doing):
        try:
            descriptor = os.open(
                partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600
            )
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        fsync_folder(target.parent)


def sweep_partial(folder: Path) -> None:
    """Remove temporary files in ``folder`` that no living write can still own (older than an hour)."""
    oldest = time.time() - PARTIAL_LIFETIME_S
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder / PARTIAL):
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)
