"""Mergeable columns: rows under unique sorted keys, integer values, and the ids behind the keys.

Row i has the key ``entity << 32 | member``: positions in the sorted id dictionaries ``entities`` and ``members`` (or a
plain number, such as a day). Ids are sorted by hash, so that a bucket, the high bits of the hash, is a slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.keys import bucket_of
from transforms.accumulators import kernels

Ints = npt.NDArray[np.int64]
LOW = np.int64(0xFFFFFFFF)


class HashCollisionError(ValueError):
    """Two ids have one hash64: merging them would mix two entities."""


@dataclass(frozen=True)
class Ids:
    """Distinct ids in ascending order of their hash: ``hashes`` (n,) uint64, ``ids`` n strings."""

    hashes: npt.NDArray[np.uint64]
    ids: pa.Array

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def empty(cls) -> Ids:
        """No ids."""
        return cls(np.empty(0, np.uint64), pa.array([], pa.large_string()))

    @classmethod
    def of(cls, hashes: npt.NDArray[np.uint64], ids: pa.Array) -> tuple[Ids, Ints]:
        """Sorts ids (with repeats) and returns them with each given id's position, (n,).

        Raises:
          HashCollisionError: two different ids have the same hash.
        """
        if len(hashes) == 0:
            return cls.empty(), np.empty(0, np.int64)
        order = np.argsort(hashes, kind="stable")
        ranked = hashes[order]
        new = np.empty(len(ranked), bool)
        new[0] = True
        np.not_equal(ranked[1:], ranked[:-1], out=new[1:])
        position = np.cumsum(new) - 1
        if not new.all():
            same = np.flatnonzero(~new)
            if not pc.all(pc.equal(ids.take(pa.array(order[same])), ids.take(pa.array(order[same - 1])))).as_py():
                raise HashCollisionError("two ids have the same 64-bit hash; rename one of them at its source")
        positions = np.empty(len(order), np.int64)
        positions[order] = position
        return cls(ranked[new], ids.take(pa.array(order[new]))), positions

    @classmethod
    def union(cls, parts: Sequence[Ids]) -> tuple[Ids, list[Ints]]:
        """All ids of the parts, and for each part its ids' positions among them (ascending)."""
        ids, positions = cls.of(np.concatenate([p.hashes for p in parts]), pa.concat_arrays([p.ids for p in parts]))
        return ids, np.split(positions, np.cumsum([len(p) for p in parts])[:-1])

    def only(self, codes: Ints) -> tuple[Ids, Ints]:
        """The ids that the codes name, and the codes in terms of them."""
        used = np.zeros(len(self), bool)
        used[codes] = True
        if used.all():
            return self, codes
        return Ids(self.hashes[used], self.ids.filter(pa.array(used))), (np.cumsum(used) - 1)[codes]

    def named(self, codes: Ints) -> pa.DictionaryArray:
        """The ids at some positions, (n,), dictionary-encoded: no string is copied."""
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), self.ids.cast(pa.string()))

    def slice(self, start: int, end: int) -> Ids:
        """The ids at positions start to end."""
        return Ids(self.hashes[start:end], self.ids.slice(start, end - start))


