"""What a server keeps: out of the garbage collector, in huge pages where the kernel makes them, and what it frees."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.settled import KEEP_MEMORY, heaps

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
MAPS = """\
00200000-00a00000 r-xp 00000000 fe:00 123                        /usr/bin/python
01100000-01f00000 rw-p 00000000 00:00 0                          [heap]
02100000-02f00000 rw-p 00000000 fe:00 124                        /tmp/bundle/vectors.npy
04000000-04200000 rw-p 00000000 00:00 0
05000001-051fffff rw-p 00000000 00:00 0
06000000-07000000 ---p 00000000 00:00 0
100000000-200000000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                  [stack]
"""


def test_heaps_are_whole_huge_pages_of_memory_that_is_of_no_file():
    assert heaps(MAPS) == [(0x01200000, 0x01E00000), (0x04000000, 0x04200000)]
    assert heaps("") == []


def test_a_server_that_has_started_freezes_what_it_holds_and_goes_on():
    script = """
import gc
from pathlib import Path
from serving.settled import settle
def huge():
    return sum(int(l.split()[1]) for l in Path("/proc/self/smaps_rollup").read_text().splitlines() if l.startswith("AnonHuge"))
held = [b"%d" % i * 200 for i in range(200_000)]
settle()
settle()
assert gc.get_freeze_count() > 0 and held[77] == b"77" * 200
print(huge())
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    if sys.platform != "linux" or int(found.stdout) == 0:
        pytest.skip("this kernel makes no huge pages of what is there: Linux 6.1 does")
    assert int(found.stdout) > 32 * 1024


def test_arrays_that_come_and_go_are_not_asked_of_the_system_each_time():
    script = """
import resource
import numpy as np
import pyarrow as pa
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        held = [np.ones(1 << 15) for _ in range(64)], [pa.allocate_buffer(1 << 18) for _ in range(64)]
        for buffer in held[1]:
            np.frombuffer(buffer, np.uint8)[:] = 1
        del held, buffer
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT,
                           env={**os.environ, **KEEP_MEMORY})
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library has no mallopt: glibc does")
    assert int(found.stdout) < 5_000, "of 819,200 if each page came anew"
