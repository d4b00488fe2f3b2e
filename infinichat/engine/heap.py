"""Memory that is free in this process goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes


def give_back_memory() -> None:
    """Return to the system what was freed; glibc would keep it: 70 MB after reading some thousand tokens,
    more after loading. Takes some milliseconds."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
