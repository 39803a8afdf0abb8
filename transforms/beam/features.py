"""Batch features: event files -> per-bucket day partials -> (shuffle) -> merged per bucket -> snapshot files.

Elements are packed accumulators, never rows. No call sees more than one event file or one bucket of entities; a file of
small partials may hold all buckets of one day. Every output path is in the plan, so a retried bundle overwrites its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics

from schemas import metric_names
from schemas.workspace import DAY_MICROS
from transforms.accumulators import ACCUMULATORS, GROUP_ACCUMULATORS, Accumulator, ItemDays, ItemUserDays
from transforms.accumulators.base import Globals
from transforms.accumulators.cooccurrence import Interactions, pairs_of_day
from transforms.accumulators.events import Events
from transforms.partials import read_states, write_states
from transforms.snapshots import extract_groups, snapshot_rows

TAIL = "user_tail"
"""The partial that the next day's pairs need: interactions of a day's last half hour, by user bucket."""
PAIR_NAMES = (ItemUserDays.NAME, "item_cooccurrence")
GLOBAL_NAMES = (ItemDays.NAME, ItemUserDays.NAME)
COMPLETE = "complete"
"""Name of the empty partial that makes a file for a day even when its events count for nothing."""
BATCH_ROWS = 1_000_000
"""Rows of an event file that are decoded at a time."""
_ENCODED = ("user_id", "item_id", "event_type", "categories")

Partial = tuple[int, str, int, int, bytes]
"""(day, accumulator name, bucket, rows, packed state)"""


@dataclass(frozen=True)
class EventFile:
    """One file of events of one day, and the accumulators to make from it."""

    path: str
    day: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class StoredStates:
    """A file of ``partials`` of that day, or of ``states`` up to that day, and what to take from it."""

    path: str
    day: int
    names: tuple[str, ...]
    running: bool = False


@dataclass(frozen=True)
class Snapshot:
    """One as_of (day number): its published_at (microseconds) and the file of each (entity, bucket)."""

    as_of: int
    published_at: int
    paths: Mapping[tuple[str, int], str]


@dataclass(frozen=True)
class Plan:
    """All that a run computes, reuses and writes; days are numbers since 1970, ascending.

    Attributes:
      buckets: of entities.
      groups: feature groups to extract.
      files: event files to read.
      stored: partials and states to reuse.
      pair_days: days whose pairs are made.
      partial_paths: (day, shard) -> file; partial_inputs: day -> accumulator -> fingerprint.
      shards: files per day of partials (1, or one per bucket on large days).
      snapshots: by as_of, ascending.
      state_day: running states are written up to this day (None: not), to state_paths by (entity, bucket);
        state_inputs: accumulator -> fingerprint.
      schema_metadata: written into every snapshot file.
    """

    buckets: int
    groups: tuple[str, ...]
    files: tuple[EventFile, ...]
    stored: tuple[StoredStates, ...]
    pair_days: frozenset[int]
    shards: Mapping[int, int]
    partial_paths: Mapping[tuple[int, int], str]
    partial_inputs: Mapping[int, Mapping[str, str]]
    snapshots: tuple[Snapshot, ...]
    state_day: int | None = None
    state_paths: Mapping[tuple[str, int], str] = field(default_factory=dict)
    state_inputs: Mapping[str, str] = field(default_factory=dict)
    schema_metadata: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    def names(self, entity: str) -> list[str]:
        """Accumulators of an entity that the groups need."""
        wanted = {n for g in self.groups for n in GROUP_ACCUMULATORS[g]}
        return [n for n, a in ACCUMULATORS.items() if n in wanted and entity == a.ENTITY]


@dataclass
class BatchFeatures(beam.PTransform):
    """Root -> PCollection of the paths written (partials, states, snapshots)."""

    plan: Plan

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: Any) -> beam.PCollection:
        """Wires the steps; see the module's docstring."""
        plan = self.plan
        read = (root | "event files" >> beam.Create(plan.files) | "spread files" >> beam.Reshuffle()
                | "accumulate each file" >> beam.ParDo(_AccumulateFile(plan)).with_outputs("interactions", main="partials"))
        made = [read.partials]
        stored = root | "stored partials" >> beam.Create(plan.stored) | "spread partials" >> beam.Reshuffle()
        if plan.pair_days:
            tails = stored | "read tails" >> beam.ParDo(_ReadTails(plan))
            made.append((read.interactions, tails) | "interactions and tails" >> beam.Flatten()
                        | "by day and user bucket" >> beam.GroupByKey() | "pair items" >> beam.ParDo(_Pairs(plan.buckets)))
        partials = made | "all partials" >> beam.Flatten()
        written = (partials | "by day" >> beam.ParDo(_ByDay(plan)) | "gather a day" >> beam.GroupByKey()
                   | "write partials" >> beam.ParDo(_WritePartials(plan)))
        keyed = partials | "by bucket" >> beam.ParDo(_ByBucket(plan))
        kept = stored | "stored by bucket" >> beam.ParDo(_StoredByBucket(plan))
        gathered = ((keyed, kept) | "new and stored" >> beam.Flatten() | "gather a bucket" >> beam.GroupByKey())
        totals: Any = {}
        if plan.names("item"):
            summed = ((partials | "of all items" >> beam.ParDo(_GlobalParts(plan)),
                       stored | "stored of all items" >> beam.ParDo(_StoredGlobalParts(plan)))
                      | "parts of all items" >> beam.Flatten() | "gather parts" >> beam.GroupByKey()
                      | "sum a bucket" >> beam.ParDo(_BucketTotals(plan)) | "sum all items" >> beam.CombinePerKey(_add_totals))
            totals = beam.pvalue.AsDict(summed)
        snapshots = gathered | "merge and extract" >> beam.ParDo(_MergeAndExtract(plan), totals)
        return (written, snapshots) | "paths" >> beam.Flatten()


