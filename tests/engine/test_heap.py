"""What starting needed goes back to the system, and what libraries' code does is as before."""

from __future__ import annotations

import linecache
import subprocess
import sys

import pytest

from infinichat.engine.heap import give_back_start

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")

RESIDENT = """
import torch
from infinichat.engine.heap import give_back_start

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

before = resident()
given = give_back_start()
after = resident()
x = torch.arange(12.0).view(3, 4)
print(before, given, after, float((x @ x.T).sum()))
"""


@LINUX
def test_pages_of_code_are_let_go_and_come_back_when_used() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    before, given, after, total = (float(word) for word in done.stdout.split())
    assert given > 20e6
    assert before - after > 0.5 * given
    assert total == 1134  # 12^2 + 15^2 + 18^2 + 21^2


@LINUX
def test_only_what_nobody_has_written_to_is_let_go() -> None:
    from infinichat.engine import heap

    for start, size, resident, _ in heap._clean_code():
        assert start % 4096 == size % 4096 == 0
        assert 0 < resident <= size
    with open("/proc/self/maps", encoding="ascii") as file:
        by_start = {int(line.split("-")[0], 16): line.split() for line in file}
    for start, *_ in heap._clean_code():
        assert "w" not in by_start[start][1]
        assert ".so" in by_start[start][5]


READ = """
import torch
from infinichat.engine.heap import give_back_memory, give_back_start

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[2])  # of files

give_back_memory()
start = resident()
give_back_start()
given_back = resident()
x = torch.randn(64, 64)
torch.linalg.svd(x), torch.softmax(x, 0).sort(), torch.nn.functional.silu(x).bfloat16() @ x.bfloat16()
used = resident()
give_back_memory()
print(start, given_back, used, resident())
"""


@LINUX
def test_the_code_that_reading_used_goes_back_after_it_but_not_before_starting_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
    start, given_back, used, after = (float(word) for word in done.stdout.split())
    assert start > 2 * given_back
    assert used > given_back + 4e6
    assert after < used - 3e6


def test_read_sources_are_forgotten() -> None:
    linecache.getlines(__file__)
    assert __file__ in linecache.cache
    give_back_start()
    assert __file__ not in linecache.cache
