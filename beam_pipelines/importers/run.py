"""Writes a data set into the lake of a workspace."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.importers.dataset import Dataset, bare_rows
from beam_pipelines.importers.lines import File
from beam_pipelines.io.ingest import BUDGET_BYTES, Captured, IngestCounts, ingest, upsert_items, upsert_users
from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from schemas.tables import ITEMS, USERS

T = TypeVar("T")
_AHEAD = 4
"""Batches parsed ahead of the writer."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did; ``items`` and ``users`` changed, ``now`` is the workspace clock after it (microseconds)."""

    dataset: str
    path: str
    counts: IngestCounts
    items: int
    users: int
    now: int

    def as_json(self) -> dict[str, Any]:
        """The counts and the rest in one flat document."""
        return {"dataset": self.dataset, "path": self.path, **asdict(self.counts), "items": self.items, "users": self.users,
                "now": self.now}


def run(config: Config, dataset: Dataset) -> ImportReport:
    """Imports a data set; again, it changes nothing. Then the workspace clock stands at the midnight after its last event."""
    lake = Lake.open(config.lake, config.catalog)
    with Stage(f"import {dataset.name}", total=sum(f.path.stat().st_size for f in dataset.files), quiet=config.quiet) as stage:
        counts = ingest(lake, _ahead(_reporting(dataset, stage)), sources=dataset.sources, budget_bytes=BUDGET_BYTES)
        items = _upsert(lake, dataset.items(), dataset.seen_items, "item")
        users = _upsert(lake, dataset.users(), dataset.seen_users, "user")
    if counts.last_event is not None:
        config.workspace.freeze_after(counts.last_event)
    return ImportReport(dataset.name, str(dataset.root), counts, items, users, config.workspace.now())


def _upsert(lake: Lake, described: pa.Table, seen: set[str], entity: str) -> int:
    """Upserts what is described, and ids that only events name unless they are known."""
    schema, upsert = (ITEMS.schema, upsert_items) if entity == "item" else (USERS.schema, upsert_users)
    key = f"{entity}_id"
    bare = bare_rows(schema, key, seen.difference(described[key].to_pylist()))
    known = lake.read(f"{entity}s", columns=[key])[key]
    bare = bare.filter(pc.invert(pc.is_in(bare[key], known.combine_chunks().cast(pa.string()))))
    rows = pa.concat_tables([described, bare])
    return upsert(lake, rows) if len(rows) else 0


def _reporting(dataset: Dataset, stage: Stage) -> Iterator[Captured]:
    current: File | None = None
    rows = 0
    for file, batch in dataset.captured():
        if current is not None and file is not current and current in dataset.files:
            stage.advance(current.path.stat().st_size, f"{rows:,} rows")
        current = file
        rows += len(batch.events)
        yield batch
    if current is not None:
        stage.advance(current.path.stat().st_size, f"{rows:,} rows")


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, made in a thread while earlier ones are used; an error is raised where it would have been."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # raised again by the reader below
            put("error", error)

    thread = threading.Thread(target=make, name="import-reader", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
