"""Event logs: the protocol (base), the local log, Kafka, and ``open_log``; one contract suite runs over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl

from serving.eventlog.base import (
    EventLog,
    LogBusy,
    LogError,
    LogReader,
    LogUnavailable,
    LogUriError,
    OffsetGone,
    Producer,
    partition_of,
)
from serving.eventlog.local import LocalLog

__all__ = [
    "EventLog", "LogBusy", "LogError", "LogReader", "LogUnavailable", "LogUriError", "OffsetGone", "Producer", "open_log",
    "partition_of",
]


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
    raise LogUriError(f"{uri!r} is not a log; use dir:PATH or kafka://HOST:PORT/TOPIC")


def _local(uri: str, path: str, options: dict[str, str]) -> EventLog:
    _known(uri, options, ("partitions",))
    number = options.get("partitions")
    if number is not None and not number.isdecimal():
        raise LogUriError(f"{uri}: partitions is a number")
    return LocalLog(Path(path), int(number) if number is not None else None)


def _known(uri: str, options: dict[str, str], names: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise LogUriError(f"{uri}: unknown option {unknown[0]!r}; known: {', '.join(names)}")
