"""Batch features: event files -> per-bucket day partials -> (shuffle) -> merged per bucket -> snapshot files.

Elements are packed accumulators, never rows. No call sees more than one event file or one bucket of entities; where all
the data is smaller than one file usually is, it is one bucket (``Plan.units``, ``Plan.cuts``). Every output path is in
the plan, so a retried bundle overwrites its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq

from schemas import metric_names
from schemas.workspace import DAY_MICROS
from transforms.accumulators import ACCUMULATORS, GROUP_ACCUMULATORS, Accumulator, ItemDays, ItemUserDays
from transforms.accumulators.base import Globals
from transforms.accumulators.cooccurrence import Interactions, pairs_of_day
from transforms.accumulators.events import Events
from transforms.beam.ahead import AheadDoFn
from transforms.feature_plan import EventFile, Plan, StoredStates
from transforms.partials import read_states, write_states
from transforms.quality import check_snapshot
from transforms.snapshots import extract_groups, snapshot_rows, write_rows

TAIL = "user_tail"
"""The partial that the next day's pairs need: interactions of a day's last half hour, by user bucket."""
FAILURES = "beamrec.failures"
"""In the metadata of a snapshot file: the quality checks that its rows failed, a JSON list."""
PAIR_NAMES = (ItemUserDays.NAME, "item_cooccurrence")
GLOBAL_NAMES = (ItemDays.NAME, ItemUserDays.NAME)
COMPLETE = "complete"
"""Name of the empty partial that makes a file for a day even when its events count for nothing."""
BATCH_ROWS = 1_000_000
"""Rows of an event file that are decoded at a time."""
_ENCODED = ("user_id", "item_id", "event_type", "categories")

Partial = tuple[int, str, int, int, bytes]
"""(day, accumulator name, bucket, rows, packed state)"""


@dataclass
class BatchFeatures(beam.PTransform):
    """Root -> PCollection of the paths written (partials, states, snapshots)."""

    plan: Plan

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: Any) -> beam.PCollection:
        """Wires the steps; see the module's docstring."""
        plan = self.plan
        read = (root | "event files" >> beam.Create(plan.files)  # Create spreads them: it reshuffles
                | "accumulate each file" >> beam.ParDo(_AccumulateFile(plan)).with_outputs("interactions", main="partials"))
        made = [read.partials]
        stored = root | "stored partials" >> beam.Create(plan.stored)
        if plan.pair_days:
            tails = stored | "read tails" >> beam.ParDo(_ReadTails(plan))
            made.append((read.interactions, tails) | "interactions and tails" >> beam.Flatten()
                        | "by day and user bucket" >> beam.GroupByKey() | "pair items" >> beam.ParDo(_Pairs(plan)))
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
                      | "sum a bucket" >> beam.ParDo(_BucketTotals(plan)) | "gather sums" >> beam.GroupByKey()
                      | "sum all items" >> beam.MapTuple(_add_totals))
            totals = beam.pvalue.AsDict(summed)
        snapshots = gathered | "merge and extract" >> beam.ParDo(_MergeAndExtract(plan), totals)
        return (written, snapshots) | "paths" >> beam.Flatten()


