"""Features as readers see them: the stream's value while the stream is alive, then batch's, then the default.

``FeatureReader.one`` reads an entity for people, by name, lists included; ``FeatureReader.many`` reads the numbers of many
entities as one matrix. Stream cells are packed accumulators and are extracted at ``now``: windows slide and sessions end
without a write. The stream is alive for a feature while its job's status row is younger than the feature's ttl; a batch
value is used while its cell is younger than that.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.cells import HEADER_BYTES, CellError, decode_list, decode_vector, decode_vectors
from schemas.features import FEATURES, GROUPS, SEGMENTS, Feature, Group, features_of
from schemas.keys import ENTITY_KINDS, STATUS, STREAM_JOB, row_key, status_key
from schemas.stream_cells import RINGS, extract, extract_rings
from serving.responses import rfc3339
from serving.stores.base import Cell, Store

SOURCES = ("default", "batch", "stream")
"""Where a value came from; its code in a FeatureMatrix is its position here."""
STATUS_SECONDS = 1.0
_BATCH_ROW = {"user": "user_stats", "item": "item_stats"}
"""The batch group that every entity known to batch has."""

Entity = Literal["user", "item"]
Cells = dict[str, Cell]
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
    """

    values: dict[str, FeatureValue]
    known: bool
    low_confidence: bool


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


class FeatureReader:
    """Reads features of a streaming job and of batch. Holds only that job's status, for a second.

    Args:
      job: name of the streaming job, as ``beamrec stream --name``.
      status_seconds: for how long its status is believed.
    """

    def __init__(self, job: str = STREAM_JOB, status_seconds: float = STATUS_SECONDS) -> None:
        self._key, self._seconds = status_key(job), status_seconds
        self._checked = -math.inf
        self._status: StreamStatus | None = None

    def status(self, store: Store) -> StreamStatus | None:
        """The job's status, None where it never ran; raises StoreError."""
        if time.monotonic() - self._checked >= self._seconds:
            cell = store.read_features([self._key], "stream", [STATUS])[0].get(STATUS)
            self._status, self._checked = _status(cell), time.monotonic()
        return self._status

    def one(self, store: Store, entity: Entity, entity_id: str, now: int) -> EntityFeatures:
        """Every feature of one entity at ``now`` (microseconds); raises StoreError, CellError."""
        batch, stream, status = self._cells(store, entity, [entity_id], [g for g in GROUPS if g.entity == entity])
        held = {"batch": batch[0], "stream": stream[0]}
        values: dict[str, FeatureValue] = {}
        for group in (g for source in SOURCES[1:] for g in GROUPS if g.entity == entity and g.source == source):
            cell = held[group.source].get(group.name)
            age = None if cell is None else max(0.0, (now - cell.timestamp) / 1e6)
            found = {} if cell is None else _decode(group, cell.value, now)
            for feature in features_of(group.name):
                value = found.get(feature.name)
                if value is None or age is None or not _usable(feature, age, status, now):
                    values.setdefault(feature.name, FeatureValue([] if feature.dtype == "list" else feature.default,
                                                                 "default", None, _label(feature, feature.default)))
                else:
                    values[feature.name] = FeatureValue(value, feature.source, age, _label(feature, value))
        named = {f.name: values[f.name] for f in FEATURES if f.entity == entity}
        return EntityFeatures(named, bool(batch[0] or stream[0]), _BATCH_ROW[entity] not in batch[0] and bool(stream[0]))

    def many(self, store: Store, entity: Entity, ids: Sequence[str], now: int,
             names: Sequence[str] | None = None) -> FeatureMatrix:
        """Numbers of many entities at ``now``, lists left out, with one read per family.

        Args:
          ids: n ids; an unknown one has defaults.
          names: k features of the entity that are numbers (default: all of them).

        Raises:
          KeyError: no such number.
          StoreError, CellError.
        """
        plan = _plan(entity, None if names is None else tuple(names))
        batch, stream, status = self._cells(store, entity, ids, [g for g, _ in plan.groups])
        n, k = len(ids), len(plan.names)
        values = np.tile(plan.defaults, (n, 1))
        sources = np.zeros((n, k), np.uint8)
        ages = np.full((n, k), np.nan, np.float32)
        for group, columns in plan.groups:
            held = [cells.get(group.name) for cells in (batch if group.source == "batch" else stream)]
            rows = np.flatnonzero([cell is not None for cell in held])
            if not len(rows):
                continue
            there = [cell for cell in held if cell is not None]
            age = np.maximum(0, now - np.array([cell.timestamp for cell in there])) / 1e6
            matrix = _numbers(group, [cell.value for cell in there], now)
            for position, column, feature in columns:
                fresh = age <= feature.ttl if group.source == "batch" else status is not None and status.alive(feature, now)
                ok = fresh & ~np.isnan(matrix[:, position])
                values[rows[ok], column] = matrix[ok, position]
                sources[rows[ok], column] = SOURCES.index(group.source)
                ages[rows[ok], column] = age[ok]
        base = _BATCH_ROW[entity]
        doubtful = np.array([base not in b and bool(s) for b, s in zip(batch, stream, strict=True)], bool)
        return FeatureMatrix(plan.names, values, sources, ages, doubtful)

    def _cells(self, store: Store, entity: Entity, ids: Sequence[str], groups: Sequence[Group]
               ) -> tuple[list[Cells], list[Cells], StreamStatus | None]:
        rows = [row_key(ENTITY_KINDS[entity], i) for i in ids]
        wanted = dict.fromkeys([_BATCH_ROW[entity], *(g.name for g in groups if g.source == "batch")])
        batch = store.read_features(rows, "batch", list(wanted))
        streamed = [g.name for g in groups if g.source == "stream"]
        stream = store.read_features(rows, "stream", streamed) if streamed else [{} for _ in rows]
        return batch, stream, self.status(store) if any(stream) else None


