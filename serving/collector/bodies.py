"""Request bodies by the round: scanned together into columns, packed by partition, and answered, nothing per event in Python.

What ``scan`` leaves (and what it finds to need the store) goes the way of single events, through ``wire`` and the router.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from schemas.event_types import NAMES
from serving.collector.arrange import answers, arrange
from serving.collector.scan import NUMBERS, SCHEMA, TEXTS, scan
from serving.eventlog.base import partitions_of_hashes
from transforms.records.hashes import MAX_BYTES, hashes
from transforms.records.kernels import number_strings

_ID, _USER, _KIND, _DEVICE = (TEXTS.index(name) for name in ("event_id", "user_id", "event_type", "device"))
_STRING = pa.string()
_TYPE_OF = {field.name: field.type for field in SCHEMA}
_PAIR = [_TYPE_OF["attributes"].key_field, _TYPE_OF["attributes"].item_field]
_INT32 = frozenset(name for name in NUMBERS if _TYPE_OF[name] == pa.int32())
_PARTS = tuple(np.frombuffer(part, np.uint8) for part in (
    b'{"accepted":', b',"rejected":0,"events":[', b'{"event_id":"', b'","status":"accepted"}', b"]}"))
_PADDING = b"\0" * 16
_ID_BYTES = 36


def count_of(body: bytes) -> int:
    """How many events a body holds, as far as a glance tells; never fewer than ``scan`` finds, for each has a brace."""
    return body.count(b"{")


@dataclass(frozen=True)
class Scanned:
    """The events of a round's bodies, those of a partition side by side.

    Attributes:
      events: (n,) columns of the event schema.
      bounds: (partitions + 1,) rows of partition p are bounds[p] to bounds[p + 1].
      row: (n,) the row of each event in the order in which they were sent.
      first: (bodies + 1,) events of body i, in that order, are first[i] to first[i + 1]; none: left to ``wire``.
      answers: what each body is told once its events are durable; empty for one that was left.
      kinds: events by (event type, device).
    """

    events: pa.RecordBatch
    bounds: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    answers: list[bytes]
    kinds: Counter[tuple[str, str]]

    def parts(self, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(partition, its events), at most so many at a time."""
        for partition, (begin, end) in enumerate(zip(self.bounds[:-1].tolist(), self.bounds[1:].tolist(), strict=True)):
            for at in range(begin, end, rows):
                yield partition, self.events.slice(at, min(rows, end - at))

    def kinds_without(self, partitions: Collection[int]) -> Counter[tuple[str, str]]:
        """``kinds`` without the events of some partitions."""
        rows = np.concatenate([np.arange(0), *(np.arange(self.bounds[p], self.bounds[p + 1])
                                               for p in range(len(self.bounds) - 1) if p not in partitions)])
        kept = self.events.select(["event_type", "device"]).take(pa.array(rows, pa.int64()))
        return Counter((kind, device or "") for kind, device in zip(*(c.to_pylist() for c in kept.columns), strict=True))

    def fates(self, body: int) -> list[tuple[str, int]]:
        """(event id, partition) of each event of a body, in the order sent."""
        rows = self.row[self.first[body] : self.first[body + 1]]
        partitions = np.searchsorted(self.bounds, rows, side="right") - 1
        return list(zip(self.events.column(0).take(pa.array(rows)).to_pylist(), partitions.tolist(), strict=True))


def type_mask(event_types: Collection[str]) -> npt.NDArray[np.bool_]:
    """Flags of event types, by their code."""
    return np.isin(NAMES, list(event_types))


def scanned(bodies: Sequence[bytes], room: int, partitions: int, now: int, needs_stamps: bool,
            leaves: npt.NDArray[np.bool_]) -> Scanned:
    """Reads the events of request bodies.

    Args:
      room: at least as many as there are events (see count_of).
      partitions: of the log.
      now: microseconds; becomes ingested_at, and occurred_at where neither that nor an id was sent.
      needs_stamps, leaves: what is left to ``wire``; see serving.collector.scan.scan.
    """
    data = np.frombuffer(b"\0".join([*bodies, _PADDING]), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)) + 1) - 1
    (begin, size, number, valid, list_end, list_begin, list_size, map_end, map_begin, map_size,
     first) = scan(data, ends, room, now, needs_stamps, leaves)
    n = len(begin)
    nameless = np.flatnonzero(size[:, _ID] < 0)
    if len(nameless):
        begin[nameless, _ID] = len(data) + np.arange(len(nameless)) * _ID_BYTES
        size[nameless, _ID] = _ID_BYTES
        data = np.concatenate([data, new_event_ids(len(nameless), now)])
        data.flags.writeable = False  # one compiled form, whoever made the bytes
    partition = _partitions(data, begin[:, _USER], size[:, _USER], partitions)
    order = np.argsort(partition, kind="stable")
    row = np.empty(n, np.int64)
    row[order] = np.arange(n)
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    text, end = answers(data, np.ascontiguousarray(begin[:, _ID]), np.ascontiguousarray(size[:, _ID]), first, _PARTS)
    told, at = text.tobytes(), [0, *end.tolist()]
    buffers = arrange(data, begin, size, number, valid, list_end, list_begin, list_size, map_end, map_begin, map_size, order)
    return Scanned(_columns(n, buffers, now), bounds, row, first, [told[a:b] for a, b in itertools.pairwise(at)],
                   _kinds(data, begin, size))


