"""Cells to feature values: the stream's while the stream is alive, then batch's, then the default. Pure.

Stream cells are packed accumulators and are extracted at ``now``: windows slide and sessions end without a write. The stream is
alive for a feature while its job's status row is younger than the feature's ttl. A batch value counts while it is younger than
that: the newest of the feature group's cell and of what was PUT for this feature alone (schemas.put_cells).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.cells import HEADER_BYTES, CellError, decode_list, decode_vector, decode_vectors
from schemas.features import SEGMENTS, Feature, Group, Registry
from schemas.put_cells import PUTS, Put, decode_puts
from schemas.stream_cells import RINGS, extract, extract_rings
from serving.responses import rfc3339
from serving.stores.base import Cell

SOURCES = ("default", "batch", "stream")
"""Where a value came from; its code in a FeatureMatrix is its position here."""
BATCH_ROW = {"user": "user_stats", "item": "item_stats"}
"""The batch group that every entity known to batch has."""

Cells = Mapping[str, Cell]
Floats = npt.NDArray[np.float32]
Listed = tuple[list[str], npt.NDArray[np.int64], Floats]


class ListEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a list feature: an item (or category) with its score, and its time where it has one."""

    id: str
    score: float
    at: str | None = None


class FeatureValue(msgspec.Struct, frozen=True):
    """A value, where it came from (one of SOURCES) and its age in seconds: how long ago the newest event in it was."""

    value: float | list[ListEntry] | None
    source: str
    age_s: float | None
    label: str | None = None


class StreamStatus(msgspec.Struct, frozen=True):
    """The status row of the streaming job; both times are microseconds since 1970, UTC."""

    written_at: int
    watermark: int | None = None
    run: str | None = None

    def age_s(self, now: int) -> float:
        """Seconds since the job was heard of; 0 under a clock that stands still before it."""
        return max(0.0, (now - self.written_at) / 1e6)

    def alive(self, feature: Feature, now: int) -> bool:
        """Whether the stream's value of a feature is to be used."""
        return self.age_s(now) <= feature.ttl


@dataclass(frozen=True)
class EntityFeatures:
    """Every feature of one entity by name, in the order of the registry.

    Attributes:
      values: by feature name.
      known: the store holds something of the entity.
      low_confidence: the stream knows it and batch does not: there is no history behind its values yet.
      ttls: seconds for which a value counts, where a PUT says so.
    """

    values: dict[str, FeatureValue]
    known: bool
    low_confidence: bool
    ttls: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureMatrix:
    """Numbers of n entities.

    Attributes:
      names: k feature names.
      values: (n, k) float32, NaN where there is neither a value nor a default.
      sources: (n, k) codes of SOURCES.
      ages_s: (n, k) float32 seconds, NaN for defaults.
      low_confidence: (n,), as in EntityFeatures.
    """

    names: tuple[str, ...]
    values: Floats
    sources: npt.NDArray[np.uint8]
    ages_s: Floats
    low_confidence: npt.NDArray[np.bool_]


def merge_one(registry: Registry, entity: str, batch: Cells, stream: Cells, status: StreamStatus | None,
              now: int) -> EntityFeatures:
    """Every feature of one entity at ``now`` (microseconds); raises CellError."""
    values: dict[str, FeatureValue] = {}
    ttls: dict[str, int] = {}
    puts = puts_of(batch)
    for group in (g for source in SOURCES[1:] for g in registry.groups if g.entity == entity and g.source == source):
        cell = (batch if group.source == "batch" else stream).get(group.name)
        found = {} if cell is None else decode_group(registry, group, cell.value, now)
        for feature in registry.features_of(group.name):
            value, age = found.get(feature.name), None if cell is None else _age(cell.timestamp, now)
            usable = value is not None and age is not None and _usable(feature, age, status, now)
            put = puts.get(feature.name) if group.source == "batch" else None
            if put is not None and is_fresh(put, feature, now) and not (
                    usable and cell is not None and cell.timestamp > put.computed_at):
                value, age, usable = _of_put(put), _age(put.computed_at, now), True
                if put.ttl is not None:
                    ttls[feature.name] = put.ttl
            if usable and value is not None:
                values[feature.name] = FeatureValue(value, feature.source, age, _label(feature, value))
            else:
                values.setdefault(feature.name, FeatureValue([] if feature.dtype == "list" else feature.default,
                                                             "default", None, _label(feature, feature.default)))
    named = {f.name: values[f.name] for f in registry.of(entity)}
    return EntityFeatures(named, bool(batch or stream), BATCH_ROW[entity] not in batch and bool(stream), ttls)


