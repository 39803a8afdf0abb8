"""Kafka as an event log: ``kafka://HOST:PORT/TOPIC``; needs the extra [stream]."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from serving.eventlog import rdkafka
from serving.eventlog.base import LogError, LogMissing, LogReader, LogUnavailable
from serving.eventlog.client_settings import (
    COMMON,
    CONSUMER,
    CONSUMER_ALWAYS,
    PRODUCER,
    PRODUCER_ALWAYS,
    ClientSettings,
    queue_limits,
)
from serving.eventlog.kafka_objects import ObjectConsumer
from serving.eventlog.kafka_producer import KafkaProducer
from serving.eventlog.kafka_reader import KafkaReader, PartitionConsumer
from serving.eventlog.registry import open_registry
from transforms.records.base import SchemaRegistry

_ASK_S = 10.0
_MILLIS = 1000
_PASSING = frozenset({KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN,
                      KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE})
"""Errors that another try may not meet: the broker is away, or partitions are getting a leader."""


class KafkaLog:
    """One topic; see serving.eventlog.base for the protocol. Timestamps are kept in milliseconds."""

    def __init__(self, uri: str, bootstrap: str, topic: str, settings: Mapping[str, str] | None = None,
                 partitions: int | None = None) -> None:
        """Connects lazily; with ``partitions`` the topic is created, or given more partitions where it has fewer.

        Raises:
          LogError: a setting that the client refuses.
          LogUnavailable: the topic is to be created, and the broker does not answer.
        """
        self.uri, self.topic = uri, topic
        given = dict(settings or {})
        self.registry: SchemaRegistry | None = open_registry(given)
        kafkas = {name: value for name, value in given.items() if not name.startswith("schema.registry.")}
        self._settings = ClientSettings({"bootstrap.servers": bootstrap, **kafkas})
        self._lock = threading.RLock()
        self._asker: Any = None
        self._sender: KafkaProducer | None = None
        if partitions is not None:
            self._create(partitions)

    def __repr__(self) -> str:
        return f"KafkaLog({self.uri})"

    def _create(self, partitions: int) -> None:
        admin = self._made(AdminClient, COMMON, {})
        try:
            known = self._known_partitions()
            if not known:
                admin.create_topics([NewTopic(self.topic, partitions)])[self.topic].result(_ASK_S)
            elif known < partitions:
                admin.create_partitions([NewPartitions(self.topic, partitions)])[self.topic].result(_ASK_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self._said(error) from None
        deadline = time.monotonic() + _ASK_S
        while not self._led(partitions) and time.monotonic() < deadline:  # metadata travel, and leaders are elected
            time.sleep(0.05)

    def _led(self, partitions: int) -> bool:
        """Whether so many partitions are there and each answers."""
        if self._known_partitions() < partitions:
            return False
        try:
            return all(self._watermarks(partition) is not None for partition in range(partitions))
        except (LogError, ValueError):
            return False

    def _known_partitions(self) -> int:
        try:
            return self.partitions()
        except LogUnavailable:
            raise
        except LogError:
            return 0

    def partitions(self) -> int:
        """How many there are now.

        Raises:
          LogError: no such topic. LogUnavailable: the broker does not answer.
        """
        return len(self._metadata(self._ask()).partitions)

    def append(self, partition: int, records: Sequence[bytes], timestamp: int) -> int:
        """Writes records, acknowledged by all in-sync replicas when it returns; the first one's offset."""
        with self._lock:
            if self._sender is None:
                self._sender = self._producer()
            sender = self._sender
        if partition >= sender.partitions and partition < self.partitions():
            sender.partitions = self.partitions()
        return sender.append(partition, records, timestamp) if records else self.latest(partition)

    def earliest(self, partition: int) -> int:
        """The oldest offset there is."""
        return self._watermarks(partition)[0]

    def latest(self, partition: int) -> int:
        """The next offset to be written."""
        return self._watermarks(partition)[1]

    def offset_at(self, partition: int, timestamp_micros: int) -> int:
        """The first offset whose timestamp is at or after the given one."""
        millis = -(-timestamp_micros // _MILLIS)  # up: what is kept is cut to milliseconds
        try:
            (found,) = self._ask().offsets_for_times([TopicPartition(self.topic, partition, max(0, millis))], timeout=_ASK_S)
        except KafkaException as error:
            raise self._said(error, partition) from None
        return found.offset if found.offset >= 0 else self.latest(partition)

    def reader(self, positions: Mapping[int, int]) -> LogReader:
        """A reader of the partitions named; librdkafka's batches where they can be read, else message objects."""
        known = self.partitions()
        for partition in positions:
            if not 0 <= partition < known:
                raise ValueError(f"{self.uri} has no partition {partition}")
        kind: Callable[..., PartitionConsumer] = rdkafka.Consumer if rdkafka.library() is not None else ObjectConsumer
        settings = self._for(CONSUMER, queue_limits(len(positions)), always=CONSUMER_ALWAYS)
        return KafkaReader(functools.partial(kind, settings, self.topic), self.uri, positions, self._settings.scrub)

    def producer(self) -> KafkaProducer:
        """A producer for the running event loop."""
        return self._producer()

    def close(self) -> None:
        """Writes what waits and disconnects."""
        with self._lock:
            if self._sender is not None:
                self._sender.close()
            if self._asker is not None:
                self._asker.close()
            self._sender = self._asker = None

    def _producer(self) -> KafkaProducer:
        return KafkaProducer(self._for(PRODUCER, always=PRODUCER_ALWAYS), self.topic, self.uri, self.partitions())

    def _for(self, *defaults: Mapping[str, str], always: Mapping[str, str]) -> ClientSettings:
        return ClientSettings(always).over(self._settings, *defaults, COMMON)

    def _made(self, kind: Any, defaults: Mapping[str, str], always: Mapping[str, str]) -> Any:
        try:
            return kind(dict(self._for(defaults, always=always)))
        except KafkaException as error:
            text = self._settings.scrub(error.args[0].str())
            raise LogError(f"{self.uri}: the client refuses its settings: {text}") from None

    def _ask(self) -> Any:
        with self._lock:
            if self._asker is None:
                self._asker = self._made(Consumer, {}, CONSUMER_ALWAYS)
            return self._asker

    def _metadata(self, client: Any) -> Any:
        try:
            found = client.list_topics(self.topic, timeout=_ASK_S).topics[self.topic]
        except KafkaException as error:
            raise self._said(error) from None
        if found.error is not None or not found.partitions:
            if found.error is not None and found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise LogError(f"{self.uri}: {found.error.str()}")
            raise LogMissing(f"no topic {self.topic!r} at {self.uri}; the option partitions=4 of the URI creates it")
        return found

    def _watermarks(self, partition: int) -> tuple[int, int]:
        try:
            known = self._ask().get_watermark_offsets(TopicPartition(self.topic, partition), timeout=_ASK_S)
        except KafkaException as error:
            raise self._said(error, partition) from None
        if known is None:
            raise LogUnavailable(f"{self.uri} does not answer")
        return int(known[0]), int(known[1])

    def _said(self, error: KafkaException, partition: int | None = None) -> Exception:
        """The exception of the protocol for one of the client."""
        reason = error.args[0]
        text = f"{self.uri}: {self._settings.scrub(reason.str())}"
        if partition is not None and reason.code() in (rdkafka.UNKNOWN_PARTITION, rdkafka.UNKNOWN_TOPIC_OR_PART):
            return ValueError(f"{self.uri} has no partition {partition}")
        if reason.code() in _PASSING or reason.retriable():
            return LogUnavailable(text)
        return LogError(text)
