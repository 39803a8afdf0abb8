"""Writing packed lists and catalogue entries to the store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from beam_pipelines import crashpoints
from schemas import metric_names
from schemas.keys import ITEM, row_key
from serving.catalogue import encode_item
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite, ListWrite, Store

_CATALOGUE_ROWS = 20_000


class WriteLists(beam.DoFn):  # type: ignore[misc]
    """RecordBatches of transforms.beam.recommend.LISTS_SCHEMA -> the store, under one version.

    A batch is written while the next is ranked; a failure fails the bundle, and a bundle that is tried again writes the same
    cells.
    """

    def __init__(self, store: str, version: str, timestamp: int) -> None:
        self._uri, self._version, self._timestamp = store, version, timestamp
        self._written = Metrics.counter(metric_names.NAMESPACE, metric_names.LISTS_WRITTEN)

    def setup(self) -> None:
        self._store = open_store(self._uri)
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[int] | None = None

    def process(self, batch: pa.RecordBatch) -> None:
        self._wait()
        self._pending = self._writer.submit(self._write, batch)

    def finish_bundle(self) -> None:
        self._wait()

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._written.inc(pending.result())

    def _write(self, batch: pa.RecordBatch) -> int:
        written = self._store.write_lists(
            ListWrite(row, self._version, Cell(value, self._timestamp))
            for row, value in zip(batch.column("row").to_pylist(), batch.column("value").to_pylist(), strict=True))
        crashpoints.reached("lists.chunk")
        return written

    def teardown(self) -> None:
        self._writer.shutdown()
        self._store.close()


def write_catalogue(store: Store, items: pa.Table) -> int:
    """Makes the ``meta`` cells of items (columns of schemas.tables.ITEMS) what the table says; returns how many changed.

    A cell is JSON {title, categories, price, image, attributes}; its timestamp is the item's updated_at.
    """
    changed = 0
    for start in range(0, items.num_rows, _CATALOGUE_ROWS):
        writes = list(_catalogue_writes(items.slice(start, _CATALOGUE_ROWS)))
        present = store.read_features([w.row for w in writes], "meta", ["item"])
        new = [w for w, there in zip(writes, present, strict=True) if there.get("item") != w.cell]
        changed += store.write_features(new) if new else 0
    return changed


def _catalogue_writes(items: pa.Table) -> Iterator[FeatureWrite]:
    micros = items["updated_at"].cast(pa.int64()).to_numpy() // 1000 * 1000
    columns = [items[name].to_pylist() for name in ("item_id", "title", "categories", "price", "image", "attributes")]
    for item_id, title, categories, price, image, attributes, at in zip(*columns, np.maximum(micros, 0).tolist(), strict=True):
        entry = encode_item(title, categories, price, image, dict(attributes or ()))
        yield FeatureWrite(row_key(ITEM, item_id), "meta", "item", Cell(entry, at))
