"""The plain way to read Kafka, where librdkafka cannot be called directly: confluent-kafka's Consumer and its messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from serving.eventlog.base import LogError
from transforms.records.base import Records

_AT_ONCE = 10_000
_HELD = 20_000  # messages of a partition that nobody reads, before it is paused


class ObjectConsumer:
    """The same calls as serving.eventlog.rdkafka.Consumer."""

    def __init__(self, settings: Mapping[str, str], topic: str, on_error: Callable[[int, str], None]) -> None:
        """Connects lazily.

        Raises:
          LogError: a setting that the client refuses.
        """
        self._topic, self._on_error = topic, on_error
        try:
            self._client = Consumer({**settings, "error_cb": self._error})
        except KafkaException as error:
            raise LogError(f"the Kafka client refuses its settings: {error.args[0].str()}") from None
        self._held: dict[int, list[Any]] = {}
        self._paused: set[int] = set()

    def _error(self, error: KafkaError) -> None:
        self._on_error(error.code(), error.str())

    def start(self, partition: int, offset: int) -> None:
        """Fetches a partition from an offset on, whatever was fetched before."""
        self.stop(partition)
        self._client.incremental_assign([TopicPartition(self._topic, partition, offset)])
        self._held[partition] = []

    def stop(self, partition: int) -> None:
        """Ends the fetching of a partition; what was fetched is dropped."""
        if partition in self._held:
            self._client.incremental_unassign([TopicPartition(self._topic, partition)])
            del self._held[partition]
            self._paused.discard(partition)

    def read(self, partition: int, most: int) -> tuple[Records, list[tuple[int, int]]]:
        """What is fetched of a partition, up to ``most`` messages; (error code, offset) of those that are none."""
        if not self._held[partition]:
            for message in self._client.consume(_AT_ONCE, 0):
                if (held := self._held.get(message.partition() or 0)) is not None:
                    held.append(message)
        taken, self._held[partition] = self._held[partition][:most], self._held[partition][most:]
        self._pause()
        notes = [(m.error().code(), m.offset()) for m in taken if m.error() is not None]
        good = [m for m in taken if m.error() is None]
        values = [m.value() or b"" for m in good]
        return Records(np.frombuffer(b"".join(values), np.uint8), np.cumsum([len(v) for v in values], dtype=np.int64),
                       np.full(len(good), partition, np.int32), np.array([m.offset() for m in good], np.int64),
                       np.array([m.timestamp()[1] for m in good], np.int64) * 1000), notes

    def _pause(self) -> None:
        for partition, held in self._held.items():
            full = len(held) > _HELD
            if full != (partition in self._paused):
                (self._client.pause if full else self._client.resume)([TopicPartition(self._topic, partition)])
                (self._paused.add if full else self._paused.discard)(partition)

    def serve(self) -> None:
        """Nothing: consume() runs the callbacks."""

    def watermarks(self, partition: int, timeout_s: float | None = None) -> tuple[int, int] | None:
        """(earliest, latest) offset of a partition as last heard, or asked for now; None while not known."""
        place = TopicPartition(self._topic, partition)
        try:
            known = self._client.get_watermark_offsets(place, timeout=timeout_s or 1.0, cached=timeout_s is None)
        except KafkaException:
            return None
        return None if known is None or min(known) < 0 else known

    def text(self, code: int) -> str:
        """What an error code means."""
        return str(KafkaError(code).str())

    def close(self) -> None:
        """Frees the client."""
        self._client.close()
