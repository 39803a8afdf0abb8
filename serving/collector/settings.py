"""Settings of a collector process; they travel to its workers in one environment variable."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, urlencode

import msgspec

from serving.collector import LINGER_MS
from serving.eventlog import EventLog, open_log

ENVIRONMENT = "BEAMREC_COLLECTOR"


class CollectorSettings(msgspec.Struct, frozen=True):
    """What a worker needs.

    Attributes:
      log: URI of the event log; its dead letters, items and users go to logs beside it (see ``beside``).
      store: URI of the store for catalogue stamps and suppressions; None for neither.
      partitions: of logs that are not there yet.
      linger_ms: how long an event waits for others of its partition.
      max_waiting: events that may wait for the log.
      cors_origins: web origins that may post and read answers; "*" for all.
      keys: file of API keys, which may come later; None: everybody may write whom ``anonymous`` lets.
      anonymous: roles of a request without a key; until_keys: while there is no file of keys, and no longer.
      workers, run: processes that share each limit, and the folder where they do.
      mask: secret under which user ids are hashed in logs.
    """

    log: str
    store: str | None = None
    partitions: int = 4
    linger_ms: float = LINGER_MS
    max_waiting: int = 100_000
    cors_origins: tuple[str, ...] = ()
    keys: str | None = None
    anonymous: tuple[str, ...] = ("write_events",)
    until_keys: bool = False
    workers: int = 1
    run: str | None = None
    mask: str = ""

    @classmethod
    def from_env(cls) -> CollectorSettings:
        """The settings of this process's environment; raises KeyError without."""
        return msgspec.json.decode(os.environ[ENVIRONMENT], type=cls)

    def to_env(self) -> dict[str, str]:
        """The environment variables that from_env reads."""
        return {ENVIRONMENT: msgspec.json.encode(self).decode()}


def creating(uri: str, partitions: int) -> str:
    """The URI that also creates the log; a number of partitions in the URI itself stays."""
    head, _, query = uri.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    return f"{head}?{urlencode({'partitions': str(partitions), **options}, safe='/')}"


def beside(uri: str, name: str, partitions: int = 1) -> str:
    """The URI (creating it) of a log beside a log: ``dir:log`` -> ``dir:log-dead``."""
    head, _, query = uri.partition("?")
    options = {k: v for k, v in parse_qsl(query, keep_blank_values=True) if k != "partitions"}
    rest = f"?{urlencode(options, safe='/')}" if options else ""
    return creating(f"{head.rstrip('/')}-{name}{rest}", partitions)


def open_for_writing(uri: str) -> EventLog:
    """Opens a log and takes a local one's locks: a second writer is told at its start, not at its first event."""
    log = open_log(uri)
    if log.uri.startswith("dir:"):
        for partition in range(log.partitions()):
            log.append(partition, [], 0)
    return log
