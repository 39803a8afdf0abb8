"""Event logs: the protocol (base), the local log, Kafka, and ``open_log``; one contract suite runs over all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from serving.eventlog.base import (
    EventLog,
    LogBusy,
    LogError,
    LogMissing,
    LogReader,
    LogUnavailable,
    LogUriError,
    OffsetGone,
    Producer,
    partition_of,
    partitions_of,
)
from serving.eventlog.local import MAX_PARTITIONS, LocalLog

__all__ = [
    "EventLog", "LocalLog", "LogBusy", "LogError", "LogMissing", "LogReader", "LogUnavailable", "LogUriError", "OffsetGone",
    "Producer", "open_log", "partition_of", "partitions_of", "side_uri",
]

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def open_log(uri: str, settings: Mapping[str, str] | None = None) -> EventLog:
    """The log behind a URI.

    Args:
      uri: ``dir:PATH`` (``dir:PATH?partitions=4`` creates it) or ``kafka://HOST:PORT/TOPIC[?client=FILE]``.
      settings: client settings of Kafka, over those of FILE.

    Raises:
      LogUriError: no such kind of log, or an unknown option.
      LogError: the log is not there or cannot be opened.
    """
    head, _, query = uri.partition("?")
    scheme, colon, rest = head.partition(":")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme == "dir" and colon and rest:
        return _local(uri, rest, options)
    if scheme == "kafka" and rest.startswith("//"):
        return _kafka(uri, rest[2:], options, settings)
    raise LogUriError(f"{uri!r} is not a log; use dir:PATH or kafka://HOST:PORT/TOPIC")


def side_uri(uri: str, kind: str) -> str:
    """The URI of a log beside an event log: ``dir:log`` -> ``dir:log-items``; opening it creates nothing."""
    head, _, query = uri.partition("?")
    options = {k: v for k, v in parse_qsl(query, keep_blank_values=True) if k != "partitions"}
    return f"{head.rstrip('/')}-{kind}" + (f"?{urlencode(options, safe='/')}" if options else "")


def _local(uri: str, path: str, options: dict[str, str]) -> EventLog:
    _known(uri, options, ("partitions",))
    return LocalLog(Path(path), _partitions(uri, options))


def _kafka(uri: str, rest: str, options: dict[str, str], settings: Mapping[str, str] | None) -> EventLog:
    if "@" in rest:
        raise LogUriError("a kafka:// URI holds no credentials; put them into a file and name it: ?client=FILE")
    _known(uri, options, ("client", "partitions"))
    host, _, topic = rest.partition("/")
    if not host or not _TOPIC.fullmatch(topic):
        raise LogUriError(f"{uri!r}: a Kafka log is kafka://HOST:PORT/TOPIC")
    try:
        from serving.eventlog.client_settings import ClientSettings
        from serving.eventlog.kafka import KafkaLog
    except ImportError as error:
        raise LogUriError(f"{uri}: reading Kafka needs: pip install 'beamrec[stream]'") from error
    stored = ClientSettings.read(Path(options["client"])) if "client" in options else ClientSettings({})
    plain = f"kafka://{host}/{topic}" + (f"?client={options['client']}" if "client" in options else "")
    return KafkaLog(plain, host, topic, ClientSettings(settings or {}).over(stored), _partitions(uri, options))


def _partitions(uri: str, options: dict[str, str]) -> int | None:
    number = options.get("partitions")
    if number is not None and not (number.isdecimal() and 1 <= int(number) <= MAX_PARTITIONS):
        raise LogUriError(f"{uri}: partitions is a number from 1 to {MAX_PARTITIONS:,}")
    return int(number) if number is not None else None


def _known(uri: str, options: dict[str, str], names: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise LogUriError(f"{uri}: unknown option {unknown[0]!r}; known: {', '.join(names)}")
