"""A reader of Kafka partitions over either consumer: librdkafka's batches, or confluent-kafka's message objects."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from serving.eventlog import rdkafka
from serving.eventlog.base import LogError, LogUnavailable, OffsetGone, Records
from transforms.records.base import MAX_RECORD_BYTES

_PAUSE_S = 0.002  # between looks for new records
_MOST = 20_000  # messages of a partition at a time
_ASK_S = 10.0
_PROBE_S = 0.5
_GONE = {rdkafka.AUTO_OFFSET_RESET, rdkafka.OFFSET_OUT_OF_RANGE}


class PartitionConsumer(Protocol):
    """What a reader needs of a Kafka client; see serving.eventlog.rdkafka.Consumer."""

    def start(self, partition: int, offset: int) -> None: ...
    def stop(self, partition: int) -> None: ...
    def read(self, partition: int, most: int) -> tuple[Records, list[tuple[int, int]]]: ...
    def serve(self) -> None: ...
    def watermarks(self, partition: int, timeout_s: float | None = None) -> tuple[int, int] | None: ...
    def text(self, code: int) -> str: ...
    def close(self) -> None: ...


Connect = Callable[[Callable[[int, str], None]], PartitionConsumer]


class KafkaReader:
    """Reads partitions in turn; see serving.eventlog.base."""

    def __init__(self, connect: Connect, uri: str, positions: Mapping[int, int], scrub: Callable[[str], str] = str) -> None:
        """Reads from ``positions`` on; ``connect(on_error)`` makes the client, ``scrub`` cleans its messages of secrets."""
        self._uri, self._scrub = uri, scrub
        self._positions: dict[int, int] = {}
        self._failed: dict[int, LogError] = {}  # partitions that give nothing more until seek
        self._only: frozenset[int] | None = None
        self._away = self._trouble = ""  # why no broker answers; what else went wrong since the last poll
        self._average = 256.0
        self._turn = 0
        self._consumer = connect(self._on_error)
        try:
            self.seek(positions)
        except BaseException:
            self._consumer.close()
            raise

    def _on_error(self, code: int, text: str) -> None:
        if code in (rdkafka.ALL_BROKERS_DOWN, rdkafka.AUTHENTICATION, rdkafka.SSL):
            self._away = self._scrub(text) or self._consumer.text(code)  # said once an outage

    def seek(self, positions: Mapping[int, int]) -> None:
        """Goes on at other positions, for the partitions named."""
        for partition, offset in positions.items():
            self._consumer.start(partition, offset)
            self._positions[partition] = offset
            self._failed.pop(partition, None)

    def positions(self) -> dict[int, int]:
        """The next offset of each partition."""
        return dict(self._positions)

    def high_watermarks(self) -> dict[int, int]:
        """The next offset to be written of each partition, as last heard of the broker.

        Raises:
          LogUnavailable: nothing was heard yet, and the broker does not answer.
        """
        found = {}
        for partition in self._positions:
            known = self._consumer.watermarks(partition) or self._consumer.watermarks(partition, _ASK_S)
            if known is None:
                raise LogUnavailable(f"{self._uri} does not answer")
            found[partition] = max(known[1], self._positions[partition])
        return found

    def only(self, partitions: Collection[int] | None) -> None:
        """Polls just these partitions until told otherwise; None: all."""
        self._only = None if partitions is None else frozenset(partitions)

    def poll(self, max_bytes: int, timeout_s: float) -> Records:
        """The next records; see serving.eventlog.base."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._consumer.serve()
            active = [p for p in self._positions if self._only is None or p in self._only]
            for partition in active:
                if partition in self._failed:
                    raise self._failed[partition]
            records = self._sweep(active, max_bytes)
            if len(records):
                return records
            if any(p in self._failed for p in active):
                continue
            if self._away and active and self._consumer.watermarks(active[0], _PROBE_S) is not None:
                self._away = ""
            if self._away or self._trouble:
                text, self._trouble = self._away or self._trouble, ""
                raise LogUnavailable(f"{self._uri} is away: {text}")
            pause = deadline - time.monotonic()
            if pause <= 0:
                return records
            time.sleep(min(_PAUSE_S, pause))

    def _sweep(self, active: list[int], max_bytes: int) -> Records:
        self._turn += 1
        parts, left = [], max_bytes
        for i in range(len(active)):
            partition = active[(self._turn + i) % len(active)]
            share = left // (len(active) - i)
            while share > 0:
                records, notes = self._consumer.read(partition, int(min(_MOST, max(1, share / self._average))))
                for code, offset in notes:
                    self._note(partition, code, offset)
                if not len(records):
                    break
                self._positions[partition] = max(self._positions[partition], int(records.offset[-1]) + 1)
                self._average = max(1.0, len(records.data) / len(records))
                share -= len(records.data)
                left -= len(records.data)
                parts.append(records)
        return Records.concat(parts)

    def _note(self, partition: int, code: int, offset: int) -> None:
        """Takes in a message that is no record."""
        if code == rdkafka.PARTITION_EOF:  # past what only the broker sees: ends of transactions, compacted records
            self._positions[partition] = max(self._positions[partition], offset)
        elif code in _GONE:
            self._failed[partition] = self._gone(partition)
        elif code in (rdkafka.UNKNOWN_TOPIC, rdkafka.UNKNOWN_PARTITION, rdkafka.UNKNOWN_TOPIC_OR_PART,
                      rdkafka.TOPIC_AUTHORIZATION_FAILED):
            self._failed[partition] = LogError(f"{self._uri}, partition {partition}: {self._consumer.text(code)}")
        elif code == rdkafka.MSG_SIZE_TOO_LARGE:
            self._failed[partition] = LogError(f"{self._uri}, partition {partition}: the record at {offset:,} is larger than "
                                               f"{MAX_RECORD_BYTES:,} bytes")
        else:
            self._trouble = self._consumer.text(code)

    def _gone(self, partition: int) -> LogError:
        asked, known = self._positions[partition], self._consumer.watermarks(partition, _ASK_S)
        if known is None:
            return LogUnavailable(f"{self._uri}, partition {partition}: it refuses offset {asked:,} and does not answer")
        if asked < known[0]:
            return OffsetGone(partition, asked, known[0])
        return LogError(f"{self._uri}, partition {partition}: offset {asked:,} lies beyond the end, {known[1]:,}; "
                        "was the topic made anew?")

    def close(self) -> None:
        """Releases the client."""
        self._consumer.close()
