"""The event log protocol: partitions of records at ascending offsets, durable once append returns.

Contract of every implementation (tests/serving/test_eventlog_contract.py runs over all of them):
- Offsets of a partition ascend; readers see a record only once it is durable, each once, in order; gaps are allowed.
- A record whose send or append raised may or may not be in the log: sending it again is safe, for events carry ids.
- Timestamps are microseconds since 1970 (a log may keep milliseconds only).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.keys import hash64, hash64_column
from transforms.records.base import MAX_RECORD_BYTES, Records, SchemaRegistry

__all__ = ["MAX_RECORD_BYTES", "EventLog", "LogBusy", "LogError", "LogMissing", "LogReader", "LogUnavailable", "LogUriError",
           "OffsetGone", "Outcome", "Producer", "Records", "partition_of", "partitions_of"]


class LogError(RuntimeError):
    """The log refused or could not finish a call."""


class LogUriError(LogError):
    """A log URI, or its settings, that this build cannot open."""


class LogMissing(LogError):  # noqa: N818 - a state
    """There is no such log."""


class LogUnavailable(LogError):  # noqa: N818 - it is a state, and the API says it so
    """The log is away (broker down, disk full); worth another try after ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LogBusy(LogUnavailable):
    """More is waiting to be written than the producer may hold: back off for ``retry_after_s``."""


class OffsetGone(LogError):  # noqa: N818
    """Retention deleted the offset that was asked for; ``earliest`` is the oldest one there is."""

    def __init__(self, partition: int, asked: int, earliest: int) -> None:
        super().__init__(f"partition {partition}: offset {asked} is no longer there, the log begins at {earliest}")
        self.partition, self.asked, self.earliest = partition, asked, earliest


class LogReader(Protocol):
    """Reads the partitions it was given, each from a position on. For one thread at a time."""

    def poll(self, max_bytes: int, timeout_s: float) -> Records:
        """The next records, up to about ``max_bytes`` (at least one record where there is one); waits up to ``timeout_s``
        for the first.

        Raises:
          OffsetGone: retention deleted the next offset of a partition.
          LogUnavailable: the log is away; calling again is safe.
        """
        ...

    def positions(self) -> dict[int, int]:
        """The next offset of each partition: what poll returned lies before it."""
        ...

    def high_watermarks(self) -> dict[int, int]:
        """The next offset to be written of each partition, as far as known."""
        ...

    def seek(self, positions: Mapping[int, int]) -> None:
        """Goes on at other positions, for the partitions named; they may be new ones of this log."""
        ...

    def only(self, partitions: Collection[int] | None) -> None:
        """Polls just these partitions until told otherwise (None: all); the others stay where they are."""
        ...

    def close(self) -> None:
        """Releases connections and files."""
        ...


Outcome = int | LogError
"""What became of a record: its offset, or why it could not be written."""


class Producer(Protocol):
    """Writes records from an event loop; many sends share one commit.

    Attributes:
      in_flight: how many sends under way at once are worth it; more only wait for each other.
    """

    in_flight: int

    async def send(self, partition: int, record: bytes, timestamp: int) -> int:
        """Writes a record; returns its offset once it is durable.

        Raises:
          ValueError: the record is over MAX_RECORD_BYTES, or no such partition.
          LogBusy: too much is waiting already; nothing was written.
          LogUnavailable: it could not be written (or it is not known whether it was).
        """
        ...

    async def send_all(self, sends: Sequence[tuple[int, bytes]], timestamp: int) -> list[Outcome]:
        """Writes (partition, record) pairs, those of a partition in their order; each one's offset, or why it has none.

        Raises:
          As send, when nothing was written.
        """
        ...

    async def flush(self) -> None:
        """Returns once every send so far is durable or has failed."""
        ...

    def backlog(self) -> int:
        """Bytes that wait to be durable."""
        ...

    def close(self) -> None:
        """Writes what waits, then releases the log; sends after it raise LogUnavailable."""
        ...


class EventLog(Protocol):
    """A log of one topic. Safe to use from several threads.

    Attributes:
      uri: opens it again.
      registry: where the ids of Confluent headers are looked up; None when the log's settings name none.
    """

    uri: str
    registry: SchemaRegistry | None

    def partitions(self) -> int:
        """How many there are now; they may become more, never fewer."""
        ...

    def append(self, partition: int, records: Sequence[bytes], timestamp: int) -> int:
        """Writes records, durable when it returns; the first one's offset. Raises as Producer.send."""
        ...

    def earliest(self, partition: int) -> int:
        """The oldest offset there is (``latest`` for an empty partition)."""
        ...

    def latest(self, partition: int) -> int:
        """The next offset to be written."""
        ...

    def offset_at(self, partition: int, timestamp_micros: int) -> int:
        """The first offset whose timestamp is at or after the given one; ``latest`` when there is none."""
        ...

    def reader(self, positions: Mapping[int, int]) -> LogReader:
        """A reader of the partitions named, each from its offset on."""
        ...

    def producer(self) -> Producer:
        """A producer for the running event loop."""
        ...

    def close(self) -> None:
        """Releases connections, files and locks."""
        ...


def partition_of(user_id: str, partitions: int) -> int:
    """The partition of a user's events: from other bits of the hash than row keys and buckets."""
    return (hash64(user_id) >> 32) % partitions


def partitions_of(user_ids: pa.Array | pa.ChunkedArray, partitions: int) -> npt.NDArray[np.int64]:
    """``partition_of`` for a column."""
    return partitions_of_hashes(hash64_column(user_ids), partitions)


def partitions_of_hashes(hashes: npt.NDArray[np.uint64], partitions: int) -> npt.NDArray[np.int64]:
    """``partition_of`` for hashes (schemas.keys.hash64) of user ids."""
    return ((hashes >> np.uint64(32)) % np.uint64(partitions)).astype(np.int64)
