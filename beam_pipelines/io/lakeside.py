"""The logs beside an event log into the lake: the collector's dead letters, upserts of items and users, what was served.

They are read to their end once per commit of the lake writer. The offsets of each stand in the summary of the snapshot that
its rows made, as those of the event log do, so a writer that was killed stores nothing twice.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from beam_pipelines.io import compact
from beam_pipelines.io.history import PROPERTY_PREFIX
from beam_pipelines.io.ingest import upsert_items, upsert_users
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakewait import patiently
from schemas.dead_letters import decode_dead_letter
from schemas.tables import DEAD_LETTERS
from schemas.workspace import DAY_MICROS
from serving.eventlog import EventLog, LogError, LogMissing, LogUnavailable, OffsetGone, open_log, side_uri
from transforms.records import Records
from transforms.records.base import UNKNOWN_FORMAT
from transforms.records.served import decode_served
from transforms.records.upserts import decode_upserts, newest

Kind = Literal["dead", "items", "users", "served"]
KINDS: tuple[Kind, ...] = ("dead", "items", "users", "served")
BUFFER_BYTES = 64 << 20
_POLL_BYTES = 16 << 20
_POLL_S = 0.5
_QUIET_S = 10.0

_LOG = logging.getLogger(__name__)


def property_of(source: str) -> str:
    """The property of a snapshot that holds a log's offsets."""
    return f"{PROPERTY_PREFIX}log.{source}"


def offsets_of(lake: Lake, table: str, source: str) -> dict[int, int]:
    """Where the newest commit of a log to a table ended, by partition; empty before the first."""
    text = lake.newest_summary(table, property_of(source))
    return {int(p): int(offset) for p, offset in json.loads(text).items()} if text else {}


def summary_of(source: str, offsets: Mapping[int, int]) -> dict[str, str]:
    """Properties of the snapshot of a commit that read up to ``offsets``."""
    return {property_of(source): json.dumps({str(p): offset for p, offset in sorted(offsets.items())})}


