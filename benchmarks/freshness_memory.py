"""Memory and CPU time of processes, sampled every second, and whether memory grows."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_AGAIN_S = 10.0
_MIB = 1 << 20


@dataclass
class Series:
    """Samples of something: seconds of time.monotonic(), values."""

    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Notes a value now."""
        self.at.append(time.monotonic())
        self.values.append(value)

    def since(self, begin: float) -> dict[str, float]:
        """First, last and highest value from a moment on; growth: the slope of the later half, per minute."""
        at, values = np.array(self.at), np.array(self.values)
        at, values = at[at >= begin], values[at >= begin]
        if not len(values):
            return {}
        half = at >= (at[0] + at[-1]) / 2
        growth = float(np.polyfit(at[half] / 60, values[half], 1)[0]) if half.sum() > 2 else 0.0
        return {"first": round(float(values[0]), 1), "last": round(float(values[-1]), 1),
                "max": round(float(values.max()), 1), "growth_per_min": round(growth, 2)}

    def between(self, begin: float, end: float) -> float:
        """Of a count that only grows: how much a second."""
        kept = [(t, v) for t, v in zip(self.at, self.values, strict=True) if begin <= t <= end]
        return (kept[-1][1] - kept[0][1]) / (kept[-1][0] - kept[0][0]) if len(kept) > 1 else 0.0

    def thinned(self, begin: float, points: int = 30) -> list[tuple[int, float]]:
        """(seconds since ``begin``, value), not more than so many."""
        kept = [(round(t - begin), round(v, 1)) for t, v in zip(self.at, self.values, strict=True) if t >= begin]
        return kept[:: max(1, -(-len(kept) // points))]


class Memory:
    """Samples processes by role: resident memory without what is mapped from files, which the kernel takes back at will.

    Args:
      roles: pids of each role; asked again every 10 s.
      more: other figures to sample every 10 s; None where there is none now.
    """

    def __init__(self, roles: Mapping[str, Callable[[], list[int]]], more: Mapping[str, Callable[[], float | None]]) -> None:
        self._roles, self._more = roles, more
        self._stop = threading.Event()
        self.mib: defaultdict[str, Series] = defaultdict(Series)
        self.cpu: defaultdict[str, Series] = defaultdict(Series)
        self.more = {name: Series() for name in more}

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _sample(self) -> None:
        pids: dict[str, list[int]] = {}
        asked = -_AGAIN_S
        while not self._stop.wait(1.0):
            if time.monotonic() - asked >= _AGAIN_S:
                asked = time.monotonic()
                pids = {role: find() for role, find in list(self._roles.items())}
                for name, read in self._more.items():
                    if (value := read()) is not None:
                        self.more[name].add(value)
            for role, found in pids.items():
                if found:
                    self.mib[role].add(sum(map(anonymous_mib, found)))
                    self.cpu[role].add(sum(map(cpu_s, found)))


def anonymous_mib(pid: int) -> float:
    """Resident memory of a process that no file backs, MiB; 0 when it is gone."""
    try:
        for line in (Path("/proc") / str(pid) / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / _MIB
    except OSError:
        pass
    return 0.0


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, seconds; 0 when it is gone."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