class _AccumulateFile(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._buckets, self._pair_days, self._shards = plan.buckets, plan.pair_days, dict(plan.shards)
        self._read = Metrics.counter(metric_names.NAMESPACE, metric_names.EVENTS_READ)

    def process(self, task: EventFile) -> Iterator[Any]:
        names = [n for n in task.names if n in ACCUMULATORS and n not in PAIR_NAMES]
        made = {name: ACCUMULATORS[name]() for name in names}
        columns = {c for n in task.names for c in (ItemUserDays.COLUMNS if n == TAIL else ACCUMULATORS[n].COLUMNS)}
        for shard in range(self._shards.get(task.day, 0)):  # a day whose events count for nothing is complete too
            yield task.day, COMPLETE, shard * self._buckets // self._shards[task.day], 0, b""
        interactions = []
        for events in read_events(task.path, sorted(columns)):
            self._read.inc(len(events))
            for accumulator in made.values():
                accumulator.add(events)
            if TAIL in task.names or task.day in self._pair_days:
                interactions.append(Interactions.of(events))
        for name, accumulator in made.items():
            for bucket, part in accumulator.split(self._buckets):
                yield task.day, name, bucket, len(part), part.to_bytes()
        if not interactions:
            return
        for bucket, some in Interactions.concat(interactions).split(self._buckets):
            if task.day in self._pair_days:
                yield beam.pvalue.TaggedOutput("interactions", ((task.day, bucket), (False, some.to_bytes())))
            tail = some.tail(task.day)
            if len(tail) == 0:
                continue
            data = tail.to_bytes()
            if TAIL in task.names:
                yield task.day, TAIL, bucket, len(tail), data
            if task.day + 1 in self._pair_days:
                yield beam.pvalue.TaggedOutput("interactions", ((task.day + 1, bucket), (True, data)))


def read_events(path: str, columns: list[str]) -> Iterator[Events]:
    """Batches of an event file, BATCH_ROWS or one row group each."""
    metadata = pq.read_metadata(path)
    leaves = (metadata.schema.column(i).path for i in range(metadata.num_columns))
    encoded = [leaf for leaf in leaves if leaf.split(".")[0] in _ENCODED]
    file = pq.ParquetFile(path, metadata=metadata, memory_map=True, read_dictionary=encoded)
    groups: list[int] = []
    rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows >= BATCH_ROWS or group + 1 == file.num_row_groups:
            yield Events(file.read_row_groups(groups, columns=columns))
            groups, rows = [], 0


class _ReadTails(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._pair_days = plan.pair_days

    def process(self, stored: StoredStates) -> Iterator[Any]:
        if TAIL in stored.names and stored.day + 1 in self._pair_days:
            for _, bucket, data in read_states(stored.path, None, [TAIL]):
                yield (stored.day + 1, bucket), (True, data.to_pybytes())


class _Pairs(beam.DoFn):
    def __init__(self, buckets: int) -> None:
        self._buckets = buckets

    def process(self, element: tuple[tuple[int, int], Iterable[tuple[bool, bytes]]]) -> Iterator[Partial]:
        (day, _), parts = element
        split: dict[bool, list[Interactions]] = {False: [], True: []}
        for is_tail, data in parts:
            split[is_tail].append(Interactions.from_bytes(data))
        made: tuple[Accumulator, ...] = pairs_of_day(day, Interactions.concat(split[False]), Interactions.concat(split[True]))
        for accumulator in made:
            for bucket, part in accumulator.split(self._buckets):
                yield day, accumulator.NAME, bucket, len(part), part.to_bytes()


class _ByDay(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._shards, self._buckets = dict(plan.shards), plan.buckets

    def process(self, partial: Partial) -> Iterator[Any]:
        day, _, bucket, _, _ = partial
        yield (day, bucket * self._shards[day] // self._buckets), partial


class _WritePartials(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._written = Metrics.counter(metric_names.NAMESPACE, metric_names.PARTIALS_WRITTEN)

    def process(self, element: tuple[tuple[int, int], Iterable[Partial]]) -> Iterator[str]:
        (day, shard), partials = element
        gathered: dict[tuple[int, str], list[tuple[int, bytes]]] = defaultdict(list)
        for _, name, bucket, rows, data in partials:
            if name != COMPLETE:
                gathered[bucket, name].append((rows, data))
        path = self._plan.partial_paths[day, shard]
        write_states(path, day, self._plan.partial_inputs[day],
                     ((bucket, name, *_as_one(name, parts)) for (bucket, name), parts in gathered.items()))
        self._written.inc(len(gathered))
        yield path


def _as_one(name: str, parts: list[tuple[int, bytes]]) -> tuple[int, bytes]:
    if len(parts) == 1:
        return parts[0]
    if name == TAIL:
        tail = Interactions.concat([Interactions.from_bytes(data) for _, data in parts])
        return len(tail), tail.to_bytes()
    merged = merge_all(name, [data for _, data in parts])
    return len(merged), merged.to_bytes()


def merge_all(name: str, states: Iterable[Any]) -> Accumulator:
    """One accumulator of packed states."""
    kind = ACCUMULATORS[name]
    first, *rest = [kind.from_bytes(data) for data in states]
    return first.merge(*rest)


class _ByBucket(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._names = {e: set(plan.names(e)) for e in ("user", "item")}

    def process(self, partial: Partial) -> Iterator[Any]:
        day, name, bucket, _, data = partial
        for entity, names in self._names.items():
            if name in names:
                yield (entity, bucket), (name, day, data)


class _StoredByBucket(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._buckets = plan.buckets
        self._names = {e: set(plan.names(e)) for e in ("user", "item")}

    def process(self, stored: StoredStates) -> Iterator[Any]:
        for entity, names in self._names.items():
            if names & set(stored.names):
                for bucket in range(self._buckets):
                    yield (entity, bucket), stored


class _GlobalParts(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._names = set(plan.names("item")) & set(GLOBAL_NAMES)

    def process(self, partial: Partial) -> Iterator[Any]:
        day, name, bucket, _, data = partial
        if name in self._names:
            yield bucket, (name, day, data)


class _StoredGlobalParts(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._buckets = plan.buckets
        self._names = set(plan.names("item")) & set(GLOBAL_NAMES)

    def process(self, stored: StoredStates) -> Iterator[Any]:
        if self._names & set(stored.names):
            for bucket in range(self._buckets):
                yield bucket, stored


class _Merged:
    """Accumulators of one bucket as of rising days: windows are merged anew, lifetimes go on from a running state."""

    def __init__(self, names: Iterable[str], bucket: int, parts: Iterable[Any]) -> None:
        self._names = list(names)
        self._parts: dict[str, dict[int, list[Any]]] = {n: defaultdict(list) for n in self._names}
        self._open: dict[tuple[str, int], Accumulator] = {}
        self._running: dict[str, Accumulator] = {}
        self._until: dict[str, int] = {}
        for part in parts:
            if isinstance(part, StoredStates):
                wanted = [n for n in part.names if n in self._parts]
                for name, _, data in read_states(part.path, [bucket], wanted):
                    if part.running:
                        self._running[name] = ACCUMULATORS[name].from_bytes(data)
                    else:
                        self._parts[name][part.day].append(data)
                if part.running:
                    self._until.update(dict.fromkeys(wanted, part.day))
            elif part[0] in self._parts:
                self._parts[part[0]][part[1]].append(part[2])

    def _day(self, name: str, day: int) -> Accumulator:
        if (name, day) not in self._open:
            self._open[name, day] = merge_all(name, self._parts[name].pop(day))
        return self._open[name, day]

    def as_of(self, day: int) -> dict[str, Accumulator]:
        """Every accumulator with the days that count as of a day number (not below the one before)."""
        merged = {}
        for name in self._names:
            kind = ACCUMULATORS[name]
            held = sorted({*self._parts[name], *(d for n, d in self._open if n == name)})
            if kind.WINDOW is not None:
                days = [d for d in held if day - kind.WINDOW <= d < day]
                for old in [d for d in held if d < day - kind.WINDOW]:
                    self._open.pop((name, old), None)
                merged[name] = kind().merge(*(self._day(name, d) for d in days))
                continue
            days = [d for d in held if self._until.get(name, -1) <= d < day]
            running = self._running.get(name) or kind()
            if days:
                running = running.merge(*(self._day(name, d) for d in days))
                for d in days:
                    del self._open[name, d]
            running.prune(day)
            self._running[name], self._until[name] = running, day
            merged[name] = running
        return merged


class _BucketTotals(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._as_ofs = [s.as_of for s in plan.snapshots]
        self._names = [n for n in plan.names("item") if n in GLOBAL_NAMES]

    def process(self, element: tuple[int, Iterable[Any]]) -> Iterator[tuple[int, Globals]]:
        bucket, parts = element
        merged = _Merged(self._names, bucket, parts)
        for as_of in self._as_ofs:
            found = merged.as_of(as_of)
            days, users = found.get(ItemDays.NAME), found.get(ItemUserDays.NAME)
            if isinstance(days, ItemDays):
                yield as_of, days.totals(as_of)
            if isinstance(users, ItemUserDays):
                yield as_of, users.counts(as_of)


def _add_totals(parts: Iterable[Globals]) -> Globals:
    found = list(parts)
    hashes = np.concatenate([g.item_hash for g in found])
    order = np.argsort(hashes)
    return Globals(
        tuple(sum(column) for column in zip(*(g.popularity for g in found), strict=True)) or (0, 0, 0),
        sum(g.clicks for g in found), sum(g.impressions for g in found),
        hashes[order], np.concatenate([g.item_count for g in found])[order])


class _MergeAndExtract(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows = Metrics.counter(metric_names.NAMESPACE, metric_names.FEATURE_ROWS)

    def process(self, element: tuple[tuple[str, int], Iterable[Any]], totals: Mapping[int, Globals]) -> Iterator[str]:
        (entity, bucket), parts = element
        plan = self._plan
        merged = _Merged(plan.names(entity), bucket, parts)
        for snapshot in plan.snapshots:
            found = merged.as_of(snapshot.as_of)
            extracts = extract_groups([g for g in plan.groups if set(GROUP_ACCUMULATORS[g]) <= found.keys()], found,
                                      snapshot.as_of, totals.get(snapshot.as_of, Globals()))
            rows = snapshot_rows(entity, extracts, snapshot.as_of, snapshot.published_at, plan.groups)
            if snapshot.as_of == plan.state_day:
                lasting = {n: a for n, a in found.items() if a.WINDOW is None}
                path = plan.state_paths[entity, bucket]
                write_states(path, snapshot.as_of, {n: plan.state_inputs[n] for n in lasting},
                             ((bucket, n, len(a), a.to_bytes()) for n, a in lasting.items()))
                yield path
            if len(rows):
                self._rows.inc(len(rows))
                path = snapshot.paths[entity, bucket]
                pq.write_table(rows.replace_schema_metadata(dict(plan.schema_metadata.get(snapshot.as_of, {}))), path,
                               compression="zstd", compression_level=1, row_group_size=65_536)
                yield path


def day_of(micros: int) -> int:
    """The day number of a time."""
    return micros // DAY_MICROS
