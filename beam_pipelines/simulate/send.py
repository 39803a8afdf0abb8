"""Sends a LiveWorld's events at the pace of the wall clock, by several connections, and counts what became of them."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from beam_pipelines.progress import Stage
from beam_pipelines.simulate.columns import EventColumns
from beam_pipelines.simulate.live import LiveWorld
from beam_pipelines.simulate.targets import Outcome, Target
from beam_pipelines.simulate.world import World

TICK_S = 0.05
DRAIN_S = 10.0
"""How long what is under way may take after the end, before it counts as unsent."""


@dataclass(frozen=True)
class Pace:
    """How fast: events per second, for so many seconds (None: until stopped), events per request, requests at once."""

    rate: float
    seconds: float | None = None
    batch: int = 100
    connections: int = 4


@dataclass
class LiveReport:
    """What a live run sent.

    Attributes:
      sent: events whose time came; accepted, rejected, unsent (given up on at the end): what became of them.
      reasons: of the rejected ones, with how many there were.
      copies, late: of the sent ones those that were sent a second time, or a minute or more after they happened.
      retries: requests that were put off or not answered.
      rate: accepted events per second. p50_ms, p99_ms, max_ms: of the requests that were answered.
      behind_s: how far sending fell behind at most.
    """

    sent: int = 0
    accepted: int = 0
    rejected: int = 0
    unsent: int = 0
    copies: int = 0
    late: int = 0
    retries: int = 0
    requests: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    behind_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


class _Tally:
    """Outcomes of all connections so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcome, self._seconds = Outcome(), [float("nan")]

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            total = self._outcome
            total.accepted += outcome.accepted
            total.rejected += outcome.rejected
            total.retries += outcome.retries
            total.reasons += outcome.reasons
            self._seconds.append(outcome.seconds)

    def fill(self, report: LiveReport) -> LiveReport:
        with self._lock:
            total, taken = self._outcome, np.array(self._seconds)
        taken = taken[~np.isnan(taken)] * 1000
        report.accepted, report.rejected, report.retries = total.accepted, total.rejected, total.retries
        report.requests, report.reasons = len(taken), dict(total.reasons.most_common())
        if len(taken):
            report.p50_ms, report.p99_ms, report.max_ms = (float(f"{np.percentile(taken, q):.3g}") for q in (50, 99, 100))
        report.rate = total.accepted / max(report.seconds, 1e-9)
        return report


def run(world: World, target: Target, pace: Pace, stop: threading.Event, quiet: bool = False) -> LiveReport:
    """Sends until the time is over or ``stop`` is set (Ctrl-C does), then waits for what is under way."""
    live, columns = LiveWorld(world, pace.rate, time.time_ns() // 1000), EventColumns(world)
    live.due(time.time_ns() // 1000)  # what happened while it was being drawn is nobody's event
    waiting: queue.Queue[pa.Table | None] = queue.Queue(maxsize=4 * pace.connections)
    tally, report, given_up = _Tally(), LiveReport(), threading.Event()
    threads = [threading.Thread(target=_work, args=(target, waiting, tally, given_up), name=f"send-{n}", daemon=True)
               for n in range(pace.connections)]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    offset = time.time_ns() // 1000 - int(started * 1e6)
    with Stage("live events", total=pace.seconds, quiet=quiet) as stage:
        try:
            _pump(live, columns, pace, stop, waiting, report, offset, started, tally, stage)
        except KeyboardInterrupt:
            stop.set()
        report.seconds = time.monotonic() - started
        _finish(threads, waiting, tally, given_up)
    tally.fill(report)
    report.unsent = report.sent - report.accepted - report.rejected
    return report


def _pump(live: LiveWorld, columns: EventColumns, pace: Pace, stop: threading.Event, waiting: queue.Queue[pa.Table | None],
          report: LiveReport, offset: int, started: float, tally: _Tally, stage: Stage) -> None:
    """Draws what is due, every TICK_S, and hands it to the connections."""
    end = None if pace.seconds is None else started + pace.seconds
    told = started
    while not stop.is_set():
        now = time.monotonic() if end is None else min(time.monotonic(), end)
        rows, copies = live.due(offset + int(now * 1e6))
        if len(rows):
            table = columns.table(rows, copies)
            report.sent += len(rows)
            report.copies += int(copies.sum())
            report.late += int((rows.lag >= 60_000_000).sum())
            for at in range(0, len(rows), pace.batch):
                _hand_over(table.slice(at, pace.batch), waiting, stop, end)
        report.behind_s = max(report.behind_s, time.monotonic() - now - TICK_S)
        if now - told >= 1:
            report.seconds = now - started
            tally.fill(report)
            stage.advance(now - told, f"{report.rate:,.0f}/s  accepted {report.accepted:,}  rejected {report.rejected:,}  "
                                      f"retries {report.retries:,}  p99 {report.p99_ms or 0:.0f} ms")
            told = now
        if end is not None and now >= end:
            return
        stop.wait(max(0.0, now + TICK_S - time.monotonic()))


def _hand_over(table: pa.Table, waiting: queue.Queue[pa.Table | None], stop: threading.Event, end: float | None) -> None:
    """Waits for room, until DRAIN_S after the end: a slow collector slows the sending down, nothing piles up. Where there is
    room it goes, also when the end has come since it was drawn."""
    while True:
        try:
            waiting.put(table, timeout=0.2)
            return
        except queue.Full:
            if stop.is_set() or (end is not None and time.monotonic() >= end + DRAIN_S):
                return


def _work(target: Target, waiting: queue.Queue[pa.Table | None], tally: _Tally, given_up: threading.Event) -> None:
    send = target.channel(given_up)
    while (table := waiting.get()) is not None:
        try:
            tally.add(send(table))
        except Exception as error:  # one bad batch must not silence a connection
            tally.add(Outcome(rejected=len(table), reasons=Counter({f"{type(error).__name__}: {error}"[:200]: len(table)})))


def _finish(threads: list[threading.Thread], waiting: queue.Queue[pa.Table | None], tally: _Tally,
            given_up: threading.Event) -> None:
    deadline = time.monotonic() + DRAIN_S
    for _ in threads:
        while True:
            try:
                waiting.put(None, timeout=0.2)
                break
            except queue.Full:
                if time.monotonic() > deadline:
                    given_up.set()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    given_up.set()
    for thread in threads:
        thread.join(TICK_S + 1.0)
