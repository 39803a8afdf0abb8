"""The features job: plans what is missing as of some times, runs the Beam pipeline, commits, publishes to the store.

Day partials carry a fingerprint of the event files they were made from: unchanged days are reused, a replaced day is made
anew. Snapshots carry the fingerprint of everything before their as_of: a snapshot that is done is not made again.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from beam_pipelines import crashpoints
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import DataFile, Lake
from beam_pipelines.io.store_sink import write_catalogue
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from beam_pipelines.runner import pipeline
from schemas.features import GROUPS
from schemas.keys import ENTITY_KINDS, row_key
from schemas.workspace import DAY_MICROS
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite
from transforms import definitions
from transforms.accumulators import ACCUMULATORS, GROUP_ACCUMULATORS, Accumulator
from transforms.beam.features import FAILURES, PAIR_NAMES, TAIL, BatchFeatures
from transforms.feature_plan import EventFile, Plan, Snapshot, StoredStates
from transforms.partials import Marks, read_marks
from transforms.snapshots import store_cells

SMALL_DAY, SMALL_LAKE = 20_000, 500_000
"""Up to this many events a day's partials, or all entities, are one bucket: less than one event file usually holds."""
STATE_EVERY = 7
"""A running state is written when the newest is this many days old: writing one costs more than merging a few days."""
ROWS_PER_SHARD = 2_000_000
"""A day with more events than this has one file of partials per bucket."""
BATCH_GROUPS = tuple(g.name for g in GROUPS if g.source == "batch")
_INPUTS, _GROUPS = b"beamrec.inputs", b"beamrec.groups"
_TABLES = {"user": "user_snapshots", "item": "item_snapshots"}


@dataclass
class FeaturesReport:
    """What a run did.

    Attributes:
      as_ofs: midnights asked for, microseconds; made: those computed now, the others were there.
      users, items: rows of the newest as_of.
      days_read: days of events read; partials_reused: days whose partials were reused.
      published: cells offered to the store.
      failures: quality checks of the newest snapshot that failed.
    """

    as_ofs: list[int]
    made: list[int]
    users: int = 0
    items: int = 0
    days_read: int = 0
    partials_reused: int = 0
    published: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def run(config: Config, as_of: int, groups: Sequence[str] | None = None, publish: bool = True) -> FeaturesReport:
    """Computes the batch features as of the UTC midnight at or before ``as_of`` (microseconds).

    Args:
      config: lake, store, buckets, runner.
      as_of: microseconds since 1970.
      groups: feature groups (None: all).
      publish: write the store's ``batch`` family too.

    Raises:
      UserError: an unknown group, or no events before as_of.
    """
    return backfill(config, [as_of], groups, publish)


