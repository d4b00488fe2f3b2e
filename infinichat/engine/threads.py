"""How many threads, and how they wait. Free of torch until a function is called.

A token is some hundred small parallel sections. Between two of them the OpenMP runtime that torch's Linux
wheels carry spins, by default for milliseconds; where another busy process holds one of the cores, each
section then waits for a whole time slice. Measured with two threads on two cores beside another busy process:
270 ms a token with the default, 47 ms when a thread spins briefly and then sleeps, 24 ms with one thread. So
the wait is set short before torch is imported, and more threads are only taken where they were measured to
be clearly faster here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from infinichat.engine.torch_import import defer

WAITING = {"GOMP_SPINCOUNT": "1000"}
"""Read once by libgomp when it is loaded: about 2 microseconds of spinning, then sleep."""

CLEARLY = 0.85
"""More threads must need at most this part of the time, or the machine is kept free for others."""

MOST_THREADS = 16
"""Decoding one row does not scale further on any machine with a memory bus of its own size."""


def prepare_environment() -> None:
    """Set how OpenMP threads wait, unless the user has, and leave out of torch what is not needed; where
    torch is loaded already it is too late for both."""
    defer()
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)


def available_cores() -> int:
    """Cores this process may use: affinity and container limits count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cgroup_limit() or cores))


def candidates(cores: int) -> list[int]:
    """Thread counts worth trying on so many cores: 1, 2, 4, ... and all of them, up to ``MOST_THREADS``."""
    top = min(cores, MOST_THREADS)
    counts = [1]
    while counts[-1] * 2 <= top:
        counts.append(counts[-1] * 2)
    if counts[-1] != top:
        counts.append(top)
    return counts


def machine_is_busy(cores: int) -> bool:
    """Whether others need so much of this machine that a measurement would say more about them."""
    try:
        return os.getloadavg()[0] > 0.5 * cores + 0.5
    except (OSError, AttributeError):
        return False


def set_threads(count: int) -> None:
    """Use ``count`` threads inside operations, and no second pool beside them."""
    import torch

    torch.set_num_threads(count)
    # Only possible before the first parallel work of the process; nothing here uses that pool.
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)


def fastest_threads(work: Callable[[], None], counts: Sequence[int], *, rounds: int = 3) -> int:
    """The smallest of ``counts`` that is not clearly beaten by a larger one at ``work``. Leaves that count
    set.

    Compares means: a count that is usually fast and sometimes waits for a time slice is not fast.
    """
    chosen, best = counts[0], float("inf")
    for count in counts:
        set_threads(count)
        work()  # starts the threads
        start = time.perf_counter()
        for _ in range(rounds):
            work()
        seconds = time.perf_counter() - start
        if seconds >= CLEARLY * best and count != counts[0]:
            break
        chosen, best = count, seconds
    set_threads(chosen)
    return chosen


def _cgroup_limit() -> int | None:
    """Whole cores that a container's quota allows (cgroup v2), or None without one."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()[:2]
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
