"""Cells to the store: in chunks, tried again with growing pauses, and not hammered while the store is away."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from schemas import metric_names
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite, Store, StoreError

_CHUNK_ROWS = 20_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_TRIPS_AFTER = 3
_log = logging.getLogger(__name__)


class StoreAwayError(RuntimeError):
    """The store stayed away for longer than the sink waits; the bundle fails and the runner tries it again."""


class Breaker:
    """One process's view of a store: after a few failures in a row only one writer at a time still tries, the others wait."""

    def __init__(self) -> None:
        self._failures = 0
        self._probe = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the store is taken as away."""
        return self._failures >= _TRIPS_AFTER

    def call(self, write: Callable[[], int]) -> int:
        """Writes; alone while the store is taken as away."""
        if not self.is_open:
            return self._counted(write)
        with self._probe:
            return self._counted(write)

    def _counted(self, write: Callable[[], int]) -> int:
        try:
            done = write()
        except StoreError:
            self._failures += 1
            raise
        self._failures = 0
        return done


def write_patiently(write: Callable[[], int], breaker: Breaker, wait_s: float, retried: Callable[[], None],
                    sleep: Callable[[float], None] = time.sleep) -> int:
    """Calls ``write`` until it succeeds; pauses double from 0.1 s to 5 s, each cut short by a random part.

    Raises:
      StoreAwayError: it failed for ``wait_s`` seconds.
    """
    pause, until = _FIRST_PAUSE_S, time.monotonic() + wait_s
    while True:
        try:
            return breaker.call(write)
        except StoreError as error:
            retried()
            if time.monotonic() + pause > until:
                raise StoreAwayError(f"the store has refused every write for {wait_s:.0f} s: {error}") from error
            if pause == _FIRST_PAUSE_S:
                _log.warning("the store refuses writes, trying again for up to %.0f s: %s", wait_s, error)
            sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)


class _Client:
    """The process's store and breaker."""

    def __init__(self, uri: str) -> None:
        self._uri, self._lock = uri, threading.Lock()
        self._store: Store | None = None
        self.breaker = Breaker()

    def write(self, writes: list[FeatureWrite]) -> int:
        with self._lock:
            if self._store is None:
                self._store = open_store(self._uri)
            store = self._store
        return store.write_features(writes)


@dataclass(eq=False)
class WriteCells(beam.PTransform):  # type: ignore[misc]
    """RecordBatches of cells.CELLS -> the store's family ``stream``; gives out (job, counters of a bundle as JSON).

    A write is a full value under a timestamp that says what it knows, so writing it again changes nothing.

    Attributes:
      store: URI of the store.
      job: name under which counters are summed.
      wait_s: how long a bundle waits for a store that is away before it fails.
    """

    store: str
    job: str
    wait_s: float = 300.0

    def expand(self, cells: beam.PCollection) -> beam.PCollection:
        """See the class."""
        write = _WriteCells(self.store, self.job, self.wait_s)
        return cells | "Write cells" >> beam.ParDo(write).with_output_types(tuple[str, str])


class _WriteCells(beam.DoFn):  # type: ignore[misc]
    def __init__(self, store: str, job: str, wait_s: float) -> None:
        self._uri, self._job, self._wait_s, self._shared = store, job, wait_s, Shared()
        self._written = Metrics.counter(metric_names.NAMESPACE, metric_names.CELLS_WRITTEN)
        self._retried = Metrics.counter(metric_names.NAMESPACE, metric_names.CELLS_RETRIED)
        self._took = Metrics.distribution(metric_names.NAMESPACE, metric_names.FLUSH_MS)

    def setup(self) -> None:
        self._client: _Client = self._shared.acquire(self._open)
        self._stats: Counter[str] = Counter()

    def _open(self) -> _Client:
        return _Client(self._uri)

    def start_bundle(self) -> None:
        self._stats = Counter()

    def process(self, cells: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        self._timestamp = timestamp
        began = time.monotonic()
        for start in range(0, cells.num_rows, _CHUNK_ROWS):
            writes = feature_writes(cells.slice(start, _CHUNK_ROWS))
            write_patiently(lambda writes=writes: self._client.write(writes), self._client.breaker,  # type: ignore[misc]
                            self._wait_s, self._note_retry)
        took = round((time.monotonic() - began) * 1000)
        self._written.inc(cells.num_rows)
        self._took.update(took)
        self._stats[metric_names.CELLS_WRITTEN] += cells.num_rows
        self._stats[metric_names.FLUSH_MS] += took

    def _note_retry(self) -> None:
        self._retried.inc()
        self._stats[metric_names.CELLS_RETRIED] += 1

    def finish_bundle(self) -> Iterator[Any]:
        if self._stats:
            yield GlobalWindows.windowed_value((self._job, json.dumps(self._stats)), self._timestamp)


def feature_writes(cells: pa.RecordBatch) -> list[FeatureWrite]:
    """CELLS as the store takes them."""
    columns = [cells.column(name).to_pylist() for name in ("row", "group", "value", "timestamp")]
    return [FeatureWrite(row, "stream", group, Cell(value, timestamp))
            for row, group, value, timestamp in zip(*columns, strict=True)]