@dataclass(frozen=True)
class Spec:
    """How the value columns of a frame are merged.

    Attributes:
      sums, minima, maxima: columns merged by that operation.
      last: (time, tie, others...): the row with the greatest (time, tie) wins; tie is a hash64 read as int64.
      has_members: members are ids; otherwise the low half of a key is a number.
    """

    sums: tuple[str, ...] = ()
    minima: tuple[str, ...] = ()
    maxima: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    has_members: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Every value column."""
        return (*self.sums, *self.minima, *self.maxima, *self.last)


@dataclass(frozen=True)
class Frame:
    """Rows under unique ascending keys. ``values``: one (n,) int64 array for each column of the spec."""

    entities: Ids
    members: Ids
    keys: Ints
    values: dict[str, Ints]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls, spec: Spec) -> Frame:
        """No rows."""
        return cls(Ids.empty(), Ids.empty(), np.empty(0, np.int64), {c: np.empty(0, np.int64) for c in spec.columns})

    @classmethod
    def build(cls, spec: Spec, entities: Ids, entity: Ints, members: Ids, member: Ints, values: dict[str, Ints]) -> Frame:
        """A frame of rows in any order, with repeats; ids that no row names are left out."""
        entities, entity = entities.only(entity)
        if spec.has_members:
            members, member = members.only(member)
        keys, values = _reduce(spec, (entity.astype(np.int64) << 32) | member, values, len(entities), len(members))
        return cls(entities, members, keys, values)

    @classmethod
    def merge(cls, spec: Spec, frames: Sequence[Frame]) -> Frame:
        """The rows of all frames; rows of one key become one. Any order and grouping gives the same bits."""
        frames = [f for f in frames if len(f)]
        if len(frames) <= 1:
            return frames[0] if frames else cls.empty(spec)
        if len(frames) > 2:
            frames.sort(key=len)
            if len(frames[-1]) > sum(map(len, frames[:-1])):  # a running state and what is new: its rows are in order already
                frames = [cls.merge(spec, frames[:-1]), frames[-1]]
        entities, at = Ids.union([f.entities for f in frames])
        if spec.has_members:
            members, member_at = Ids.union([f.members for f in frames])
            keys = np.concatenate([(a[f.keys >> 32] << 32) | m[f.keys & LOW]
                                   for f, a, m in zip(frames, at, member_at, strict=True)])
        else:
            members = Ids.empty()
            keys = np.concatenate([(a[f.keys >> 32] << 32) | (f.keys & LOW) for f, a in zip(frames, at, strict=True)])
        values = {c: np.concatenate([f.values[c] for f in frames]) for c in spec.columns}
        if len(frames) == 2:  # a running state and a day: both are in order
            keys, group = kernels.union_groups(keys[: len(frames[0])], keys[len(frames[0]) :])
            return cls(entities, members, keys, _reduce_groups(spec, group, values, len(keys)))
        keys, values = _reduce(spec, keys, values, len(entities), len(members))
        return cls(entities, members, keys, values)

    def where(self, keep: npt.NDArray[np.bool_], spec: Spec) -> Frame:
        """The rows where ``keep`` (n,) is true, and only their ids."""
        if keep.all():
            return self
        keys = self.keys[keep]
        entities, entity = self.entities.only(keys >> 32)
        members, member = self.members, keys & LOW
        if spec.has_members:
            members, member = members.only(member)
        return Frame(entities, members, (entity << 32) | member, {c: v[keep] for c, v in self.values.items()})

    def split(self, spec: Spec, buckets: int) -> list[tuple[int, Frame]]:
        """(bucket, its rows) of every bucket that has rows."""
        bucket = bucket_of(self.entities.hashes, buckets)
        ends = np.searchsorted(bucket, np.arange(buckets + 1))
        rows = np.searchsorted(self.keys, ends.astype(np.int64) << 32)
        parts = []
        for b in range(buckets):
            lo, hi, start, end = int(ends[b]), int(ends[b + 1]), int(rows[b]), int(rows[b + 1])
            if start == end:
                continue
            keys = self.keys[start:end] - (np.int64(lo) << 32)
            members = self.members
            if spec.has_members:
                members, member = members.only(keys & LOW)
                keys = (keys & ~LOW) | member
            parts.append((b, Frame(self.entities.slice(lo, hi), members, keys,
                                   {c: v[start:end] for c, v in self.values.items()})))
        return parts

    def bucket(self, spec: Spec, bucket: int, buckets: int) -> Frame:
        """The rows of one bucket."""
        if buckets == 1:
            return self
        return dict(self.split(spec, buckets)).get(bucket, Frame.empty(spec))

    def offsets(self) -> Ints:
        """Bounds of each entity's rows, (entities + 1,)."""
        return np.searchsorted(self.keys, np.arange(len(self.entities) + 1, dtype=np.int64) << 32)

    def to_bytes(self, spec: Spec) -> bytes:
        """Packed by ``pack_columns``; integers as narrow as they fit."""
        columns: dict[str, pa.Array] = {
            "entity_hash": pa.array(self.entities.hashes), "entity_id": self.entities.ids,
            "rows": _narrow(np.diff(self.offsets())), "member": _narrow(self.keys & LOW),
        }
        if spec.has_members:
            columns["member_hash"], columns["member_id"] = pa.array(self.members.hashes), self.members.ids
        for name in spec.columns:
            columns["v_" + name] = _narrow(self.values[name])
        return pack_columns(columns)

    @classmethod
    def from_bytes(cls, spec: Spec, data: bytes | pa.Buffer) -> Frame:
        """The frame of ``to_bytes``; raises ValueError on anything else."""
        try:
            columns = unpack_columns(data)
            entities = Ids(columns["entity_hash"].to_numpy(), columns["entity_id"])
            members = Ids(columns["member_hash"].to_numpy(), columns["member_id"]) if spec.has_members else Ids.empty()
            entity = np.repeat(np.arange(len(entities), dtype=np.int64), columns["rows"].to_numpy())
            keys = (entity << 32) | columns["member"].to_numpy()
            values = {c: columns["v_" + c].to_numpy().astype(np.int64) for c in spec.columns}
        except (pa.ArrowInvalid, KeyError, StopIteration) as error:
            raise ValueError(f"not a packed accumulator of these columns: {error}") from error
        return cls(entities, members, keys, values)


