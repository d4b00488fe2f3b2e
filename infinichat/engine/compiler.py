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
from collections.abc import Sequence
from pathlib import Path

from infinichat.engine.device import processor_name

# No -ffast-math: it changes how the whole process treats tiny numbers, and removes checks for NaN.
FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-freciprocal-math",
    "-shared",
    "-fPIC",
    "-pthread",
)

NATIVE = ("-march=native", "-mcpu=native")
"""For this processor: x86 compilers know the first, others the second. A compiler that knows neither is not
used: without the processor's own instructions torch is faster."""

TIMEOUT_S = 60
"""It takes one to two seconds."""


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
        files = [str(file) for file in (source, *beside) if file.suffix == ".c"]
        for native in NATIVE:
            command = [compiler, *FLAGS, native]
            facts = repr((command, processor_name(), platform.machine(), sys.platform)).encode()
            library = folder / f"{source.stem}-{hashlib.sha256(code + facts).hexdigest()[:16]}.so"
            if library.exists() or _compile([*command, *files], library):
                return ctypes.CDLL(str(library))
    except OSError:
        return None
    return None


def _compiler() -> str | None:
    wanted = os.environ.get("INFINICHAT_CC")
    if wanted is not None:
        return shutil.which(wanted) if wanted else None
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _compile(command: list[str], library: Path) -> bool:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        try:
            done = subprocess.run(
                [*command, "-o", str(made), "-lm"],
                capture_output=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode or not made.exists():
            return False
        made.chmod(0o700)
        os.replace(made, library)
    return True
