"""One parity run: a disturbed log, the streaming job over it (killed, if asked), the lake writer, and every comparison."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow.parquet as pq

from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakewriter import write_lake
from beam_pipelines.jobs.stream_run import flags_of
from beam_pipelines.options import Config, StreamConfig
from beam_pipelines.parity.clicks import Arrivals, Disturbance, Form, disturb, produce, read_clicks
from beam_pipelines.parity.compare import (
    STREAM_GROUPS,
    Difference,
    batch_states,
    cells_of,
    compare_cells,
    compare_features,
    compare_suppressions,
    compare_table,
    final_of,
)
from beam_pipelines.parity.oracle import TABLES, Oracle
from beam_pipelines.progress import Stage
from schemas import metric_names
from serving.eventlog import open_log
from serving.stores import open_store
from transforms.accumulators.stream.item import ItemState
from transforms.accumulators.stream.user import UserState

NAME = "parity"
KILLS = ("worker", "taskmanager", "jobmanager")
PARTITIONS = 4
_FIRST_KILL = 0.05
_TOPIC = "parity-events"
_JOB_SECONDS = 1800.0
_BATCH_ROWS = 50_000


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      data: folder of the Globo clicks.
      runner: direct and prism read a local log; flink a Kafka broker, both started for the run.
      form: of the log's records.
      kills: kill -9 a Python worker, the TaskManager and the JobManager meanwhile (flink).
      limit: of clicks, None for all.
      how: the clicks are disturbed.
    """

    data: Path
    runner: Literal["direct", "prism", "flink"] = "direct"
    form: Form = "packed"
    kills: bool = False
    limit: int | None = None
    how: Disturbance = field(default_factory=Disturbance)


@dataclass
class Report:
    """What a run found: every figure of ``beamrec parity --json``."""

    runner: str
    form: str
    flags: dict[str, Any]
    clicks: int
    events: int
    malformed: int
    cells: int = 0
    differing_cells: int = 0
    lost: int = 0
    doubled: int = 0
    dead_letters: int = 0
    dead_letters_wrong: int = 0
    late: int = 0
    kills: list[str] = field(default_factory=list)
    job_s: float = 0.0
    published_sessions: int = 0
    published_equal: int = 0
    published_with_a_gap: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.differing_cells or self.lost or self.doubled or self.dead_letters_wrong)


def run(folder: Path, plan: Plan, quiet: bool = False) -> Report:
    """Runs a plan in a folder of its own, which is emptied first.

    Raises:
      UserError: the data or an installed part is missing, or the streaming job failed.
    """
    if plan.kills and plan.runner != "flink":
        raise UserError("--kills needs --runner flink: the others have no processes that recover")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with Stage("clicks", quiet=quiet):
        clicks = read_clicks(plan.data, plan.limit)
        arrivals = disturb(clicks, plan.how)
    with _servers(plan, folder) as (uri, cluster):
        with Stage("produce", total=len(arrivals.arrival), quiet=quiet) as stage:
            log = open_log(uri)
            produce(log, arrivals, plan.form, stage.advance)
            log.close()
        words = [sys.executable, "-m", "beam_pipelines.cli.main", "stream", "--log", uri, "--runner", plan.runner,
                 "--until-end", "--audit", str(folder / "audit"), "--workspace", str(folder), "--name", NAME,
                 "--services", str(folder / "services"), "--json", "--quiet"]
        flags = flags_of(StreamConfig(Config.of(folder, runner=plan.runner), uri, name=NAME))
        report = Report(plan.runner, plan.form, flags, len(clicks), len(arrivals.arrival), int(arrivals.malformed.sum()))
        with Stage("stream", quiet=quiet) as stage:
            report.kills, status = _stream(words, folder, cluster if plan.kills else None, len(arrivals.arrival))
            report.late = sum(n for name, n in status.get("counters", {}).items() if name == metric_names.EVENTS_LATE)
        report.job_s = stage.seconds
        with Stage("lake", quiet=quiet):
            lake = Lake.open(folder / "lake")
            write_lake(lake, uri, until_end=True)
    with Stage("compare", quiet=quiet):
        _compare(folder, lake, clicks, arrivals, report)
    return report


@contextlib.contextmanager
def _servers(plan: Plan, folder: Path) -> Iterator[tuple[str, Any]]:
    """The log's URI and the Flink cluster, if there is one; servers live as long as the ``with``."""
    if plan.runner != "flink":
        yield f"dir:{folder / 'log'}?partitions={PARTITIONS}", None
        return
    from beam_pipelines.services import flink, kafka

    services = folder / "services"
    with kafka.running(services / "kafka") as broker, flink.running(services / "flink") as cluster:
        broker.create_topic(_TOPIC, PARTITIONS, retention_ms="-1")  # the clicks are older than any retention
        yield f"kafka://{broker.bootstrap}/{_TOPIC}", cluster


