"""librdkafka's simple consumer by ctypes: a batch of messages becomes columns in one compiled loop, without the GIL.

confluent-kafka makes a Python object of each message (2 us under the GIL); its bundled library hands them out in batches. The
functions and structs are those of librdkafka's rdkafka.h (the simple consumer: no group, offsets of our own).
"""

from __future__ import annotations

import ctypes as c
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.eventlog.base import LogError
from serving.eventlog.gather import gather, total_bytes
from transforms.records.base import Records

# rd_kafka_resp_err_t
PARTITION_EOF, ALL_BROKERS_DOWN, AUTHENTICATION, SSL = -191, -187, -169, -181
UNKNOWN_PARTITION, UNKNOWN_TOPIC, UNKNOWN_TOPIC_OR_PART = -190, -188, 3
AUTO_OFFSET_RESET, OFFSET_OUT_OF_RANGE = -140, 1
MSG_SIZE_TOO_LARGE, TOPIC_AUTHORIZATION_FAILED = 10, 29
_CONSUMER = 1
_CONF_OK = 0
_MICROS = 1000
_BATCH = 20_000
_ERROR_CALLBACK = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p, c.c_void_p)


class Message(c.Structure):
    """rd_kafka_message_t; serving.eventlog.gather reads it by these offsets."""

    _fields_ = (("err", c.c_int), ("rkt", c.c_void_p), ("partition", c.c_int32), ("payload", c.c_void_p), ("len", c.c_size_t),
                ("key", c.c_void_p), ("key_len", c.c_size_t), ("offset", c.c_int64), ("private", c.c_void_p))


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rd_kafka_conf_new": (c.c_void_p, ()),
    "rd_kafka_conf_destroy": (None, (c.c_void_p,)),
    "rd_kafka_conf_set": (c.c_int, (c.c_void_p, c.c_char_p, c.c_char_p, c.c_char_p, c.c_size_t)),
    "rd_kafka_conf_set_error_cb": (None, (c.c_void_p, _ERROR_CALLBACK)),
    "rd_kafka_new": (c.c_void_p, (c.c_int, c.c_void_p, c.c_char_p, c.c_size_t)),
    "rd_kafka_destroy": (None, (c.c_void_p,)),
    "rd_kafka_poll": (c.c_int, (c.c_void_p, c.c_int)),
    "rd_kafka_topic_new": (c.c_void_p, (c.c_void_p, c.c_char_p, c.c_void_p)),
    "rd_kafka_topic_destroy": (None, (c.c_void_p,)),
    "rd_kafka_consume_start": (c.c_int, (c.c_void_p, c.c_int32, c.c_int64)),
    "rd_kafka_consume_stop": (c.c_int, (c.c_void_p, c.c_int32)),
    "rd_kafka_consume_batch": (c.c_ssize_t, (c.c_void_p, c.c_int32, c.c_int, c.c_void_p, c.c_size_t)),
    "rd_kafka_get_watermark_offsets": (c.c_int, (c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_void_p)),
    "rd_kafka_query_watermark_offsets": (c.c_int, (c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_void_p, c.c_int)),
    "rd_kafka_last_error": (c.c_int, ()),
    "rd_kafka_err2str": (c.c_char_p, (c.c_int,)),
    "rd_kafka_message_timestamp": (c.c_int64, (c.c_void_p, c.c_void_p)),
    "rd_kafka_message_destroy": (None, (c.c_void_p,)),
}


@functools.cache
def library() -> c.CDLL | None:
    """The library bundled with confluent-kafka; None where the wheel has none that can be loaded."""
    try:
        import confluent_kafka
    except ImportError:
        return None
    if c.sizeof(c.c_void_p) != 8:
        return None
    package = Path(confluent_kafka.__file__).parent
    for path in sorted(package.with_name("confluent_kafka.libs").glob("librdkafka*")):
        try:
            found = c.CDLL(str(path))
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return found
    return None


