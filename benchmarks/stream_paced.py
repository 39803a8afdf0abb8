"""The full streaming job on events of now, so many a second: what it takes in and writes while it flushes every second."""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from beam_pipelines.errors import UserError
from beam_pipelines.jobs.stream_flink import cluster_of
from beam_pipelines.jobs.stream_run import launched
from beam_pipelines.options import Config, StreamConfig
from beam_pipelines.services.process import poll
from benchmarks.stream_feed import PARTITIONS, events_of, packs, parts
from schemas.arrow import TIMESTAMP
from schemas.metric_names import CELLS_WRITTEN, EVENTS_ACCEPTED
from serving.eventlog import open_log

_BEAT_S = 0.1
_STARTED_S = 180.0
_SETTLE_S = 10.0
_DISTINCT = 500_000


class Sender(threading.Thread):
    """Appends events of now to a log at a rate, packed by partition ten times a second, until ``stop``."""

    def __init__(self, uri: str, rate: int, users: int, items: int) -> None:
        """The log is made; rate: events a second."""
        super().__init__(daemon=True)
        self.sent = 0
        self.error: Exception | None = None
        self._log = open_log(f"{uri}?partitions={PARTITIONS}")
        self._rate, self._over = rate, threading.Event()
        self._table = events_of(_DISTINCT, users, items).drop_columns(["event_hash"])

    def run(self) -> None:
        """See the class."""
        try:
            began = time.monotonic()
            while not self._over.is_set():
                due = int((time.monotonic() - began) * self._rate) - self.sent
                if due > 0:
                    self._send(min(due, self._rate))
                self._over.wait(_BEAT_S)
        except Exception as error:  # told by the thread that waits
            self.error = error
        finally:
            self._log.close()

    def stop(self) -> None:
        """Ends it and waits for its last append."""
        self._over.set()
        self.join()

    def _send(self, count: int) -> None:
        rows = np.random.default_rng(self.sent).integers(0, len(self._table), count)
        now = time.time_ns() // 1000
        part = self._table.take(pa.array(rows))
        ids = pa.array(np.arange(self.sent, self.sent + count)).cast(pa.string())
        times = pa.array(np.full(count, now)).cast(TIMESTAMP)
        for name, column in (("event_id", ids), ("occurred_at", times), ("ingested_at", times)):
            part = part.set_column(part.column_names.index(name), name, column)
        for number, events in enumerate(parts(part)):
            if events.num_rows:
                self._log.append(number % PARTITIONS, packs(events), now)
        self.sent += count


def paced(args: argparse.Namespace, folder: Path, uri: str, services: Path | None) -> dict[str, object]:
    """Runs it for ``args.seconds`` at ``args.rate`` events a second.

    Returns:
      asked_events_per_s, sent_events_per_s; achieved_events_per_s: taken into the state over that time; cells_per_s: written to
      the store; behind_events: sent and not taken at its end.

    Raises:
      UserError: the job takes no events, or the log refuses some.
    """
    shutil.rmtree(folder / "run", ignore_errors=True)
    common = Config.of(folder / "run", runner=args.runner, quiet=True)
    common.workspace.root.mkdir(parents=True)
    config = StreamConfig(common, uri, name=f"paced{time.time_ns() % 1_000_000}")
    sender = Sender(uri, args.rate, args.users, args.items)
    with launched(config, services=services) as job:
        try:
            sender.start()
            if not poll(lambda: _counts(job)[1] > 0, _STARTED_S, 0.5):
                raise UserError(f"the job takes no events within {_STARTED_S:.0f} s")
            poll(lambda: sender.sent - _counts(job)[1] < 3 * args.rate, _STARTED_S, 0.5)  # what gathered before
            time.sleep(_SETTLE_S)
            begin, sent = _counts(job), sender.sent
            at = time.monotonic()
            time.sleep(args.seconds)
            end, sent_then, took = _counts(job), sender.sent, time.monotonic() - at
        finally:
            sender.stop()
            if services is not None and job.flink_job is not None:
                cluster_of(services).rest.cancel(job.flink_job)
    if sender.error is not None:
        raise UserError(f"events could not be sent: {sender.error}") from sender.error
    between = max(end[0] - begin[0], 1e-9)
    return {"asked_events_per_s": args.rate, "sent_events_per_s": round((sent_then - sent) / took),
            "achieved_events_per_s": round((end[1] - begin[1]) / between), "cells_per_s": round((end[2] - begin[2]) / between),
            "behind_events": sent_then - end[1], "seconds": round(took, 1)}


def _counts(job: Any) -> tuple[float, int, int]:
    """(when the status row was written, events in the state, cells written)."""
    status = job.status()
    if status is None or status["run"] != job.run:
        return time.time(), 0, 0
    return status["written_at"] / 1e6, status["counters"].get(EVENTS_ACCEPTED, 0), status["counters"].get(CELLS_WRITTEN, 0)