def _stream(words: list[str], folder: Path, cluster: Any, events: int) -> tuple[list[str], dict[str, Any]]:
    """Runs the streaming job to its end; with a cluster, kills its parts one by one and resumes what does not recover."""
    kills: list[str] = []
    checkpoints: dict[tuple[str, int], int] = {}
    until = time.monotonic() + _JOB_SECONDS
    job = _start(words, folder)
    try:
        while (code := job.poll()) is None:
            if time.monotonic() > until:
                raise UserError(f"the streaming job did not end within {_JOB_SECONDS:.0f} s; see {folder / 'stream.err'}")
            if cluster is not None and len(kills) < len(KILLS) and _may_kill(cluster, folder, events, checkpoints):
                part = KILLS[len(kills)]
                kills.append(part)
                if part == "jobmanager":
                    cluster.kill_jobmanager()
                    job.kill()
                    job.wait()
                    cluster.start_jobmanager()
                    job = _start([*words, "--resume"], folder)
                else:
                    _kill(cluster, part)
            time.sleep(0.1)
        if code != 0:
            raise UserError(f"the streaming job failed: {_tail(folder / 'stream.err')}")
        status: dict[str, Any] = json.loads((folder / "stream.out").read_text() or "{}")
        return kills, status
    finally:
        if job.poll() is None:
            job.send_signal(signal.SIGKILL)


def _start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "stream.out").open("wb") as out, (folder / "stream.err").open("ab") as err:
        return subprocess.Popen(words, stdout=out, stderr=err)


def _may_kill(cluster: Any, folder: Path, events: int, checkpoints: dict[tuple[str, int], int]) -> bool:
    """Whether the job runs, has counted some events, and has completed a checkpoint since it last began; ``checkpoints``
    remembers how many there were at the first sight of each of its lives."""
    from beam_pipelines.io.stream_status import read_status

    try:
        job = cluster.rest.find(f"beamrec-{NAME}")
        if job is None or not cluster.rest.running_tasks(job):
            return False
        done = cluster.rest.checkpoints(job)
        seen = checkpoints.setdefault((job, cluster.rest.restored(job)), done)
        store = open_store(f"sqlite:{folder / 'store.db'}", create=False)
    except (OSError, RuntimeError, UserError):
        return False
    status = read_status(store, NAME)
    store.close()
    counted = (status or {}).get("counters", {}).get(metric_names.EVENTS_READ, 0)
    return bool(done > seen and counted > _FIRST_KILL * events)


def _kill(cluster: Any, part: str) -> None:
    if part == "worker":
        cluster.kill_worker()
    else:
        cluster.kill_taskmanager()
        cluster.start_taskmanager()


def _tail(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"


def _compare(folder: Path, lake: Lake, clicks: pl.DataFrame, arrivals: Arrivals, report: Report) -> None:
    out = Difference()
    oracle = Oracle(clicks)
    batches = (batch for file in lake.files("events")
               for batch in pq.ParquetFile(file.path).iter_batches(batch_size=_BATCH_ROWS))
    users, items = batch_states(batches, 8)
    states: list[UserState | ItemState] = [*users, *items]
    batch_final, batch_cells = final_of(states), cells_of(states)
    for name in TABLES:
        truth = oracle.table(name)
        rows = pl.DataFrame(pl.from_arrow(lake.read(name)))
        compare_table(f"{name} of the stream and SQL", rows, truth, out)
        compare_table(f"{name} of the batch and SQL", batch_final[name], truth, out)
        if name == "stream_panes":
            report.lost, report.doubled = _lost_and_doubled(rows, truth)
    store = open_store(f"sqlite:{folder / 'store.db'}", create=False)
    for group in STREAM_GROUPS:
        stored = {row.split("#", 2)[2]: (cell.value, cell.timestamp) for row, cell in store.scan_features("stream", group)}
        compare_cells(f"{group} of the stream and the batch", stored, batch_cells.get(group, {}), out)
        compare_features(group, stored, oracle, out)
    compare_suppressions(store, oracle, out)
    store.close()
    stored_ids = lake.read("events", ["event_id"])["event_id"].to_pylist()
    missing = len(set(clicks["event_id"].to_list()) - set(stored_ids))
    report.lost += missing
    report.doubled += len(stored_ids) - (len(clicks) - missing)
    dead = lake.read("dead_letters")
    report.dead_letters = len(dead)
    positions = dead.select(["source", "partition", "offset", "index"]).group_by(["source", "partition", "offset", "index"])
    report.dead_letters_wrong = abs(len(positions.aggregate([])) - report.malformed) + abs(len(dead) - report.malformed)
    report.cells, report.differing_cells, report.examples = out.cells, out.differing, out.examples
    report.published_sessions, report.published_equal, gaps = oracle.sessions_published()
    report.published_with_a_gap = int((gaps >= 1800).sum())


def _lost_and_doubled(rows: pl.DataFrame, truth: pl.DataFrame) -> tuple[int, int]:
    """Events of panes that the stream does not have, and those it has too often."""
    ours = rows.select("user_id", pl.col("start").dt.epoch("us"), ours="count_click")
    both = truth.select("user_id", "start", "count_click").join(ours, on=["user_id", "start"], how="full", coalesce=True)
    both = both.fill_null(0)
    less = (both["count_click"] - both["ours"]).to_numpy()
    return int(less[less > 0].sum()), int(-less[less < 0].sum())