def backfill(config: Config, as_ofs: Sequence[int], groups: Sequence[str] | None = None,
             publish: bool = False) -> FeaturesReport:
    """Computes snapshots as of several times in one pass; with ``publish`` the newest goes to the store. See ``run``."""
    started = time.monotonic()
    chosen = _chosen(groups)
    days = sorted({t // DAY_MICROS for t in as_ofs})
    lake = Lake.open(config.lake, config.catalog)
    planner = _Planner(config, lake, chosen, days)
    report = FeaturesReport([d * DAY_MICROS for d in days], [d * DAY_MICROS for d in planner.to_make])
    if planner.to_make:
        plan = planner.plan()
        report.days_read = len({f.day for f in plan.files})
        report.partials_reused = len({s.day for s in plan.stored if not s.running})
        expected = [*plan.partial_paths.values(), *plan.state_paths.values(),
                    *(p for s in plan.snapshots for p in s.paths.values())]
        with Stage("features", len(expected), config.quiet) as stage, _watch(expected, stage), \
                pipeline(config, "features") as p:
            p | "batch features" >> BatchFeatures(plan)
        planner.commit(plan)
    newest = days[-1]
    for entity, files in _snapshot_files(lake, newest).items():
        rows = sum(f.rows for f in files)
        if entity == "user":
            report.users = rows
        else:
            report.items = rows
        for f in files:
            report.failures += json.loads((pq.read_metadata(f.path).metadata or {}).get(FAILURES.encode(), b"[]"))
    if publish:
        report.published = publish_snapshot(config, newest * DAY_MICROS, chosen, lake)
    report.seconds = time.monotonic() - started
    return report


def publish_snapshot(config: Config, as_of: int, groups: Sequence[str] | None = None, lake: Lake | None = None) -> int:
    """Writes the snapshot as of a midnight to the store's ``batch`` family, cell timestamp = as_of; returns the cells.

    The items' catalogue entries that differ are written too, so that what is shown of features has titles.
    """
    lake = lake or Lake.open(config.lake, config.catalog)
    chosen = _chosen(groups)
    store = open_store(config.store)
    count = 0
    found = _snapshot_files(lake, as_of // DAY_MICROS)
    try:
        with Stage("publish features", sum(len(f) for f in found.values()), config.quiet) as stage:
            for entity, files in found.items():
                for file in files:
                    count += store.write_features(_writes(entity, file.path, as_of, chosen))
                    crashpoints.reached("features.cells")
                    stage.advance()
            write_catalogue(store, lake.read("items"))
    finally:
        store.close()
    return count


def _writes(entity: str, path: str, as_of: int, groups: Sequence[str]) -> Iterator[FeatureWrite]:
    rows = pq.read_table(path, memory_map=True)
    keys: dict[str, str] = {}
    for entity_id, group, cell in store_cells(entity, rows, groups):
        if entity_id not in keys:
            keys[entity_id] = row_key(ENTITY_KINDS[entity], entity_id)
        yield FeatureWrite(keys[entity_id], "batch", group, Cell(cell, as_of))


def _chosen(groups: Sequence[str] | None) -> tuple[str, ...]:
    wanted = set(groups or BATCH_GROUPS)
    if unknown := wanted - set(BATCH_GROUPS):
        raise UserError(f"no batch feature group {', '.join(sorted(unknown))}; known: {', '.join(BATCH_GROUPS)}")
    return tuple(g for g in BATCH_GROUPS if g in wanted)


def _snapshot_files(lake: Lake, day: int) -> dict[str, list[DataFile]]:
    start = day * DAY_MICROS
    return {entity: lake.files(table, start, start + DAY_MICROS) for entity, table in _TABLES.items()}


class _watch:  # noqa: N801 - reads as a statement
    """Moves a bar on as planned files appear."""

    def __init__(self, paths: Sequence[str], stage: Stage) -> None:
        self._left, self._stage = [Path(p) for p in paths], stage
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.3):
            before = len(self._left)
            self._left = [p for p in self._left if not p.exists()]
            self._stage.advance(before - len(self._left))


def _digest(*parts: object) -> str:
    return hashlib.blake2b("\x00".join(map(str, parts)).encode(), digest_size=12).hexdigest()


class _Planner:
    """Compares what the lake holds with what the as_ofs need."""

    def __init__(self, config: Config, lake: Lake, groups: tuple[str, ...], as_ofs: Sequence[int]) -> None:
        self._config, self._lake, self._groups = config, lake, groups
        self._events: dict[int, list[DataFile]] = defaultdict(list)
        for file in lake.files("events", end=max(as_ofs) * DAY_MICROS):
            assert file.day is not None
            self._events[file.day // DAY_MICROS].append(file)
        if not self._events:
            raise UserError("the lake has no events before that time: run 'beamrec import' or 'beamrec simulate' first")
        self._names = [n for n in ACCUMULATORS if any(n in GROUP_ACCUMULATORS[g] for g in groups)]
        self._prints = {day: _digest(definitions.FEATURES, *sorted(f.path for f in files))
                        for day, files in self._events.items()}
        self._chains: dict[int, str] = {}
        chain = _digest(definitions.FEATURES)
        for day in sorted(self._events):
            self._chains[day] = chain  # of everything before the day
            chain = _digest(chain, day, self._prints[day])
        self._last_chain = chain
        self._published = {d: self._published_at(d) for d in as_ofs}
        self._stale: dict[int, list[str]] = defaultdict(list)
        self._done = self._snapshots_done(as_ofs)
        self.to_make = [d for d in as_ofs if d not in self._done]

    def _chain(self, day: int) -> str:
        later = [d for d in self._events if d >= day]
        return self._chains[min(later)] if later else self._last_chain

    def _print(self, day: int, name: str) -> str:
        if name in PAIR_NAMES:  # a day's pairs read the end of the day before
            return _digest(name, self._prints[day], self._prints.get(day - 1, ""))
        return _digest(name, self._prints[day])

    def _published_at(self, day: int) -> int:
        """The clock, for the snapshot of today; a snapshot of the past counts as published at its midnight."""
        now = self._config.workspace.now()
        return now if now // DAY_MICROS <= day else day * DAY_MICROS

    def _snapshots_done(self, as_ofs: Sequence[int]) -> set[int]:
        done: dict[str, set[int]] = {}
        first, last = min(as_ofs) * DAY_MICROS, (max(as_ofs) + 1) * DAY_MICROS
        for entity, table in _TABLES.items():
            needed = {g.name for g in GROUPS if g.entity == entity} & set(self._groups)
            if not needed:
                continue
            by_day: dict[int, list[DataFile]] = defaultdict(list)
            for file in self._lake.files(table, first, last):
                assert file.day is not None
                by_day[file.day // DAY_MICROS].append(file)
            done[entity] = set()
            for day in set(as_ofs) & by_day.keys():
                stored = pq.read_metadata(by_day[day][0].path).metadata or {}
                if stored.get(_INPUTS, b"").decode() == _digest(self._chain(day)) and \
                        needed <= set(stored.get(_GROUPS, b"").decode().split(",")):
                    done[entity].add(day)
        return set.intersection(*done.values()) if done else set()

    def _stored(self, table: str, end: int) -> dict[int, list[tuple[str, Marks]]]:
        """Day -> (path, marks) of files of partials or states."""
        found: dict[int, list[tuple[str, Marks]]] = defaultdict(list)
        for file in self._lake.files(table, end=end * DAY_MICROS):
            assert file.day is not None
            found[file.day // DAY_MICROS].append((file.path, read_marks(file.path)))
        return found

    def plan(self) -> Plan:
        """What to read, reuse and write for the as_ofs that are not done."""
        first, last = self.to_make[0], self.to_make[-1]
        running = self._running_states(first)
        needed: dict[int, set[str]] = defaultdict(set)
        for name in self._names:
            base = running.get(name, (-1, []))[0]
            for day in self._events:
                if day < last and _is_read(ACCUMULATORS[name], day, base, self.to_make):
                    needed[day].add(name)
        stored: list[StoredStates] = []
        missing: dict[int, set[str]] = {d: set(names) for d, names in needed.items()}
        kept: dict[int, list[tuple[str, Marks]]] = defaultdict(list)
        for day, files in self._stored("partials", last).items():
            for path, marks in files:
                if day in self._events and all(p == self._print(day, n) for n, p in marks.inputs.items()):
                    kept[day].append((path, marks))
                else:
                    self._stale[day].append(path)
        have = {day: {n for _, marks in files for n in marks.inputs} for day, files in kept.items()}
        for day in missing:
            missing[day] -= have.get(day, set())
        pair_days = frozenset(d for d, names in missing.items() if names & set(PAIR_NAMES))
        for day in pair_days:
            missing[day] |= {*PAIR_NAMES, TAIL} - have.get(day, set())
            if day - 1 in self._events and TAIL not in have.get(day - 1, set()):
                missing.setdefault(day - 1, set()).add(TAIL)
        for day, files in kept.items():
            for path, marks in files:
                take = marks.inputs.keys() & (needed.get(day, set()) | ({TAIL} if day + 1 in pair_days else set()))
                if take:
                    stored.append(StoredStates(path, day, tuple(sorted(take)), marks.buckets))
        stored += _running_files(running)
        missing = {d: n for d, n in missing.items() if n}
        rows = {d: sum(f.rows for f in files) for d, files in self._events.items()}
        cuts = {d: 1 if rows[d] <= SMALL_DAY else self._config.buckets for d in missing}
        shards = {d: 1 if rows[d] <= ROWS_PER_SHARD else self._config.buckets for d in missing}
        units = 1 if sum(rows.values()) <= SMALL_LAKE else self._config.buckets
        entities = sorted({ACCUMULATORS[n].ENTITY for n in self._names})
        lake, buckets = self._lake, range(units)
        return Plan(
            units=units, cuts=cuts, groups=self._groups,
            files=tuple(EventFile(f.path, d, tuple(sorted(missing[d]))) for d in sorted(missing) for f in self._events[d]),
            stored=tuple(stored), pair_days=pair_days, shards=shards,
            partial_paths={(d, s): lake.new_path("partials", d * DAY_MICROS) for d, n in shards.items() for s in range(n)},
            partial_inputs={d: {n: self._print(d, n) for n in names} for d, names in missing.items()},
            snapshots=tuple(Snapshot(d, self._published[d], {
                (e, b): lake.new_path(_TABLES[e], d * DAY_MICROS) for e in entities for b in buckets}) for d in self.to_make),
            state_day=last if any(running.get(n, (-1, []))[0] <= last - STATE_EVERY for n in self._names) else None,
            state_paths={(e, b): lake.new_path("states", last * DAY_MICROS) for e in entities for b in buckets},
            state_inputs={n: _digest(n, self._chain(last)) for n in self._names},
            schema_metadata={d: {_INPUTS.decode(): _digest(self._chain(d)), _GROUPS.decode(): ",".join(self._groups)}
                             for d in self.to_make},
        )

    def _running_states(self, first: int) -> dict[str, tuple[int, list[tuple[str, int]]]]:
        """Accumulator -> (day, files) of its newest running state that is still true at or before the first as_of."""
        found: dict[str, tuple[int, list[tuple[str, int]]]] = {}
        for day, files in sorted(self._stored("states", first + 1).items()):
            for name in self._names:
                wanted = _digest(name, self._chain(day))
                paths = [(path, marks.buckets) for path, marks in files if marks.inputs.get(name) == wanted]
                if paths:
                    found[name] = (day, paths)
        return found

    def commit(self, plan: Plan) -> None:
        """Adds what was written to the lake; snapshots last, so that a crash before them only repeats work."""
        made: dict[int, list[str]] = defaultdict(list)
        for (day, _), path in sorted(plan.partial_paths.items()):
            made[day].append(path)
        if made:
            stale = [p for d in made for p in self._stale.get(d, [])]
            self._lake.commit("partials", [p for paths in made.values() for p in paths], stale)
        states = [p for p in plan.state_paths.values() if Path(p).exists()]
        if states and plan.state_day is not None:
            held = self._lake.files("states")
            earlier = sorted({f.day or 0 for f in held if (f.day or 0) < plan.state_day * DAY_MICROS})
            dropped = {*earlier[:-1], plan.state_day * DAY_MICROS}  # this night's and the last before it are kept
            self._lake.commit("states", states, [f.path for f in held if f.day in dropped])
        for entity, table in _TABLES.items():
            days = {s.as_of * DAY_MICROS: [p for (e, _), p in s.paths.items() if e == entity and Path(p).exists()]
                    for s in plan.snapshots}
            if any(days.values()):
                self._lake.replace_days(table, days)


def _is_read(kind: type[Accumulator], day: int, base: int, as_ofs: Sequence[int]) -> bool:
    """Whether a day before the last of some as_ofs is needed beside a running state up to ``base`` (-1: none)."""
    if kind.WINDOW is None:
        return day >= base
    if not any(a - kind.WINDOW <= day < a for a in (*as_ofs, base)):
        return False
    return day >= base or (kind.TAKES_OUT and day < as_ofs[-1] - kind.WINDOW)


def _running_files(running: dict[str, tuple[int, list[tuple[str, int]]]]) -> list[StoredStates]:
    """Each file once, with the accumulators to take from it."""
    names: dict[tuple[int, str, int], list[str]] = defaultdict(list)
    for name, (day, files) in running.items():
        for path, buckets in files:
            names[day, path, buckets].append(name)
    return [StoredStates(path, day, tuple(sorted(found)), buckets, running=True)
            for (day, path, buckets), found in sorted(names.items())]
