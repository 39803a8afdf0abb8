"""How long events take: from being accepted (``ingested_at``) to each stage of the stream, and to a value that can be read.

Events carry the moment as a column of 4 bytes, ACCEPTED: hundredths of a second since 1970 modulo 2^32, and 0 when that was
over a minute before they were read, as in a catch-up: such are all alike, and cost next to nothing. What an event waits for is
kept beside its bucket until its cells are in the store; a histogram of it is part of the job's counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.metric_names import FRESHNESS, FRESHNESS_MS, by_segment

ACCEPTED = "accepted"
BOUNDS_S = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0)
"""Upper bounds of the histogram's buckets, seconds; one more has what took longer."""
STAGES = ("read", "user_state", "user_stored", "item_state", "item_stored")
"""What an event reaches, in this order."""

Moments = npt.NDArray[np.uint32]
_TICK = 10_000  # microseconds
_OLD = int(BOUNDS_S[-1] * 1e6) // _TICK
_WRAP = 1 << 32
_BOUNDS = np.array([bound * 1e6 / _TICK for bound in BOUNDS_S])
_NAMES = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")
_KEY = b"accepted"


def with_accepted(batch: pa.RecordBatch, ingested_at: pa.Array, now: float) -> pa.RecordBatch:
    """The batch with a column ACCEPTED (uint32) of the times at which its events were accepted; ``now``: seconds since 1970."""
    return batch.append_column(pa.field(ACCEPTED, pa.uint32()), pa.array(_moments(ingested_at, now)))


def reached(stage: str, ingested_at: pa.Array, now: float) -> Counter[str]:
    """Counters of events that were accepted then and have reached a stage."""
    return histogram(stage, [ages(_moments(ingested_at, now), now)])


def _moments(ingested_at: pa.Array, now: float) -> Moments:
    ticks = ingested_at.cast(pa.int64()).fill_null(0).to_numpy() // _TICK
    return np.where(ticks > int(now * 1e6) // _TICK - _OLD, ticks % _WRAP, 0).astype(np.uint32)


def moments_of(batch: pa.RecordBatch) -> Moments:
    """(n,) of the column ACCEPTED; none where a batch has no such column."""
    at = batch.schema.get_field_index(ACCEPTED)
    return batch.column(at).to_numpy() if at >= 0 else np.empty(0, np.uint32)


def ages(moments: Moments, now: float) -> npt.NDArray[np.int64]:
    """(n,) ticks of a hundredth of a second since then, at least 0; what is old has an age beyond every bound."""
    since = (int(now * 1e6) // _TICK - moments.astype(np.int64)) % _WRAP
    since[since >= _WRAP // 2] = 0  # another machine's clock is ahead
    since[moments == 0] = _OLD + 1
    return since


def histogram(stage: str, since: Iterable[npt.NDArray[np.int64]]) -> Counter[str]:
    """Counters of ages (``ages``): events by bucket, and the sum of milliseconds."""
    parts = [part for part in since if len(part)]
    if not parts:
        return Counter()
    whole = np.concatenate(parts)
    found = np.bincount(np.searchsorted(_BOUNDS, whole), minlength=len(_NAMES))
    counts = Counter({by_segment(FRESHNESS, stage, name): int(n) for name, n in zip(_NAMES, found, strict=True) if n})
    counts[by_segment(FRESHNESS_MS, stage)] = int(whole.sum()) * _TICK // 1000
    return counts


class _Stamp(msgspec.Struct):
    stage: str
    moments: bytes
    counts: bytes


class Waiting:
    """When the events were accepted whose cells are still to be written."""

    def __init__(self) -> None:
        self._old = 0
        self._fresh: list[Moments] = []

    def add(self, moments: Moments) -> None:
        """More of them."""
        fresh = moments[moments != 0]
        self._old += len(moments) - len(fresh)
        if len(fresh):
            self._fresh.append(fresh)

    def youngest_s(self, now: float) -> float:
        """How long ago the events that came last were accepted, seconds; inf when all waited for more than a minute."""
        return float(ages(self._fresh[-1], now).min()) * _TICK / 1e6 if self._fresh else np.inf

    def stamp(self, cells: pa.RecordBatch, stage: str) -> pa.RecordBatch:
        """The cells with a note of what they make readable, for ``stored``; from now on nothing waits."""
        fresh = self._fresh if not self._old else [*self._fresh, np.zeros(1, np.uint32)]
        if not fresh:
            return cells
        moments, counts = np.unique(np.concatenate(fresh), return_counts=True)
        if self._old:
            counts[0] = self._old
        note = _Stamp(stage, moments.tobytes(), counts.astype(np.int64).tobytes())
        self._old, self._fresh = 0, []
        return cells.replace_schema_metadata({_KEY: msgspec.msgpack.encode(note)})


def stored(cells: pa.RecordBatch, now: float) -> Counter[str]:
    """Counters of the events that cells, now in the store, make readable."""
    note = (cells.schema.metadata or {}).get(_KEY)
    if note is None:
        return Counter()
    stamp = msgspec.msgpack.decode(note, type=_Stamp)
    since, counts = ages(np.frombuffer(stamp.moments, np.uint32), now), np.frombuffer(stamp.counts, np.int64)
    return histogram(stamp.stage, [np.repeat(since, counts)])


def cumulated(counters: Mapping[str, Any], stage: str) -> list[tuple[str, int]]:
    """(upper bound, events that took at most so long) of a stage, the last bound +Inf; [] without events."""
    counts = np.cumsum([counters.get(by_segment(FRESHNESS, stage, name), 0) for name in _NAMES])
    return list(zip(_NAMES, counts.tolist(), strict=True)) if counts[-1] else []


def quantiles(counters: Mapping[str, Any], stage: str, points: tuple[float, ...] = (0.5, 0.99)) -> list[float] | None:
    """Seconds that this part of the events took at most, interpolated in a bucket; inf beyond the last; None without events."""
    counts = np.array([counters.get(by_segment(FRESHNESS, stage, name), 0) for name in _NAMES], float)
    total = counts.sum()
    if not total:
        return None
    edges = np.array([0.0, *BOUNDS_S, np.inf])
    found = []
    for point in points:
        before = np.cumsum(counts) - counts
        at = int(np.searchsorted(before + counts, point * total))
        part = (point * total - before[at]) / counts[at]
        width = edges[at + 1] - edges[at]
        found.append(float(edges[at] + part * width if np.isfinite(width) else np.inf))
    return found
