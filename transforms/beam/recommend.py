"""User snapshots -> user vectors -> ranked, packed lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from schemas import metric_names
from schemas.keys import hash64_column, list_key
from transforms.candidates import Blend, Lists, Ranker, Users, fetch_classes, users_of
from transforms.catalogue import Catalogue
from transforms.packing import encode_lists
from transforms.topk import exact_top_k

LISTS_SCHEMA = pa.schema([pa.field("row", pa.string()), pa.field("value", pa.binary())])
"""What ``Recommend`` emits: row key (schemas.keys.list_key) and packed list (schemas.cells.RankedList)."""

_SAMPLED = 32  # so many users of a batch are compared with brute force


@dataclass(frozen=True)
class Retrieval:
    """A loaded catalogue and its index: ``search(queries (n, d), k) -> (positions (n, k), scores (n, k))``."""

    catalogue: Catalogue
    search: Callable[[npt.NDArray[np.float32], int], tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]
    exact: bool


class RetrievalSource(Protocol):
    """Where a worker loads the retrieval from; travels to the workers, so it holds paths only."""

    def open(self) -> Retrieval:
        """Loads it."""
        ...


@dataclass(frozen=True)
class Stamp:
    """What every list of a run carries; times in microseconds since 1970, UTC."""

    surface: str
    model_version: str
    generated_at: int
    expires_at: int


@dataclass(eq=False)
class Recommend(beam.PTransform):  # type: ignore[misc]
    """RecordBatches of user snapshots (schemas.tables.USER_SNAPSHOTS) -> RecordBatches of LISTS_SCHEMA, one row per user.

    Attributes:
      handler: RecordBatch of users -> the same with one column more, ``vector`` fixed_size_list<float32>.
      retrieval: catalogue and index, loaded once per process.
      blend: how candidates are found and scored.
      stamp: of every list.
    """

    handler: ModelHandler
    retrieval: RetrievalSource
    blend: Blend
    stamp: Stamp

    def expand(self, users: beam.PCollection) -> beam.PCollection:
        """See the class."""
        return (users
                | "User vectors" >> RunInference(self.handler).with_output_types(pa.RecordBatch)
                | "Rank and explain" >> beam.ParDo(_RankUsers(self.retrieval, self.blend, self.stamp, Shared()))
                .with_output_types(pa.RecordBatch))


class _RankUsers(beam.DoFn):  # type: ignore[misc]
    """A batch is ranked in a thread of its own while the next is read and goes through the user tower."""

    def __init__(self, source: RetrievalSource, blend: Blend, stamp: Stamp, shared: Shared) -> None:
        self._source, self._blend, self._stamp, self._shared = source, blend, stamp, shared
        self._without = Metrics.counter(metric_names.NAMESPACE, metric_names.USERS_WITHOUT_VECTOR)
        self._wanted = Metrics.counter(metric_names.NAMESPACE, metric_names.RETRIEVAL_WANTED)
        self._found = Metrics.counter(metric_names.NAMESPACE, metric_names.RETRIEVAL_FOUND)

    def setup(self) -> None:
        self._retrieval = self._shared.acquire(self._source.open)
        self._ranker = Ranker(self._retrieval.catalogue, self._blend)
        self._thread = ThreadPoolExecutor(1)
        self._pending: tuple[Future[_Ranked], Any, Any] | None = None

    def start_bundle(self) -> None:
        self._pending = None  # of a bundle that failed

    def process(self, element: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam,
                window: Any = beam.DoFn.WindowParam) -> Iterator[WindowedValue]:
        before, self._pending = self._pending, (self._thread.submit(self._rank, element), timestamp, window)
        yield from self._finished(before)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        last, self._pending = self._pending, None
        yield from self._finished(last)

    def teardown(self) -> None:
        self._thread.shutdown()

    def _finished(self, pending: tuple[Future[_Ranked], Any, Any] | None) -> Iterator[WindowedValue]:
        if pending is None:
            return
        future, timestamp, window = pending
        ranked = future.result()
        self._without.inc(ranked.without_vector)  # counters belong to the thread of the bundle
        self._wanted.inc(ranked.wanted)
        self._found.inc(ranked.found)
        for rows in ranked.rows:
            yield WindowedValue(rows, timestamp, (window,))

    def _rank(self, batch: pa.RecordBatch) -> _Ranked:
        catalogue = self._retrieval.catalogue
        vectors, usable = vectors_of(batch.column("vector"), catalogue.vectors.shape[1])
        users = users_of(batch, catalogue, self._blend)
        usable &= np.diff(users.history_offsets) > 0  # a tower's answer to an empty history is no taste
        rows, wanted, hits = [], 0, 0
        for chosen, k in fetch_classes(users, catalogue, self._blend):
            some = users.take(chosen)
            found, dots = search_usable(self._retrieval, vectors[chosen], usable[chosen], k)
            lists = self._ranker.rank(some, vectors[chosen], usable[chosen], found, dots)
            if not self._retrieval.exact:
                compared = self._compare(some, vectors[chosen], usable[chosen], found)
                wanted, hits = wanted + compared[0], hits + compared[1]
            rows.append(pack(some.user_ids, lists, catalogue, self._stamp))
        return _Ranked(rows, int((~usable).sum()), wanted, hits)

    def _compare(self, users: Users, vectors: npt.NDArray[np.float32], usable: npt.NDArray[np.bool_],
                 found: npt.NDArray[np.int32]) -> tuple[int, int]:
        sample = np.flatnonzero(usable)
        sample = sample[np.argsort(hash64_column(users.user_ids)[sample], kind="stable")[:_SAMPLED]]
        return retrieval_hits(self._retrieval.catalogue, users.take(sample), vectors[sample], found[sample],
                              self._blend.list_length)


@dataclass(frozen=True)
class _Ranked:
    rows: list[pa.RecordBatch]
    without_vector: int
    wanted: int
    found: int


def vectors_of(column: pa.FixedSizeListArray, dimensions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """((n, d) vectors, (n,) whether each is present, finite and not zero)."""
    if column.type.list_size != dimensions:
        raise ValueError(f"user vectors of {column.type.list_size} dimensions do not fit items of {dimensions}")
    flat = column.values.slice(column.offset * dimensions, len(column) * dimensions)
    vectors = np.ascontiguousarray(flat.to_numpy(zero_copy_only=False).reshape(-1, dimensions), np.float32)
    usable = column.is_valid().to_numpy(zero_copy_only=False) & np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    return vectors, usable


def search_usable(retrieval: Retrieval, vectors: npt.NDArray[np.float32], usable: npt.NDArray[np.bool_],
                  k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The index's answer for the rows that have a vector; -1 and -inf in the others."""
    if usable.all():
        return retrieval.search(vectors, k)
    found = np.full((len(vectors), k), -1, np.int32)
    dots = np.full((len(vectors), k), -np.inf, np.float32)
    if usable.any():
        found[usable], dots[usable] = retrieval.search(vectors[usable], k)
    return found, dots