class Consumer:
    """One client of a topic, with a queue per partition. For one thread at a time."""

    def __init__(self, settings: Mapping[str, str], topic: str, on_error: Callable[[int, str], None]) -> None:
        """Connects lazily: a broker that is away shows later, through ``on_error(code, text)``.

        Raises:
          LogError: a setting that librdkafka does not know or accept.
        """
        lib = library()
        if lib is None:
            raise LogError("librdkafka cannot be loaded; install with: pip install 'beamrec[stream]'")
        self._lib, self._topic_name = lib, topic.encode()
        self._started: set[int] = set()
        self._on_error = on_error
        self._callback = _ERROR_CALLBACK(self._error)  # kept for as long as the client lives
        self._messages = np.empty(_BATCH, np.int64)
        self._client = self._new(settings)
        self._topic = lib.rd_kafka_topic_new(self._client, self._topic_name, None)
        self._functions = tuple(c.cast(f, c.c_void_p).value or 0
                                for f in (lib.rd_kafka_message_timestamp, lib.rd_kafka_message_destroy))

    def _new(self, settings: Mapping[str, str]) -> int:
        conf, why = self._lib.rd_kafka_conf_new(), c.create_string_buffer(512)
        for name, value in settings.items():
            if self._lib.rd_kafka_conf_set(conf, name.encode(), value.encode(), why, len(why)) != _CONF_OK:
                self._lib.rd_kafka_conf_destroy(conf)
                raise LogError(f"the Kafka client refuses the setting {name}")  # not its value: it may be a secret
        self._lib.rd_kafka_conf_set_error_cb(conf, self._callback)
        client = self._lib.rd_kafka_new(_CONSUMER, conf, why, len(why))
        if not client:
            self._lib.rd_kafka_conf_destroy(conf)
            raise LogError(f"the Kafka client cannot start: {why.value.decode(errors='replace')}")
        return int(client)

    def _error(self, _client: int, code: int, reason: bytes | None, _opaque: int) -> None:
        self._on_error(code, (reason or b"").decode(errors="replace"))

    def start(self, partition: int, offset: int) -> None:
        """Fetches a partition from an offset on, whatever was fetched before.

        Raises:
          LogError: librdkafka refuses.
        """
        self.stop(partition)
        if self._lib.rd_kafka_consume_start(self._topic, partition, offset) != 0:
            raise LogError(f"partition {partition} cannot be read: {self.text(self._lib.rd_kafka_last_error())}")
        self._started.add(partition)

    def stop(self, partition: int) -> None:
        """Ends the fetching of a partition; what was fetched is dropped."""
        if partition in self._started:
            self._started.discard(partition)
            self._lib.rd_kafka_consume_stop(self._topic, partition)

    def read(self, partition: int, most: int) -> tuple[Records, list[tuple[int, int]]]:
        """What is fetched of a partition, up to ``most`` messages, at once.

        Returns:
          the records, and (error code, offset) of each message that is none: an end of the partition, a failure.
        """
        n = self._lib.rd_kafka_consume_batch(self._topic, partition, 0, self._messages.ctypes.data,
                                             min(most, len(self._messages)))
        if n < 0:
            return Records.of([]), [(self._lib.rd_kafka_last_error(), -1)]
        if n == 0:
            return Records.of([]), []
        messages = self._messages[:n]
        data = np.empty(total_bytes(messages), np.uint8)
        ends, offsets, timestamps = (np.empty(n, np.int64) for _ in range(3))
        errors = np.empty(n, np.int32)
        gather(messages, data, ends, offsets, timestamps, errors, *self._functions)
        timestamps *= _MICROS
        failed = np.flatnonzero(errors)
        if len(failed):
            notes = list(zip(errors[failed].tolist(), offsets[failed].tolist(), strict=True))
            good = errors == 0
            ends, offsets, timestamps = ends[good], offsets[good], timestamps[good]
        else:
            notes = []
        return Records(data, ends, np.full(len(ends), partition, np.int32), offsets, timestamps), notes

    def serve(self) -> None:
        """Runs the callbacks that wait."""
        self._lib.rd_kafka_poll(self._client, 0)

    def watermarks(self, partition: int, timeout_s: float | None = None) -> tuple[int, int] | None:
        """(earliest, latest) offset of a partition as last heard, or asked for now; None while not known."""
        low, high = c.c_int64(-1), c.c_int64(-1)
        place = (self._client, self._topic_name, partition, c.byref(low), c.byref(high))
        if timeout_s is None:
            code = self._lib.rd_kafka_get_watermark_offsets(*place)
        else:
            code = self._lib.rd_kafka_query_watermark_offsets(*place, int(timeout_s * 1000))
        return None if code != 0 or low.value < 0 or high.value < 0 else (low.value, high.value)

    def text(self, code: int) -> str:
        """What an error code means."""
        return str(self._lib.rd_kafka_err2str(code).decode())

    def close(self) -> None:
        """Stops all fetching and frees the client."""
        if not self._client:
            return
        for partition in list(self._started):
            self.stop(partition)
        self._lib.rd_kafka_topic_destroy(self._topic)
        self._lib.rd_kafka_destroy(self._client)
        self._client = 0


