"""An allocator that keeps freed pages, for commands that train: each step asks for the same ones again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ALLOCATORS = (
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4",
)
"""Where an allocator that keeps its pages may be; without one, half of a training step goes into page
faults."""


TUNABLES = ":".join(
    f"glibc.malloc.{name}={size}"
    for name, size in (("mmap_threshold", 1 << 32), ("trim_threshold", 1 << 34), ("top_pad", 1 << 28))
)
"""The same from the C library's own allocator; its limits would otherwise move, and give pages back."""


def keep_pages() -> None:
    """Start this command once more with an allocator that keeps freed pages, where the system has one."""
    if (
        os.environ.get("INFINICHAT_ALLOCATOR")
        or os.environ.get("LD_PRELOAD")
        or not sys.platform.startswith("linux")
    ):
        return
    library = next((path for path in ALLOCATORS if Path(path).exists()), None)
    change = {"GLIBC_TUNABLES": TUNABLES} if library is None else {"LD_PRELOAD": library}
    environment = os.environ | change | {"INFINICHAT_ALLOCATOR": "set"}
    os.execve(sys.executable, [sys.executable, "-m", "infinichat", *sys.argv[1:]], environment)