class _AccumulateFile(AheadDoFn):
    COUNTER = metric_names.EVENTS_READ

    def __init__(self, plan: Plan) -> None:
        self._cuts, self._pair_days, self._shards = dict(plan.cuts), plan.pair_days, dict(plan.shards)

    def process(self, task: EventFile) -> Iterator[Any]:
        yield from self.ahead(task)

    def work(self, task: EventFile) -> tuple[int, list[Any]]:
        names = [n for n in task.names if n in ACCUMULATORS and n not in PAIR_NAMES]
        cuts = self._cuts[task.day]
        made = {name: ACCUMULATORS[name]() for name in names}
        columns = {c for n in task.names for c in (ItemUserDays.COLUMNS if n == TAIL else ACCUMULATORS[n].COLUMNS)}
        shards = self._shards.get(task.day, 0)  # a day whose events count for nothing is complete too
        out: list[Any] = [(task.day, COMPLETE, shard * cuts // shards, 0, b"") for shard in range(shards)]
        interactions, read = [], 0
        for events in read_events(task.path, sorted(columns)):
            read += len(events)
            for accumulator in made.values():
                accumulator.add(events)
            if TAIL in task.names or task.day in self._pair_days:
                interactions.append(Interactions.of(events))
        for name, accumulator in made.items():
            out += [(task.day, name, bucket, len(part), part.to_bytes()) for bucket, part in accumulator.split(cuts)]
        if interactions:
            out += self._interactions(task, Interactions.concat(interactions))
        return read, out

    def _interactions(self, task: EventFile, together: Interactions) -> Iterator[Any]:
        cuts, tail = self._cuts[task.day], together.tail(task.day)
        if task.day in self._pair_days:
            for bucket, some in together.split(cuts):
                yield beam.pvalue.TaggedOutput("interactions", ((task.day, bucket), (False, some.to_bytes())))
        if TAIL in task.names:
            for bucket, some in tail.split(cuts):
                yield task.day, TAIL, bucket, len(some), some.to_bytes()
        if task.day + 1 in self._pair_days:
            for bucket, some in tail.split(self._cuts[task.day + 1]):
                yield beam.pvalue.TaggedOutput("interactions", ((task.day + 1, bucket), (True, some.to_bytes())))


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
        self._pair_days, self._cuts = plan.pair_days, dict(plan.cuts)

    def process(self, stored: StoredStates) -> Iterator[Any]:
        if TAIL in stored.names and stored.day + 1 in self._pair_days:
            for _, _, data in read_states(stored.path, [TAIL]):
                for bucket, some in Interactions.from_bytes(data).split(self._cuts[stored.day + 1]):
                    yield (stored.day + 1, bucket), (True, some.to_bytes())


class _Pairs(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._cuts = dict(plan.cuts)

    def process(self, element: tuple[tuple[int, int], Iterable[tuple[bool, bytes]]]) -> Iterator[Partial]:
        (day, _), parts = element
        split: dict[bool, list[Interactions]] = {False: [], True: []}
        for is_tail, data in parts:
            split[is_tail].append(Interactions.from_bytes(data))
        made: tuple[Accumulator, ...] = pairs_of_day(day, Interactions.concat(split[False]), Interactions.concat(split[True]))
        for accumulator in made:
            for bucket, part in accumulator.split(self._cuts[day]):
                yield day, accumulator.NAME, bucket, len(part), part.to_bytes()


class _ByDay(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._shards, self._cuts = dict(plan.shards), dict(plan.cuts)

    def process(self, partial: Partial) -> Iterator[Any]:
        day, _, bucket, _, _ = partial
        yield (day, bucket * self._shards[day] // self._cuts[day]), partial


class _WritePartials(AheadDoFn):
    COUNTER = metric_names.PARTIALS_WRITTEN

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def process(self, element: tuple[tuple[int, int], Iterable[Partial]]) -> Iterator[str]:
        (day, shard), partials = element
        yield from self.ahead(day, shard, list(partials))

    def work(self, day: int, shard: int, partials: list[Partial]) -> tuple[int, list[str]]:
        gathered: dict[tuple[int, str], list[tuple[int, bytes]]] = defaultdict(list)
        for _, name, bucket, rows, data in partials:
            if name != COMPLETE:
                gathered[bucket, name].append((rows, data))
        path = self._plan.partial_paths[day, shard]
        write_states(path, day, self._plan.cuts[day], self._plan.partial_inputs[day],
                     ((bucket, name, *_as_one(name, parts)) for (bucket, name), parts in gathered.items()))
        return len(gathered), [path]


def _as_one(name: str, parts: list[tuple[int, bytes]]) -> tuple[int, bytes]:
    if len(parts) == 1:
        return parts[0]
    if name == TAIL:
        tail = Interactions.concat([Interactions.from_bytes(data) for _, data in parts])
        return len(tail), tail.to_bytes()
    first, *rest = [ACCUMULATORS[name].from_bytes(data) for _, data in parts]
    merged = first.merge(*rest)
    return len(merged), merged.to_bytes()


def _units(bucket: int, cuts: int, units: int) -> range:
    """The units that share entities with one bucket of ``cuts``."""
    return range(bucket * units // cuts, max((bucket + 1) * units // cuts, bucket * units // cuts + 1))


class _ByBucket(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._units, self._cuts = plan.units, dict(plan.cuts)
        self._names = {e: set(plan.names(e)) for e in ("user", "item")}

    def process(self, partial: Partial) -> Iterator[Any]:
        day, name, bucket, _, data = partial
        for entity, names in self._names.items():
            if name in names:
                for unit in _units(bucket, self._cuts[day], self._units):
                    yield (entity, unit), (name, day, self._cuts[day], data)


class _StoredByBucket(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._units = plan.units
        self._names = {e: set(plan.names(e)) for e in ("user", "item")}

    def process(self, stored: StoredStates) -> Iterator[Any]:
        for entity, names in self._names.items():
            if names & set(stored.names):
                for unit in range(self._units):
                    yield (entity, unit), stored


class _GlobalParts(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._units, self._cuts = plan.units, dict(plan.cuts)
        self._names = set(plan.names("item")) & set(GLOBAL_NAMES)

    def process(self, partial: Partial) -> Iterator[Any]:
        day, name, bucket, _, data = partial
        if name in self._names:
            for unit in _units(bucket, self._cuts[day], self._units):
                yield unit, (name, day, self._cuts[day], data)


class _StoredGlobalParts(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._units = plan.units
        self._names = set(plan.names("item")) & set(GLOBAL_NAMES)

    def process(self, stored: StoredStates) -> Iterator[Any]:
        if self._names & set(stored.names):
            for unit in range(self._units):
                yield unit, stored


class _Merged:
    """Accumulators of one bucket as of rising days: each goes on from a running state, or from the as_of before.

    A day enters once; it leaves a window when it is pruned or taken out. All integers: the same bits as a merge anew.
    """

    def __init__(self, names: Iterable[str], unit: int, units: int, parts: Iterable[Any]) -> None:
        self._names, self._unit, self._units = list(names), unit, units
        self._parts: dict[str, dict[int, list[tuple[int, Any]]]] = {n: defaultdict(list) for n in self._names}
        self._running: dict[str, Accumulator] = {}
        self._until: dict[str, int] = {}
        running: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for part in parts:
            if isinstance(part, StoredStates):
                wanted = [n for n in part.names if n in self._parts]
                for name, _, data in read_states(part.path, wanted, unit, units):
                    (running[name] if part.running else self._parts[name][part.day]).append((part.buckets, data))
                if part.running:
                    self._until.update(dict.fromkeys(wanted, part.day))
            elif part[0] in self._parts:
                self._parts[part[0]][part[1]].append(part[2:])
        for name, states in running.items():
            self._running[name] = self._merge(name, states)

    def _merge(self, name: str, states: list[tuple[int, Any]]) -> Accumulator:
        first, *rest = [self._mine(ACCUMULATORS[name].from_bytes(data), cuts) for cuts, data in states]
        return first.merge(*rest)

    def _mine(self, accumulator: Accumulator, cuts: int) -> Accumulator:
        return accumulator if cuts >= self._units else accumulator.bucket(self._unit, self._units)

    def as_of(self, day: int, last: bool = False) -> dict[str, Accumulator]:
        """Every accumulator with the days that count as of a day number (not below the one before).

        Args:
          day: day number.
          last: nothing follows, not even a state to be written: rows that only cost room may stay.
        """
        merged = {}
        for name in self._names:
            kind = ACCUMULATORS[name]
            held, until, gone = self._parts[name], self._until.get(name, -1), range(0)
            running = self._running.get(name, kind())
            if kind.WINDOW is not None:
                if day - until >= kind.WINDOW:
                    running, until = kind(), day - kind.WINDOW
                elif kind.TAKES_OUT:
                    gone = range(until - kind.WINDOW, day - kind.WINDOW)
            changes = [self._merge(name, held[d]) for d in held if until <= d < day]
            changes += [self._merge(name, held[d]).negated() for d in gone if d in held]
            if changes:
                running = running.merge(*changes)
            if kind.TAKES_OUT or not last:
                running.prune(day)
            for d in [d for d in held if d < day - (kind.WINDOW or 0) or (d < day and not kind.TAKES_OUT)]:
                del held[d]
            self._running[name], self._until[name] = running, day
            merged[name] = running
        return merged


class _BucketTotals(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._as_ofs = [s.as_of for s in plan.snapshots]
        self._names, self._units = [n for n in plan.names("item") if n in GLOBAL_NAMES], plan.units

    def process(self, element: tuple[int, Iterable[Any]]) -> Iterator[tuple[int, Globals]]:
        bucket, parts = element
        merged = _Merged(self._names, bucket, self._units, parts)
        for as_of in self._as_ofs:
            found = merged.as_of(as_of)
            days, users = found.get(ItemDays.NAME), found.get(ItemUserDays.NAME)
            if isinstance(days, ItemDays):
                yield as_of, days.totals(as_of)
            if isinstance(users, ItemUserDays):
                yield as_of, users.counts(as_of)


def _add_totals(as_of: int, parts: Iterable[Globals]) -> tuple[int, Globals]:
    found = list(parts)
    hashes = np.concatenate([g.item_hash for g in found])
    order = np.argsort(hashes)
    return as_of, Globals(
        tuple(sum(column) for column in zip(*(g.popularity for g in found), strict=True)) or (0, 0, 0),
        sum(g.clicks for g in found), sum(g.impressions for g in found),
        hashes[order], np.concatenate([g.item_count for g in found])[order])


class _MergeAndExtract(AheadDoFn):
    COUNTER = metric_names.FEATURE_ROWS

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def process(self, element: tuple[tuple[str, int], Iterable[Any]], totals: Mapping[int, Globals]) -> Iterator[str]:
        (entity, bucket), parts = element
        yield from self.ahead(entity, bucket, list(parts), totals)

    def work(self, entity: str, bucket: int, parts: list[Any], totals: Mapping[int, Globals]) -> tuple[int, list[str]]:
        plan = self._plan
        merged = _Merged(plan.names(entity), bucket, plan.units, parts)
        count, paths = 0, []
        for snapshot in plan.snapshots:
            is_last = snapshot is plan.snapshots[-1] and plan.state_day is None
            found = merged.as_of(snapshot.as_of, is_last)
            extracts = extract_groups([g for g in plan.groups if set(GROUP_ACCUMULATORS[g]) <= found.keys()], found,
                                      snapshot.as_of, totals.get(snapshot.as_of, Globals()))
            rows = snapshot_rows(entity, extracts, snapshot.as_of, snapshot.published_at, plan.groups)
            if snapshot.as_of == plan.state_day:
                path = plan.state_paths[entity, bucket]
                write_states(path, snapshot.as_of, plan.units, {n: plan.state_inputs[n] for n in found},
                             ((bucket, n, len(a), a.to_bytes()) for n, a in found.items()))
                paths.append(path)
            if len(rows):
                count += len(rows)
                path = snapshot.paths[entity, bucket]
                failures = check_snapshot(entity, rows, snapshot.as_of * DAY_MICROS, plan.groups)
                write_rows(rows, path, {**plan.schema_metadata.get(snapshot.as_of, {}), FAILURES: json.dumps(failures)})
                paths.append(path)
        return count, paths