def retrieval_hits(catalogue: Catalogue, users: Users, vectors: npt.NDArray[np.float32], found: npt.NDArray[np.int32],
                   length: int) -> tuple[int, int]:
    """(true best items, how many of them were found) where the true ones are each user's ``length`` items of highest dot
    product that are active and not consumed, by brute force."""
    wanted = hits = 0
    consumed = np.diff(users.consumed_offsets)
    reach = min(len(catalogue.vectors), length + int(consumed.max(initial=0)))
    allowed = np.flatnonzero(catalogue.active[: len(catalogue.vectors)]).astype(np.int32)
    truth, _ = exact_top_k(vectors, catalogue.vectors[allowed], reach)
    for row in range(len(vectors)):
        done = users.consumed[users.consumed_offsets[row] : users.consumed_offsets[row + 1]]
        best = allowed[truth[row][truth[row] >= 0]]
        best = best[~np.isin(best, done)][:length]
        wanted += len(best)
        hits += int(np.isin(best, found[row]).sum())
    return wanted, hits


def pack(user_ids: pa.StringArray, lists: Lists, catalogue: Catalogue, stamp: Stamp) -> pa.RecordBatch:
    """Lists as rows of the store."""
    cells = encode_lists(catalogue.item_ids, lists.counts, lists.positions, lists.scores, lists.sources, lists.reasons,
                         lists.because, stamp.model_version, stamp.generated_at, stamp.expires_at)
    rows: list[Any] = [list_key(user, stamp.surface) for user in user_ids.to_pylist()]
    return pa.record_batch([pa.array(rows, pa.string()), cells], schema=LISTS_SCHEMA)
