"""A C file becomes functions: compiled once on this machine, kept in the cache folder, loaded with ctypes.

Optional in every way: without a compiler, or when anything goes wrong, there is no library and the caller
takes another path. The file's name holds a hash of source, flags, compiler and processor, so a change of any
of them compiles anew, and two machines may share a cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# No -ffast-math: it changes how the whole process treats tiny numbers, and removes checks for NaN.
FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-freciprocal-math",
    "-fPIC",
    "-pthread",
)

NATIVE = ("-march=native", "-mcpu=native")
"""For this processor: x86 compilers know the first, others the second. A compiler that knows neither is not
used: without the processor's own instructions torch is faster."""

TIMEOUT_S = 60
"""It takes one second."""


def compiled(source: Path, folder: Path, *, beside: Sequence[Path] = ()) -> ctypes.CDLL | None:
    """The functions of ``source`` and of the C files ``beside`` it (headers among them are only looked at);
    None when this machine cannot compile or load it. ``folder`` keeps the result.

    ``INFINICHAT_CC`` names another compiler; empty, it switches compiling off.
    """
    compiler = _compiler()
    if compiler is None or sys.byteorder != "little":
        return None
    try:
        code = b"".join(file.read_bytes() for file in (source, *beside))
        files = [file for file in (source, *beside) if file.suffix == ".c"]
        for native in NATIVE:
            command = [compiler, *FLAGS, native]
            facts = repr((command, processor_name(), platform.machine(), sys.platform)).encode()
            library = folder / f"{source.stem}-{hashlib.sha256(code + facts).hexdigest()[:16]}.so"
            if library.exists() or _compile(command, files, library):
                return ctypes.CDLL(str(library))
    except OSError:
        return None
    return None


def _compiler() -> str | None:
    wanted = os.environ.get("INFINICHAT_CC")
    if wanted is not None:
        return shutil.which(wanted) if wanted else None
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _compile(command: list[str], files: list[Path], library: Path) -> bool:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = [Path(folder) / f"{file.stem}.o" for file in files]
        made = Path(folder) / library.name
        # Each file by a compiler of its own: as long as the longest takes, not all together.
        each = [[*command, "-c", str(file), "-o", str(out)] for file, out in zip(files, objects, strict=True)]
        linked = [*command, "-shared", *map(str, objects), "-o", str(made), "-lm"]
        if not (_run(each) and _run([linked]) and made.exists()):
            return False
        made.chmod(0o700)
        os.replace(made, library)
    return True


def _run(commands: list[list[str]]) -> bool:
    """Whether all of them, at the same time, succeed."""
    quiet = subprocess.DEVNULL
    running = [subprocess.Popen(each, stdin=quiet, stdout=quiet, stderr=quiet) for each in commands]
    try:
        ended = time.monotonic() + TIMEOUT_S
        return all(each.wait(max(0, ended - time.monotonic())) == 0 for each in running)
    except subprocess.TimeoutExpired:
        return False
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
                each.wait()


def processor_name() -> str:
    """What the system calls its processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")), ""
            )
    except OSError:
        return platform.processor()
