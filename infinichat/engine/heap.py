"""Memory that this process does not use any more goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import linecache
import mmap
import re
import sys

_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) r-.p \S+ \S+ [1-9]\d* +(\S.*\.so[.\d]*)")


_code: list[tuple[int, int]] = []
"""Address and size of torch's code, once starting has ended. Nothing unloads torch."""


def give_back_memory() -> None:
    """Return to the system what was freed, which glibc would keep (70 MB after reading some thousand tokens),
    and the pages of code that were used for it. Takes some milliseconds."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    for start, size in _code:
        _let_go(start, size)


def give_back_start() -> int:
    """Return what only starting needed, at its end; bytes of code that were let go.

    Beside freed memory these are the source lines that torch had Python read, and the pages of shared
    libraries: of torch's 450 MB of code, starting looks at 80 MB of which answering uses a quarter. Those
    that are used again come back from the file, as a rule from the system's cache. Linux only; takes some
    milliseconds.
    """
    linecache.clearcache()
    give_back_memory()
    if not sys.platform.startswith("linux"):
        return 0
    given = 0
    with contextlib.suppress(OSError, ValueError):
        found = _clean_code()
        given = sum(resident for start, size, resident, _ in found if _let_go(start, size))
        _code[:] = [(start, size) for start, size, _, name in found if b"/libtorch_" in name]
    return given


def _let_go(start: int, size: int) -> bool:
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return False
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return int(madvise(start, size, mmap.MADV_DONTNEED)) == 0


def _clean_code() -> list[tuple[int, int, int, bytes]]:
    """Address, size, resident bytes and file of what libraries have mapped unwritably and nobody has changed:
    a page that the loader has written to is no longer the file's."""
    found = []
    with open("/proc/self/smaps", "rb") as file:
        place, resident = None, 0
        for line in file:
            if match := _MAPPING.match(line):
                place = int(match[1], 16), int(match[2], 16), match[3]
            elif line[:1].islower() or line[:1].isdigit():
                place = None
            elif line.startswith(b"Rss:"):
                resident = int(line.split()[1]) * 1024
            elif line.startswith(b"Anonymous:") and place is not None:
                if int(line.split()[1]) == 0 and resident:
                    found.append((place[0], place[1] - place[0], resident, place[2]))
                place = None
    return found
