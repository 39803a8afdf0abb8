"""Cells to the store: in chunks, tried again with the growing pauses of a circuit breaker while the store is away."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from schemas import metric_names
from serving.breaker import Breaker, BreakerSettings
from serving.stores import open_store
from serving.stores.base import Store, StoreError
from transforms.beam.stream.freshness import stored

_CHUNK_ROWS = 20_000
AWAY = BreakerSettings(failures=1, pause_s=0.1, max_pause_s=4.0, jitter=0.25, probe_s=600.0)
"""One refused write opens it: what is to be written waits anyway, for 0.1 to 5 s, and a probe is that same write."""
_log = logging.getLogger(__name__)


class StoreAwayError(RuntimeError):
    """The store stayed away for longer than the sink waits; the bundle fails and the runner tries it again."""


def write_patiently(write: Callable[[], int], breaker: Breaker, wait_s: float, retried: Callable[[], None],
                    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> int:
    """Calls ``write`` whenever the breaker allows it until it succeeds; what was written before decides about the first pause.

    Args:
      clock: that of the breaker.

    Raises:
      StoreAwayError: it failed for ``wait_s`` seconds.
    """
    until, trouble = clock() + wait_s, None
    while True:
        if breaker.allows():
            try:
                done = write()
            except StoreError as error:
                breaker.failed()
                retried()
                if trouble is None:
                    _log.warning("the store refuses writes, trying again for up to %.0f s: %s", wait_s, error)
                trouble = error
            else:
                breaker.ok()
                return done
        pause = breaker.pause_s
        if trouble is not None and clock() + pause > until:
            raise StoreAwayError(f"the store has refused every write for {wait_s:.0f} s: {trouble}") from trouble
        sleep(pause)


@dataclass(frozen=True)
class _Written:
    """What became of a batch of cells: milliseconds it took, and how often the store refused."""

    took_ms: int
    retries: int


class _Client:
    """The process's store, its breaker, and the one thread that writes: state goes on while the store does."""

    def __init__(self, uri: str, wait_s: float) -> None:
        self._uri, self._wait_s = uri, wait_s
        self._store: Store | None = None
        self._breaker = Breaker("store", AWAY)
        self._writer = ThreadPoolExecutor(1, "beamrec-cells")

    def submit(self, cells: pa.RecordBatch) -> Future[_Written]:
        """Writes CELLS, after those that were submitted before; the result raises StoreAwayError."""
        return self._writer.submit(self._write, cells)

    def _write(self, cells: pa.RecordBatch) -> _Written:
        began, retries = time.monotonic(), Counter[str]()
        for start in range(0, cells.num_rows, _CHUNK_ROWS):
            write_patiently(functools.partial(self._put, cells.slice(start, _CHUNK_ROWS)), self._breaker, self._wait_s,
                            lambda: retries.update(("refused",)))
        return _Written(round((time.monotonic() - began) * 1000), retries.total())

    def _put(self, cells: pa.RecordBatch) -> int:
        if self._store is None:
            self._store = open_store(self._uri, create=False, patient=True)
        return self._store.write_cells("stream", cells)


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
        return _Client(self._uri, self._wait_s)

    def start_bundle(self) -> None:
        self._stats = Counter()
        self._pending: tuple[pa.RecordBatch, Future[_Written]] | None = None

    def process(self, cells: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        self._timestamp = timestamp
        self._wait()
        self._pending = cells, self._client.submit(cells)

    def _wait(self) -> None:
        """Until what was submitted is in the store: a bundle is never more than one batch ahead of it."""
        if self._pending is None:
            return
        (cells, pending), self._pending = self._pending, None
        written = pending.result()
        self._written.inc(cells.num_rows)
        self._took.update(written.took_ms)
        self._stats.update(stored(cells, time.time()))
        self._stats[metric_names.CELLS_WRITTEN] += cells.num_rows
        self._stats[metric_names.FLUSH_MS] += written.took_ms
        self._stats[metric_names.FLUSHES] += 1
        if written.retries:
            self._retried.inc(written.retries)
            self._stats[metric_names.CELLS_RETRIED] += written.retries

    def finish_bundle(self) -> Iterator[Any]:
        self._wait()
        if self._stats:
            yield GlobalWindows.windowed_value((self._job, json.dumps(self._stats)), self._timestamp)