def pack_columns(columns: Mapping[str, pa.Array]) -> bytes:
    """Columns of any lengths as one Arrow IPC record batch of one row, each column a list; lz4."""
    # Arrow's threads, one task a buffer, cost seven times what packing a small state does; the jobs have threads of their own.
    alone = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    batch = pa.RecordBatch.from_arrays(
        [pa.LargeListArray.from_arrays(pa.array([0, len(c)], pa.int64()), c) for c in columns.values()], names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=alone) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def unpack_columns(data: bytes | pa.Buffer) -> dict[str, pa.Array]:
    """The columns of ``pack_columns``; raises pa.ArrowInvalid or StopIteration on anything else."""
    batch = pa.ipc.open_stream(data, options=pa.ipc.IpcReadOptions(use_threads=False)).read_next_batch()
    return {name: column.values for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _narrow(values: npt.NDArray[np.integer]) -> pa.Array:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return pa.array(values.astype(kind))
    return pa.array(values)


def _reduce(spec: Spec, keys: Ints, values: dict[str, Ints], entities: int, members: int) -> tuple[Ints, dict[str, Ints]]:
    width = members if spec.has_members else (int((keys & LOW).max()) + 1 if len(keys) else 0)
    size = entities * width
    if size <= max(16 * len(keys), 1024) and size < 2**31:
        distinct, group = kernels.dense_groups(keys, width, size)
    else:
        ranked = np.sort(keys)
        distinct = ranked[np.concatenate(([True], ranked[1:] != ranked[:-1]))] if len(ranked) else ranked
        group = np.searchsorted(distinct, keys)
    return distinct, _reduce_groups(spec, group, values, len(distinct))


def _reduce_groups(spec: Spec, group: Ints, values: dict[str, Ints], n: int) -> dict[str, Ints]:
    out = {c: kernels.sum_groups(group, values[c], n) for c in spec.sums}
    out |= {c: kernels.min_groups(group, values[c], n) for c in spec.minima}
    out |= {c: kernels.max_groups(group, values[c], n) for c in spec.maxima}
    if spec.last:
        time, tie = spec.last[:2]
        rows = kernels.last_rows(group, values[time], values[tie].view(np.uint64), n)
        out |= {c: values[c][rows] for c in spec.last}
    return out
