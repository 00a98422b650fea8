"""Freed memory goes back to the system, or stays, as was asked for. Each in a process of its own: it is glibc's."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")

# After a first large block each is larger than the gaps that those before it left, below small ones that live on.
GAPS = """
import os, sys
from sound import threads as memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

{prepare}
held, before = [], resident()
for size in [25_000_000, *range(9_000_000, 25_000_000, 500_000)]:
    large = bytearray(b"x") * size
    held.append(bytearray(10_000))
    del large
print(resident() - before)
"""


def grow(prepare):
    """Return by how many MB a process has grown after all that was large is freed."""
    command = [sys.executable, "-c", GAPS.format(prepare=prepare)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_large_blocks_leave_no_gaps():
    assert grow("") > 20  # what glibc does by itself
    assert grow("memory.give_back_large_blocks()") < 5


def test_the_last_wish_counts():
    assert grow("memory.give_back_large_blocks(); memory.keep_for_next_step()") > 20
    wishes = ["memory.give_back_large_blocks()", "memory.keep_for_next_step()", "memory.give_back_large_blocks()"]
    assert grow("; ".join(wishes)) < 5
