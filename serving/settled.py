"""What a server holds once it has started, it keeps: the garbage collector need not walk it, and it may lie in huge pages.

A request touches a few thousand small objects all over the heap, each on a page of 4 KiB whose place the processor no longer
knows. In pages of 2 MiB, which Linux 6.1 makes of what is there, a request takes some 4 % less processor time.

A process that works in columns (the collector, the stream's workers) keeps what it frees too. By itself the C library gives
arrays of some hundred KiB back to the system at once, and those of its threads have heaps that it unmaps when they are empty;
the next ones then lie on other pages, which the system clears, and on a virtual machine often has to ask its host for. A round
of the collector of 1 ms was seen to take 20, and all the more requests waited for the next; a third of the stream's processor
time in a catch-up went there.
"""

from __future__ import annotations

import ctypes
import functools
import gc
from pathlib import Path

NEW_OBJECTS = 20_000
"""Between two collections."""
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # arrays up to this size, the most that glibc takes, lie in the heap
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),  # and so much of its end is kept when it is free
    "MALLOC_ARENA_MAX": "1",  # one heap for all threads: heaps of their own go back to the system all the same
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # Arrow's own allocator gives back what it has not used for 10 ms
}
"""Environment of a process that works in columns, for glibc and Arrow: from its start, for they read it only then."""
_MAPS = Path("/proc/self/maps")
_HUGE, _MOST = 2 << 20, 256 << 20
_MADV_COLLAPSE = 25


def settle() -> None:
    """To be called once all that lasts is there; takes some tenths of a second."""
    gc.collect()
    gc.freeze()  # walking it at every collection costs requests their milliseconds
    gc.set_threshold(NEW_OBJECTS)
    _use_huge_pages()


@functools.cache
def _use_huge_pages() -> None:
    """Once a process; where the kernel cannot, all stays as it was."""
    try:
        maps, advise = _MAPS.read_text(), ctypes.CDLL(None).madvise
    except (OSError, AttributeError):  # not Linux
        return
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for low, high in heaps(maps):
        advise(low, high - low, _MADV_COLLAPSE)


def heaps(maps: str) -> list[tuple[int, int]]:
    """Where the whole huge pages of each heap begin and end, of a text as /proc/self/maps: of memory that can be written and is
    of no file, but not where much more is set aside than can be in use."""
    found = []
    for place, access, _, _, inode, *name in map(str.split, maps.splitlines()):
        low, high = (int(end, 16) for end in place.split("-"))
        low, high = -(-low // _HUGE) * _HUGE, high // _HUGE * _HUGE
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and 0 < high - low <= _MOST:
            found.append((low, high))
    return found
