"""Memory that this process does not use any more goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import linecache
import mmap
import re
import sys

_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) r-.p \S+ \S+ [1-9]\d* +\S.*\.so[.\d]*")


def give_back_memory() -> None:
    """Return to the system what was freed; glibc would keep it: 70 MB after reading some thousand tokens,
    more after loading. Takes some milliseconds."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_start() -> int:
    """Return what only starting needed, at its end; bytes of code that were let go.

    Beside freed memory these are the source lines that torch had Python read, and the pages of shared
    libraries: of torch's 450 MB of code, starting looks at 80 MB of which answering uses a quarter. Those
    that are used again come back from the file, as a rule from the system's cache. Linux only; takes some
    milliseconds.
    """
    linecache.clearcache()
    give_back_memory()
    given = 0
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            madvise = ctypes.CDLL(None).madvise
            madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
            for start, size, resident in _clean_code():
                given += resident if madvise(start, size, mmap.MADV_DONTNEED) == 0 else 0
    return given


def _clean_code() -> list[tuple[int, int, int]]:
    """Address, size and resident bytes of what libraries have mapped unwritably and nobody has changed: a
    page that the loader has written to is no longer the file's."""
    found = []
    with open("/proc/self/smaps", "rb") as file:
        place, resident = None, 0
        for line in file:
            if match := _MAPPING.match(line):
                place = int(match[1], 16), int(match[2], 16)
            elif line[:1].islower() or line[:1].isdigit():
                place = None
            elif line.startswith(b"Rss:"):
                resident = int(line.split()[1]) * 1024
            elif line.startswith(b"Anonymous:") and place is not None:
                if int(line.split()[1]) == 0 and resident:
                    found.append((place[0], place[1] - place[0], resident))
                place = None
    return found