@dataclass(frozen=True)
class Plan:
    """Which groups hold which columns of a matrix: (group, [(position in the cell, column, feature)]); batch groups first."""

    names: tuple[str, ...]
    defaults: Floats
    groups: list[tuple[Group, list[tuple[int, int, Feature]]]]
    columns: dict[str, tuple[int, Feature]]

    def groups_of(self, source: str) -> list[str]:
        """Names of the groups of a source."""
        return [g.name for g, _ in self.groups if g.source == source]


@functools.lru_cache(maxsize=64)
def plan_of(registry: Registry, entity: str, names: tuple[str, ...] | None) -> Plan:
    """How to read numbers of an entity (None: all of them); raises KeyError on a name that is none."""
    listed = [f for f in registry.of(entity) if f.dtype != "list"]
    numbers = {f.name: f for source in ("stream", "batch") for f in listed if f.source == source}  # batch has the default
    names = tuple(dict.fromkeys(f.name for f in listed)) if names is None else names
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise KeyError(f"no feature {unknown[0]!r} of {entity}s that is a number")
    columns = {name: column for column, name in enumerate(names)}
    groups = []
    for group in (g for source in SOURCES[1:] for g in registry.groups if g.entity == entity and g.source == source):
        held = [f for f in registry.features_of(group.name) if f.dtype != "list"]
        taken = [(position, columns[f.name], f) for position, f in enumerate(held) if f.name in columns]
        if taken:
            groups.append((group, taken))
    defaults = [math.nan if (d := numbers[name].default) is None else d for name in names]
    batch = {f.name: (columns[f.name], f) for g, taken in groups if g.source == "batch" for _, _, f in taken}
    return Plan(names, np.array(defaults, np.float32), groups, batch)


def merge_many(registry: Registry, entity: str, plan: Plan, batch: Sequence[Cells], stream: Sequence[Cells],
               status: StreamStatus | None, now: int) -> FeatureMatrix:
    """Numbers of n entities at ``now`` from their cells; raises CellError."""
    n, k = len(batch), len(plan.names)
    values = np.tile(plan.defaults, (n, 1))
    sources = np.zeros((n, k), np.uint8)
    ages = np.full((n, k), np.nan, np.float32)
    put_rows = [i for i, cells in enumerate(batch) if PUTS in cells]
    streamed = False
    for group, columns in plan.groups:
        if group.source == "stream" and not streamed:
            streamed = True
            _lay_puts(plan, batch, put_rows, now, values, sources, ages)
        held = [cells.get(group.name) for cells in (batch if group.source == "batch" else stream)]
        there = [cell for cell in held if cell is not None]
        if not there:
            continue
        rows = np.arange(n) if len(there) == n else np.flatnonzero([cell is not None for cell in held])
        age = np.maximum(0, now - np.array([cell.timestamp for cell in there])) / 1e6
        matrix = _numbers(registry, group, [cell.value for cell in there], now)
        positions, targets = [p for p, _, _ in columns], [c for _, c, _ in columns]
        if group.source == "batch":
            fresh = age[:, None] <= np.array([f.ttl for _, _, f in columns])
        else:
            fresh = np.array([[status is not None and status.alive(f, now) for _, _, f in columns]])
        found = matrix[:, positions]
        ok = fresh & ~np.isnan(found)
        at = rows[:, None], np.array(targets)
        values[at] = np.where(ok, found, values[at])
        sources[at] = np.where(ok, SOURCES.index(group.source), sources[at])
        ages[at] = np.where(ok, age[:, None], ages[at])
    if not streamed:
        _lay_puts(plan, batch, put_rows, now, values, sources, ages)
    base = BATCH_ROW[entity]
    doubtful = np.array([bool(s) and base not in b for b, s in zip(batch, stream, strict=True)], bool)
    return FeatureMatrix(plan.names, values, sources, ages, doubtful)


