"""Request bodies by the round: scanned together, packed by partition, and answered, nothing per event in Python.

What ``scan`` leaves (and what it finds to need the store) goes the way of single events, through ``wire`` and the router.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from schemas.event_types import NAMES
from serving.collector.answers import answers
from serving.collector.packs import kinds_of, packs
from serving.collector.scan import TEXTS, scan
from serving.eventlog.base import partitions_of_hashes
from transforms.records.hashes import MAX_BYTES, hashes
from transforms.records.pack import sealed
from transforms.records.pack_layout import layout

_ID, _USER, _KIND, _DEVICE = (TEXTS.index(name) for name in ("event_id", "user_id", "event_type", "device"))
_PARTS = tuple(np.frombuffer(part, np.uint8) for part in (
    b'{"accepted":', b',"rejected":0,"events":[', b'{"event_id":"', b'","status":"accepted"}', b"]}"))
_PADDING = b"\0" * 16
_ID_BYTES = 36
PACK_ROWS, PACK_BYTES = 2_000, 2 << 20
"""What is more becomes several packs; one event may be larger."""


def count_of(body: bytes) -> int:
    """How many events a body holds, as far as a glance tells; never fewer than ``scan`` finds, for each has a brace."""
    return body.count(b"{")


@dataclass(frozen=True)
class Scanned:
    """The events of a round's bodies.

    Attributes:
      records: (partition, its events as a record of the log, see transforms.records.pack).
      partition: (n,) of each event, in the order in which they were sent.
      first: (bodies + 1,) events of body i, in that order, are first[i] to first[i + 1]; none: left to ``wire``.
      answers: what each body is told once its events are durable; empty for one that was left.
      kind: (n,) number of each event's (event type, device) in ``labels``.
      data, id_begin, id_size: where the event ids are.
    """

    records: list[tuple[int, bytes]]
    partition: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    answers: list[bytes]
    kind: npt.NDArray[np.int64]
    labels: list[tuple[str, str]]
    data: npt.NDArray[np.uint8]
    id_begin: npt.NDArray[np.int64]
    id_size: npt.NDArray[np.int32]

    def kinds(self, without: Collection[int] = ()) -> dict[tuple[str, str], int]:
        """Events by (event type, device), without those of some partitions."""
        kind = self.kind if not without else self.kind[~np.isin(self.partition, list(without))]
        counts = np.bincount(kind, minlength=len(self.labels)).tolist()
        return {label: count for label, count in zip(self.labels, counts, strict=True) if count}

    def fates(self, body: int) -> list[tuple[str, int]]:
        """(event id, partition) of each event of a body, in the order sent."""
        mine = slice(int(self.first[body]), int(self.first[body + 1]))
        return list(zip(_texts(self.data, self.id_begin[mine], self.id_size[mine]), self.partition[mine].tolist(), strict=True))


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
    found = scan(data, ends, room, now, needs_stamps, leaves)
    (begin, size, *_, first) = found
    nameless = np.flatnonzero(size[:, _ID] < 0)
    if len(nameless):
        begin[nameless, _ID] = len(data) + np.arange(len(nameless)) * _ID_BYTES
        size[nameless, _ID] = _ID_BYTES
        data = np.concatenate([data, new_event_ids(len(nameless), now)])
        data.flags.writeable = False  # one compiled form, whoever made the bytes
    partition = _partitions(data, begin[:, _USER], size[:, _USER], partitions)
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    id_begin, id_size = np.ascontiguousarray(begin[:, _ID]), np.ascontiguousarray(size[:, _ID])
    text, end = answers(data, id_begin, id_size, first, _PARTS)
    told, at = text.tobytes(), [0, *end.tolist()]
    out, cut, of = packs(data, *found[:-1], order, bounds, now, PACK_ROWS, PACK_BYTES, *layout())
    stream, places = pa.py_buffer(out), [0, *cut.tolist()]
    records = [(p, sealed(stream.slice(a, b - a))) for p, (a, b) in zip(of.tolist(), itertools.pairwise(places), strict=True)]
    kind, row = kinds_of(data, begin, size, _KIND, _DEVICE)
    labels = list(zip(*(_texts(data, begin[row, c], size[row, c]) for c in (_KIND, _DEVICE)), strict=True))
    return Scanned(records, partition, first, [told[a:b] for a, b in itertools.pairwise(at)], kind, labels, data, id_begin,
                   id_size)


def _texts(data: npt.NDArray[np.uint8], begin: npt.NDArray[np.int64], size: npt.NDArray[np.int32]) -> list[str]:
    """Strings at places; "" for null."""
    return [data[b : b + max(0, s)].tobytes().decode() for b, s in zip(begin.tolist(), size.tolist(), strict=True)]


def _partitions(data: npt.NDArray[np.uint8], begin: npt.NDArray[np.int64], size: npt.NDArray[np.int32],
                partitions: int) -> npt.NDArray[np.int64]:
    """As serving.eventlog.partition_of."""
    found = hashes(data, np.ascontiguousarray(begin), np.ascontiguousarray(size))
    for i in np.flatnonzero(size > MAX_BYTES).tolist():
        found[i] = xxh3_64_intdigest(data[begin[i] : begin[i] + size[i]].tobytes())
    return partitions_of_hashes(found, partitions)


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
    scanned([body, b"[" + body + b"]"], 2, 1, 1, False, type_mask(()))
