"""The engine's own C functions: where they are, how they are called, and a compiler that runs ahead.

A machine's first start has them compiled while torch is being imported and the weights are read, so that
nobody waits for it: ``begin_compiling`` first, ``native_library`` when they are needed. Free of torch.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

from infinichat.engine.compiler import compiled

SOURCE = Path(__file__).with_name("step.c")
BESIDE = tuple(
    SOURCE.with_name(name) for name in ("tiles.c", "attend.c", "many.c", "tiles.h", "products.h", "threads.h")
)

_begun: dict[Path, threading.Thread] = {}


def begin_compiling(cache: Path) -> None:
    """Have the functions compiled in a thread of its own, where that was not done before."""
    thread = threading.Thread(target=_loaded, args=(cache,), name="compiling", daemon=True)
    if _begun.setdefault(cache, thread) is thread:
        thread.start()


def native_library(cache: Path) -> ctypes.CDLL | None:
    """The compiled ``step.c`` and what is beside it, or None where that cannot be compiled; ``cache`` is
    where such things are kept."""
    begun = _begun.pop(cache, None)
    if begun is not None:
        begun.join()
    library = _loaded(cache)
    if library is not None:
        _describe(library)
    return library


def _loaded(cache: Path) -> ctypes.CDLL | None:
    return compiled(SOURCE, cache / "native", beside=BESIDE)


def _describe(library: ctypes.CDLL) -> None:
    pointer, whole, long, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    library.infini_pack.argtypes = (whole, long, long, *(pointer,) * 3)
    library.infini_unpack.argtypes = (whole, long, long, pointer, pointer, whole)
    library.infini_rows.argtypes = (whole, long, long, *(pointer,) * 3, whole)
    library.infini_attend.argtypes = (*(pointer,) * 4, long, *(whole,) * 4, number, whole)
    library.infini_multiply_many.argtypes = (*(long,) * 3, *(pointer,) * 3, whole)
    library.infini_run.argtypes = (pointer, pointer, whole, whole, pointer, whole, whole)
    library.infini_norm.argtypes = (pointer, pointer, whole, pointer)
    library.infini_head.argtypes = (pointer, pointer, pointer, whole, pointer)
    for name in ("pack", "unpack", "rows", "run", "norm", "head"):
        getattr(library, f"infini_{name}").restype = None