@dataclass(frozen=True)
class _Plan:
    """Which groups hold which columns of a matrix: (group, (position in the cell, column, feature)); batch groups first."""

    names: tuple[str, ...]
    defaults: Floats
    groups: list[tuple[Group, list[tuple[int, int, Feature]]]]


@functools.lru_cache(maxsize=64)
def _plan(entity: Entity, names: tuple[str, ...] | None) -> _Plan:
    listed = [f for f in FEATURES if f.entity == entity and f.dtype != "list"]
    numbers = {f.name: f for source in ("stream", "batch") for f in listed if f.source == source}  # batch has the default
    names = tuple(dict.fromkeys(f.name for f in listed)) if names is None else names
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise KeyError(f"no feature {unknown[0]!r} of {entity}s that is a number")
    columns = {name: column for column, name in enumerate(names)}
    groups = []
    for group in (g for source in SOURCES[1:] for g in GROUPS if g.entity == entity and g.source == source):
        held = [f for f in features_of(group.name) if f.dtype != "list"]
        taken = [(position, columns[f.name], f) for position, f in enumerate(held) if f.name in columns]
        if taken:
            groups.append((group, taken))
    defaults = [math.nan if (d := numbers[name].default) is None else d for name in names]
    return _Plan(names, np.array(defaults, np.float32), groups)


def _numbers(group: Group, cells: list[bytes], now: int) -> Floats:
    """The numbers of n cells of a group in the order of the registry, (n, width) float32, NaN for none."""
    held = [f.name for f in features_of(group.name) if f.dtype != "list"]
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


def _decode(group: Group, cell: bytes, now: int) -> dict[str, float | list[ListEntry]]:
    """The values of a cell by feature name; null ones are left out. Raises CellError."""
    if group.source == "stream":
        found = extract(group.name, cell, now)
    elif group.layout == "vector":  # one written before a feature was appended is shorter: the rest are absent
        found = {f.name: float(v) for f, v in zip(features_of(group.name), decode_vector(cell), strict=False)}
    else:
        found = {features_of(group.name)[0].name: decode_list(cell)}
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


def _status(cell: Cell | None) -> StreamStatus | None:
    """A row that cannot be read counts as none: the stream's values are then not used."""
    try:
        return None if cell is None else _decoder.decode(cell.value)
    except msgspec.DecodeError:
        return None
