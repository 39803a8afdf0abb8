"""For how long the machine itself stood still while something was measured: what no process on it can do anything about.

A process per core, of the highest priority, asks to be woken every PERIOD_S. What it is late is what a hypervisor, the kernel
or its interrupts took: on a shared machine up to tens of milliseconds at once, which a 99th percentile of 5 ms cannot hide.
(As jHiccup does: G. Tene, https://github.com/giltene/jHiccup.)

A disk stands still too: a small write with its sync every DISK_PERIOD_S tells for how long.

``python -m benchmarks.stalls CORE`` or ``... FOLDER``: measures until stdin ends, then prints a JSON list of milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PERIOD_S = 0.002
LATE_MS = 1.0
"""Less is the timer's own."""
DISK_PERIOD_S = 0.02
SLOW_MS = 5.0
"""A sync that takes less is slow, not still."""
_PRIORITY = 10
_BLOCK = bytes(4096)


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


def slow(folder: str) -> list[float]:
    """Milliseconds of each durable small write in a folder that took more than SLOW_MS; until stdin ends."""
    found, ended = [], False
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while not ended:
            ended = bool(select.select([sys.stdin], [], [], DISK_PERIOD_S)[0])
            started = time.perf_counter()
            os.pwrite(file.fileno(), _BLOCK, 0)
            os.fdatasync(file.fileno())
            took = 1e3 * (time.perf_counter() - started)
            if took > SLOW_MS:
                found.append(round(took, 2))
    return found


@contextlib.contextmanager
def watched(disk: Path | None = None) -> Iterator[dict[str, Any]]:
    """Filled when the ``with`` ends: stalled_ms_per_s and longest_stall_ms of the core that had most of each; both None where
    a process may not take a high priority (root or CAP_SYS_NICE). With a folder, disk_stalled_ms_per_s and
    longest_disk_stall_ms of the disk that it is on."""
    report: dict[str, Any] = {"stalled_ms_per_s": None, "longest_stall_ms": None}
    cores = [_watcher(str(core)) for core in sorted(os.sched_getaffinity(0))]
    disks = [_watcher(str(disk))] if disk is not None else []
    started = time.monotonic()
    try:
        yield report
    finally:
        seconds = time.monotonic() - started
        for watchers, name in ((cores, ""), (disks, "disk_")):
            said = [watcher.communicate()[0] for watcher in watchers]
            if watchers and all(watcher.returncode == 0 for watcher in watchers):
                times = [json.loads(text) for text in said]
                report |= {f"{name}stalled_ms_per_s": round(max(map(sum, times)) / seconds, 2),
                           f"longest_{name}stall_ms": max(max(each, default=0.0) for each in times)}


def _watcher(what: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.stalls", what], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)


if __name__ == "__main__":
    json.dump(late(int(sys.argv[1])) if sys.argv[1].isdigit() else slow(sys.argv[1]), sys.stdout)