def _partitions(data: npt.NDArray[np.uint8], begin: npt.NDArray[np.int64], size: npt.NDArray[np.int32],
                partitions: int) -> npt.NDArray[np.int64]:
    """As serving.eventlog.partition_of."""
    found = hashes(data, np.ascontiguousarray(begin), np.ascontiguousarray(size))
    for i in np.flatnonzero(size > MAX_BYTES).tolist():
        found[i] = xxh3_64_intdigest(data[begin[i] : begin[i] + size[i]].tobytes())
    return partitions_of_hashes(found, partitions)


def _kinds(data: npt.NDArray[np.uint8], begin: npt.NDArray[np.int64], size: npt.NDArray[np.int32]) -> Counter:
    pairs = []
    for column in (_KIND, _DEVICE):
        places, sizes = np.ascontiguousarray(begin[:, column]), np.ascontiguousarray(size[:, column])
        sizes[sizes < 0] = 0
        codes, at = number_strings(data, places, sizes)
        pairs.append((codes, [data[b : b + s].tobytes().decode() for b, s in zip(places[at].tolist(), sizes[at].tolist(),
                                                                               strict=True)]))
    (kinds, names), (devices, labels) = pairs
    counts = np.bincount(kinds.astype(np.int64) * max(1, len(labels)) + devices)
    return Counter({(names[i // len(labels)], labels[i % len(labels)]): int(counts[i])
                    for i in np.flatnonzero(counts).tolist()})


def _columns(n: int, buffers: tuple, now: int) -> pa.RecordBatch:
    offsets, starts, values, bits, nulls, numbers, lists, maps = buffers
    offset_buffer, value_buffer, bit_buffer, number_buffer = map(pa.py_buffer, (offsets, values, bits, numbers))
    wide, low, at = offsets.shape[1] * 4, bits.shape[1], starts.tolist()
    missing = nulls.tolist()

    def strings(column: int, rows: int, valid: pa.Buffer | None = None, nulls: int = 0) -> pa.Array:
        return pa.Array.from_buffers(_STRING, rows, [
            valid, offset_buffer.slice(column * wide, (rows + 1) * 4),
            value_buffer.slice(at[column], at[column + 1] - at[column])], nulls)

    def validity(column: int) -> pa.Buffer | None:
        return bit_buffer.slice(column * low, low) if missing[column] else None

    arrays: dict[str, pa.Array] = {}
    for i, name in enumerate(TEXTS):
        arrays[name] = strings(i, n, validity(i), missing[i])
    for i, name in enumerate(NUMBERS):
        j = len(TEXTS) + i
        data = pa.py_buffer(numbers[i].astype(np.int32)) if name in _INT32 else number_buffer.slice(i * n * 8, n * 8)
        arrays[name] = pa.Array.from_buffers(_TYPE_OF[name], n, [validity(j), data], missing[j])
    arrays["ingested_at"] = pa.Array.from_buffers(_TYPE_OF["ingested_at"], n, [None, pa.py_buffer(np.full(n, now, np.int64))])
    words = strings(len(TEXTS), int(lists[-1]))
    arrays["categories"] = pa.Array.from_buffers(_TYPE_OF["categories"], n, [None, pa.py_buffer(lists)], children=[words])
    pairs = int(maps[-1])
    entries = pa.StructArray.from_arrays([strings(len(TEXTS) + 1 + i, pairs) for i in range(2)], fields=_PAIR)
    arrays["attributes"] = pa.Array.from_buffers(_TYPE_OF["attributes"], n, [None, pa.py_buffer(maps)], children=[entries])
    return pa.RecordBatch.from_arrays([arrays[name] for name in _TYPE_OF], schema=SCHEMA)


_DIGITS = [*range(8), *range(9, 13), *range(14, 18), *range(19, 23), *range(24, 36)]


def new_event_ids(n: int, now: int) -> npt.NDArray[np.uint8]:
    """n UUIDv7 as ASCII, (n * 36,): milliseconds, then chance; ids of one time lie together."""
    raw = np.frombuffer(os.urandom(16 * n), np.uint8).reshape(n, 16).copy()
    raw[:, :6] = np.frombuffer((now // 1000).to_bytes(6, "big"), np.uint8)
    raw[:, 6] = raw[:, 6] & 0x0F | 0x70
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    text = np.full((n, _ID_BYTES), ord("-"), np.uint8)
    text[:, _DIGITS] = np.frombuffer(raw.tobytes().hex().encode(), np.uint8).reshape(n, 32)
    return text.reshape(-1)


@functools.cache
def warm_up() -> None:
    """Compiles the loops, once for a machine; from then on they are loaded."""
    body = b'{"user_id":"u","item_id":"i","event_type":"click","categories":["c"],"attributes":{"a":"b"},"price":1.5}'
    list(scanned([body, b"[" + body + b"]"], 2, 1, 1, False, type_mask(())).parts(1))