def _lay_puts(plan: Plan, batch: Sequence[Cells], rows: Sequence[int], now: int, values: Floats,
              sources: npt.NDArray[np.uint8], ages: Floats) -> None:
    """Values that were PUT over those of batch cells that know less."""
    for row in rows:
        for name, put in puts_of(batch[row]).items():
            column, feature = plan.columns.get(name, (-1, None))
            if feature is None or isinstance(put.value, tuple) or not is_fresh(put, feature, now):
                continue
            age = _age(put.computed_at, now)
            if sources[row, column] == 0 or age <= ages[row, column]:
                values[row, column], sources[row, column], ages[row, column] = put.value, SOURCES.index("batch"), age


def puts_of(batch: Mapping[str, Cell]) -> dict[str, Put]:
    """What was PUT for an entity, by feature name; raises CellError."""
    cell = batch.get(PUTS)
    return {} if cell is None else decode_puts(cell.value)


def is_fresh(put: Put, feature: Feature, now: int) -> bool:
    """Whether a value that was PUT still counts."""
    if isinstance(put.value, tuple) != (feature.dtype == "list"):  # the registry has changed since
        return False
    ttl = feature.ttl if put.ttl is None else put.ttl
    return _age(put.computed_at, now) <= ttl and (isinstance(put.value, tuple) or not math.isnan(put.value))


def _of_put(put: Put) -> float | list[ListEntry]:
    return _entries(put.value) if isinstance(put.value, tuple) else float(f"{put.value:.7g}")


def _age(timestamp: int, now: int) -> float:
    return max(0.0, (now - timestamp) / 1e6)


def _numbers(registry: Registry, group: Group, cells: list[bytes], now: int) -> Floats:
    """The numbers of n cells of a group in the order of the registry, (n, width) float32, NaN for none."""
    held = [f.name for f in registry.features_of(group.name) if f.dtype != "list"]
    if group.layout == "vector" and len({len(cell) for cell in cells}) == 1 and len(cells[0]) == HEADER_BYTES + 4 * len(held):
        return decode_vectors(cells, len(held))
    matrix = np.full((len(cells), len(held)), np.nan, np.float32)
    if group.name in RINGS:
        found = extract_rings(group.name, cells, now)
        matrix[:, : found.shape[1]] = found[:, : len(held)]
    elif group.layout == "vector":
        for size in sorted({len(cell) for cell in cells}):  # a cell from before a feature was appended is shorter
            width = (size - HEADER_BYTES) // 4
            if width < 0:
                raise CellError(f"a cell has at least {HEADER_BYTES} bytes, this one {size}")
            rows = [i for i, cell in enumerate(cells) if len(cell) == size]
            matrix[rows, :width] = decode_vectors([cells[i] for i in rows], width)[:, : len(held)]
    else:
        for row, cell in enumerate(cells):
            values = extract(group.name, cell, now)
            matrix[row] = [values.get(name, math.nan) for name in held]
    return matrix


def decode_group(registry: Registry, group: Group, cell: bytes, now: int) -> dict[str, float | list[ListEntry]]:
    """The values of a cell by feature name; null ones are left out. Raises CellError."""
    if group.source == "stream":
        found = extract(group.name, cell, now)
    elif group.layout == "vector":  # one written before a feature was appended is shorter: the rest are absent
        found = {f.name: float(v) for f, v in zip(registry.features_of(group.name), decode_vector(cell), strict=False)}
    else:
        found = {registry.features_of(group.name)[0].name: decode_list(cell)}
    return {name: _entries(v) if isinstance(v, tuple) else float(f"{v:.7g}") for name, v in found.items()
            if isinstance(v, tuple) or not math.isnan(v)}


def _entries(listed: Listed) -> list[ListEntry]:
    return [ListEntry(i, float(f"{score:.7g}"), rfc3339(int(at)) if at else None)
            for i, at, score in zip(*listed, strict=True)]


def _usable(feature: Feature, age: float, status: StreamStatus | None, now: int) -> bool:
    if feature.source == "batch":
        return age <= feature.ttl
    return status is not None and status.alive(feature, now)


def _label(feature: Feature, value: object) -> str | None:
    if feature.name != "segment" or not isinstance(value, float) or value >= len(SEGMENTS):
        return None
    return SEGMENTS[int(value)]


_decoder = msgspec.json.Decoder(StreamStatus)


def status_of(cell: Cell | None) -> StreamStatus | None:
    """A row that cannot be read counts as none: the stream's values are then not used."""
    try:
        return None if cell is None else _decoder.decode(cell.value)
    except msgspec.DecodeError:
        return None
