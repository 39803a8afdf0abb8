"""For how long the machine itself stood still while something was measured: what no process on it can do anything about.

A process per core, of the highest priority, asks to be woken every PERIOD_S. What it is late is what a hypervisor, the kernel
or its interrupts took: on a shared machine up to tens of milliseconds at once, which a 99th percentile of 5 ms cannot hide.
(As jHiccup does: G. Tene, https://github.com/giltene/jHiccup.)

``python -m benchmarks.stalls CORE``: measures until stdin ends, then prints a JSON list of milliseconds late.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

PERIOD_S = 0.002
LATE_MS = 1.0
"""Less is the timer's own."""
_PRIORITY = 10


def late(core: int) -> list[float]:
    """Milliseconds by which this process was woken late on a core, of each time that was more than LATE_MS; until stdin ends.
    Raises OSError where a process may not take that priority."""
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    found, last, ended = [], time.perf_counter(), False
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], PERIOD_S)[0])
        now = time.perf_counter()
        over = 1e3 * (now - last - PERIOD_S)
        if over > LATE_MS:
            found.append(round(over, 2))
        last = now
    return found


@contextlib.contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Filled when the ``with`` ends: stalled_ms_per_s and longest_stall_ms of the core that had most of each; both None where
    a process may not take a high priority (root or CAP_SYS_NICE)."""
    report: dict[str, Any] = {"stalled_ms_per_s": None, "longest_stall_ms": None}
    watchers = [subprocess.Popen([sys.executable, "-m", "benchmarks.stalls", str(core)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                for core in sorted(os.sched_getaffinity(0))]
    started = time.monotonic()
    try:
        yield report
    finally:
        seconds = time.monotonic() - started
        said = [watcher.communicate()[0] for watcher in watchers]
        if all(watcher.returncode == 0 for watcher in watchers):
            times = [json.loads(text) for text in said]
            report |= {"stalled_ms_per_s": round(max(map(sum, times)) / seconds, 2),
                       "longest_stall_ms": max(max(each, default=0.0) for each in times)}


if __name__ == "__main__":
    json.dump(late(int(sys.argv[1])), sys.stdout)
