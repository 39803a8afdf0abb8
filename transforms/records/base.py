"""What a poll of the event log gives, as columns, and what decoding makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MAX_RECORD_BYTES = 8 << 20
"""Of one record of the log."""

MAX_PACK_ROWS = 10_000
MAX_PACK_BYTES = 16 << 20
"""Of a pack, decompressed."""

EMPTY = "empty_record"
UNKNOWN_FORMAT = "unknown_format"
UNKNOWN_SCHEMA = "unknown_schema"
NOT_AVRO = "not_avro"
BAD_PACK = "bad_pack"
TOO_LARGE = "record_too_large"
RECORD_REASONS = (EMPTY, UNKNOWN_FORMAT, UNKNOWN_SCHEMA, NOT_AVRO, BAD_PACK, TOO_LARGE)
"""Why a whole record is a dead letter; a single event may also be refused for a reason of ``transforms.ingest.REASONS``."""


@dataclass(frozen=True)
class Records:
    """n records of a log, in columns; of one partition the offsets ascend.

    Attributes:
      data: their bytes, one after the other.
      ends: (n,) where each ends in ``data``: record i is data[ends[i-1]:ends[i]], the first begins at 0.
      partition: (n,).
      offset: (n,) position in the partition.
      timestamp: (n,) microseconds since 1970 of the log record.
    """

    data: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    timestamp: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(n,) where each record begins in ``data``."""
        starts = np.zeros(len(self.ends), np.int64)
        starts[1:] = self.ends[:-1]
        return starts

    def record(self, row: int) -> bytes:
        """The bytes of one record."""
        return self.data[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes()

    @classmethod
    def of(cls, records: Sequence[bytes], partition: int = 0, first_offset: int = 0, timestamp: int = 0) -> Records:
        """Records given as bytes, at consecutive offsets of one partition."""
        n = len(records)
        return cls(np.frombuffer(b"".join(records), np.uint8), np.cumsum([len(r) for r in records], dtype=np.int64),
                   np.full(n, partition, np.int32), np.arange(first_offset, first_offset + n, dtype=np.int64),
                   np.full(n, timestamp, np.int64))

    @classmethod
    def concat(cls, parts: Sequence[Records]) -> Records:
        """The records of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.of([])
        shift = np.cumsum([0, *(len(p.data) for p in parts[:-1])])
        return cls(np.concatenate([p.data for p in parts]),
                   np.concatenate([p.ends + s for p, s in zip(parts, shift, strict=True)]),
                   np.concatenate([p.partition for p in parts]), np.concatenate([p.offset for p in parts]),
                   np.concatenate([p.timestamp for p in parts]))


@dataclass(frozen=True)
class Decoded:
    """What a poll's records say.

    Attributes:
      events: valid events, columns of ``schemas.tables.EVENTS``, strings dictionary-encoded where they repeat.
      dead: rows of ``schemas.tables.DEAD_LETTERS``.
    """

    events: pa.RecordBatch
    dead: pa.RecordBatch


class SchemaRegistry(Protocol):
    """Finds the schema that a record's Confluent header names."""

    def writer_schema(self, schema_id: int) -> Mapping[str, Any] | None:
        """The parsed Avro schema, or None when the registry knows no such id; raises when it cannot be asked."""
        ...
