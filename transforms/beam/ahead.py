"""Heavy elements worked on in a few threads: Arrow, NumPy and Numba let go of the interpreter, so all cores are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from schemas import metric_names

THREADS = 2
"""Elements of a bundle that are worked on at a time, each by one thread."""


class AheadDoFn(beam.DoFn):
    """A DoFn that emits the outputs of ``work`` in the order of its elements; for data in the global window.

    A subclass's ``process`` yields from ``ahead(...)``. ``work`` gets the same arguments, runs in a thread and returns how
    much COUNTER grows and the outputs (beam.pvalue.TaggedOutput for other tags).
    """

    COUNTER: ClassVar[str]

    def work(self, *args: Any) -> tuple[int, list[Any]]:
        """One element's outputs."""
        raise NotImplementedError

    def setup(self) -> None:
        """Starts the threads."""
        self._pool = ThreadPoolExecutor(THREADS, type(self).__name__)
        self._counter = Metrics.counter(metric_names.NAMESPACE, self.COUNTER)

    def start_bundle(self) -> None:
        """A bundle's outputs are its own."""
        self._waiting: deque[Future[tuple[int, list[Any]]]] = deque()

    def ahead(self, *args: Any) -> Iterator[Any]:
        """Starts an element; yields the outputs of the oldest one once THREADS others wait."""
        self._waiting.append(self._pool.submit(self.work, *args))
        if len(self._waiting) > THREADS:
            yield from self._oldest()

    def finish_bundle(self) -> Iterator[Any]:
        """Yields what is left."""
        while self._waiting:
            for output in self._oldest():
                if isinstance(output, beam.pvalue.TaggedOutput):
                    yield beam.pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
                else:
                    yield GlobalWindows.windowed_value(output)

    def teardown(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _oldest(self) -> list[Any]:
        count, outputs = self._waiting.popleft().result()
        self._counter.inc(count)  # metrics belong to the thread that Beam calls
        return outputs