class SideLog:
    """One of the logs beside an event log. It need not be there; it is looked for each time.

    Attributes:
      stored: rows that came into the lake, changed items or users counted once per commit.
      refused: upserts that could not be read; they are dead letters.
      lost: records that retention deleted before they were read.
      next: the offsets it goes on from.
    """

    def __init__(self, lake: Lake, uri: str, kind: Kind) -> None:
        self._lake, self._uri, self.kind = lake, side_uri(uri, kind), kind
        self._table = "dead_letters" if kind == "dead" else kind
        self.stored, self.refused, self.lost = 0, 0, 0
        self.next: dict[int, int] | None = None

    def catch_up(self, stop: threading.Event) -> bool:
        """Stores what the log holds now; whether all of it was read (False: the log is away, call again).

        Raises:
          LogError: the log is damaged or was made anew.
        """
        try:
            log = open_log(self._uri)
        except LogMissing:
            return True
        except LogUnavailable as error:
            _LOG.warning("%s: %s", self._uri.partition("?")[0], error)
            return False
        try:
            return self._read(log, stop)
        except LogMissing:  # Kafka is only asked now
            return True
        except LogUnavailable as error:
            _LOG.warning("%s: %s", self._uri.partition("?")[0], error)
            return False
        finally:
            log.close()

    def _read(self, log: EventLog, stop: threading.Event) -> bool:
        if self.next is None:
            self.next = patiently(functools.partial(offsets_of, self._lake, self._table, log.uri), stop)
        places = {p: self.next[p] if p in self.next else log.earliest(p) for p in range(log.partitions())}
        ends = {p: log.latest(p) for p in places}
        if beyond := [p for p in places if places[p] > ends[p]]:
            raise LogError(f"{log.uri} partition {beyond[0]} ends at offset {ends[beyond[0]]}, the lake has it up to "
                           f"{places[beyond[0]]}: was the log made anew?")
        reader = log.reader(places)
        parts: list[Records] = []
        size, heard = 0, time.monotonic()
        try:
            while any(places[p] < ends[p] for p in places):
                try:
                    records = reader.poll(_POLL_BYTES, _POLL_S)
                except OffsetGone as gone:
                    _LOG.error("%s partition %d: offsets %d to %d were deleted before they were read", log.uri,
                               gone.partition, gone.asked, gone.earliest - 1)
                    self.lost += gone.earliest - gone.asked
                    reader.seek({gone.partition: gone.earliest})
                    places = reader.positions()
                    continue
                now, before, places = time.monotonic(), places, reader.positions()
                heard = now if places != before else heard
                if now - heard > _QUIET_S:
                    return False
                if len(records):
                    parts.append(records)
                    size += len(records.data)
                if size >= BUFFER_BYTES:
                    self._store(log.uri, parts, places, stop)
                    parts, size = [], 0
        finally:
            reader.close()
        if parts:
            self._store(log.uri, parts, places, stop)
        return True

    def _store(self, source: str, parts: list[Records], offsets: dict[int, int], stop: threading.Event) -> None:
        patiently(functools.partial(self._commit, source, Records.concat(parts), offsets), stop)
        self.next = offsets

    def _commit(self, source: str, records: Records, offsets: Mapping[int, int]) -> None:
        summary = summary_of(source, offsets)
        if self.kind == "dead":
            self.stored += self._bury(_letters(records, source), source, summary)
            return
        if self.kind == "served":
            answers, unread = decode_served(records, source)
            self.refused += self._bury(unread, source, summary)
            self.stored += self._append(answers, source, summary)
            return
        upserts, dead = decode_upserts(records, self.kind[:-1], source)
        self.refused += self._bury(pa.Table.from_batches([dead]), source, summary)
        rows = newest(pa.Table.from_batches([upserts]), self.kind[:-1])
        self.stored += (upsert_items if self.kind == "items" else upsert_users)(self._lake, rows, summary)

    def _bury(self, letters: pa.Table, source: str, summary: Mapping[str, str]) -> int:
        """Adds dead letters that lie after those of this log that the lake has; how many."""
        if not len(letters):
            return 0
        with self._lake.writer():
            letters = self._new("dead_letters", letters, source)
            if len(letters):
                compact.append(self._lake, "dead_letters", [self._lake.write_file("dead_letters", letters)], summary)
        return len(letters)

    def _append(self, answers: pa.Table, source: str, summary: Mapping[str, str]) -> int:
        """Adds what was served, by day, that lies after what the lake has of this log; how many."""
        with self._lake.writer():
            answers = self._new("served", answers, source)
            if len(answers):
                days = np.asarray(answers["served_at"].cast(pa.int64())) // DAY_MICROS
                files = [self._lake.write_file("served", answers.filter(pa.array(days == day)), int(day) * DAY_MICROS)
                         for day in np.unique(days)]
                compact.append(self._lake, "served", files, summary)
        return len(answers)

    def _new(self, table: str, rows: pa.Table, source: str) -> pa.Table:
        """The rows that lie after those that a table of the lake has of a log."""
        held = offsets_of(self._lake, table, source)
        new = [offset >= held.get(partition, 0) for partition, offset in
               zip(rows["partition"].to_pylist(), rows["offset"].to_pylist(), strict=True)]
        return rows.filter(pa.array(new, pa.bool_()))


def _letters(records: Records, source: str) -> pa.Table:
    """Rows of ``dead_letters`` of the collector's records; a record that is none is kept as it is."""
    rows = []
    for row in range(len(records)):
        record = records.record(row)
        place = {"source": source, "partition": int(records.partition[row]), "offset": int(records.offset[row])}
        try:
            letter = decode_dead_letter(record)
        except ValueError as error:
            rows.append({**place, "index": 0, "reason": UNKNOWN_FORMAT, "detail": str(error)[:200], "payload": record})
            continue
        rows.append({**place, "index": letter.index, "reason": letter.reason, "detail": letter.detail,
                     "payload": letter.payload})
    return pa.Table.from_pylist(rows, DEAD_LETTERS.schema)


class SideLogs:
    """All the logs beside an event log."""

    def __init__(self, lake: Lake, uri: str) -> None:
        self.logs = {kind: SideLog(lake, uri, kind) for kind in KINDS}

    def catch_up(self, stop: threading.Event, until_end: bool = False) -> None:
        """Stores what they hold now; with ``until_end`` one that is away is waited for until ``stop`` is set."""
        for log in self.logs.values():
            while not log.catch_up(stop) and until_end and not stop.wait(1.0):
                pass
