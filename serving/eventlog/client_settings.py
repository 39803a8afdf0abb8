"""Settings of Kafka clients: ours, over them those of a file, whose secrets appear in no message."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving.eventlog.base import MAX_RECORD_BYTES, LogUriError

_MAX_FILE_BYTES = 64 << 10
_SECRET = re.compile(r"password|secret|token|jaas|credential|user\.info|oauthbearer\.config|"
                     r"ssl\.(key|certificate|keystore)|\.pem$", re.I)
_QUEUED_KIB = 262_144
"""Fetched but not yet polled, over all partitions of a reader."""


class ClientSettings(Mapping[str, str]):
    """librdkafka's settings, ``key=value`` each; printing it shows no secret."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @classmethod
    def read(cls, path: Path) -> ClientSettings:
        """The settings of a file: one ``key=value`` a line, ``#`` begins a comment line.

        Raises:
          LogUriError: it cannot be read, or a line is none of these (named by its number, for it may hold a secret).
        """
        values = {}
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise LogUriError(f"client settings {path}: over {_MAX_FILE_BYTES:,} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise LogUriError(f"client settings {path}: {why}") from None
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, equals, value = line.partition("=")
            if not equals or not name.strip():
                raise LogUriError(f"client settings {path}: line {number} is not key=value")
            values[name.strip()] = value.strip()
        return cls(values)

    def over(self, *others: Mapping[str, str]) -> ClientSettings:
        """These settings, and those of the others for names that are not among these; the first of the others first."""
        merged: dict[str, str] = {}
        for other in (*reversed(others), self):
            merged.update(other)
        return ClientSettings(merged)

    def scrub(self, text: str) -> str:
        """A message without the values of secrets."""
        for name, value in self._values.items():
            if value and _SECRET.search(name):
                text = text.replace(value, "***")
        return text

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = (f"{n}={'***' if _SECRET.search(n) else v}" for n, v in sorted(self._values.items()))
        return f"ClientSettings({', '.join(shown)})"

    __str__ = __repr__


COMMON = {
    "client.id": "beamrec",
    "log_level": "0",  # failures are raised
    "reconnect.backoff.max.ms": "2000",
    "socket.keepalive.enable": "true",
    "topic.metadata.refresh.interval.ms": "30000",
}
CONSUMER = {
    "queued.min.messages": "100000",
    "fetch.message.max.bytes": str(MAX_RECORD_BYTES),
    "fetch.queue.backoff.ms": "10",
    # A broker answers when there is this much to read, or after so long: not with every record a collector sends.
    "fetch.min.bytes": "65536",
    "fetch.wait.max.ms": "50",
}
CONSUMER_ALWAYS = {  # offsets are ours
    "group.id": "beamrec",
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "enable.partition.eof": "true",
    "auto.offset.reset": "error",
    "allow.auto.create.topics": "false",
}
PRODUCER = {
    "linger.ms": "1",
    "delivery.timeout.ms": "30000",
    "message.max.bytes": str(MAX_RECORD_BYTES + 65_536),
    "queue.buffering.max.kbytes": "131072",
}
PRODUCER_ALWAYS = {"enable.idempotence": "true", "acks": "all"}  # durable, and once


def queue_limits(partitions: int) -> dict[str, str]:
    """Memory of a consumer's queues: 32 MiB a partition, less where there are many."""
    return {"queued.max.messages.kbytes": str(max(1024, min(32_768, _QUEUED_KIB // max(1, partitions))))}
