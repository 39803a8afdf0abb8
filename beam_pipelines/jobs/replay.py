"""Replay: the streaming job over exact offsets of its log, in a folder of its own, so that nothing in production changes.

A replay's folder, WORKSPACE/replays/NAME, is a workspace: store.db, audit, checkpoints' records, and replay.json, the manifest
that says what was read and what came of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beam_pipelines.errors import UserError
from beam_pipelines.jobs.stream_flink import Record, cluster_of, running_on
from beam_pipelines.jobs.stream_run import launched, status_of
from beam_pipelines.options import Config, StreamConfig, runner_of
from schemas.features import GROUPS
from schemas.workspace import Workspace, write_atomically
from serving.eventlog import EventLog, LogError, open_log
from serving.stores import open_store

STREAM_GROUPS = tuple(g.name for g in GROUPS if g.source == "stream")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_RESERVED = ("live", "list", "drop")
_ALIVE_S = 60.0
_MILLI = 1000


@dataclass(frozen=True)
class Replay:
    """The manifest of a replay.

    Attributes:
      name: of the replay, its job and its folder.
      log: URI; start_at, end_at: what was asked for, times of the log's records (microseconds).
      first, last: the offsets that are read, by partition: from first to before last.
      lateness_s, watermark_delay_s: as of the streaming job.
      cut: partitions that begin after start_at because retention deleted what was before.
      state: planned, running or done.
      runner, run, beamrec: who did it: Beam's runner, the run in the status row, version of the package.
      seconds: that it took.
      counters: of the job.
      cells: stream cells by group; newest: the latest event time in them (microseconds, of a whole millisecond).
    """

    name: str
    log: str
    start_at: int
    end_at: int
    first: dict[int, int]
    last: dict[int, int]
    lateness_s: int = 3600
    watermark_delay_s: float = 10.0
    cut: list[int] = field(default_factory=list)
    state: str = "planned"
    runner: str = ""
    run: str = ""
    beamrec: str = field(default_factory=lambda: version("beamrec"))
    seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)
    cells: dict[str, int] = field(default_factory=dict)
    newest: int | None = None

    @property
    def records(self) -> int:
        """Offsets that are read."""
        return sum(self.last[p] - self.first[p] for p in self.first)

    @property
    def until(self) -> int:
        """The time as of which its values are whole: of its end, or of its newest event where the log holds older ones."""
        return self.end_at if self.newest is None else min(self.end_at, self.newest + _MILLI - 1)

    @property
    def from_the_beginning(self) -> bool:
        """Whether nothing of the log lies before it."""
        return not any(self.first.values())

    @staticmethod
    def read(space: Workspace, name: str) -> Replay | None:
        """The manifest of a replay; None when there is none.

        Raises:
          UserError: it cannot be read.
        """
        path = folder(space, name) / "replay.json"
        try:
            values = json.loads(path.read_text())
            for key in ("first", "last"):
                values[key] = {int(p): int(offset) for p, offset in values[key].items()}
            return Replay(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is no manifest of a replay ({error}); beamrec replay drop {name}") from error

    def write(self, space: Workspace) -> None:
        """Keeps it."""
        write_atomically(folder(space, self.name) / "replay.json", json.dumps(asdict(self), indent=1).encode())


def folder(space: Workspace, name: str) -> Path:
    """Where a replay has everything; raises UserError for what is no name."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise UserError(f"{name!r} is no name of a replay: 1 to 63 of a-z, 0-9, _ and -, and none of {', '.join(_RESERVED)}")
    return space.root / "replays" / name


def store_uri(space: Workspace, name: str) -> str:
    """The store that a replay writes to."""
    return f"sqlite:{Workspace(folder(space, name)).store}"


def plan(config: Config, name: str, log: str, start_at: int, end_at: int | None = None, lateness_s: int = 3600,
         watermark_delay_s: float = 10.0) -> Replay:
    """What a replay reads; one of that name that was planned before keeps its offsets, so that it gives the same cells.

    Args:
      config: of production: the workspace that gets the replay, and the store that a live job of this name might write to.
      name: of the replay.
      log: URI.
      start_at, end_at: records of the log from then, to before then (microseconds); end_at None: now, or as it was planned.
      lateness_s, watermark_delay_s: as of the streaming job.

    Raises:
      UserError: the name is in use, the times hold nothing, or what was planned is not in the log any more.
      LogError: the log cannot be read.
    """
    space, now = config.workspace, time.time_ns() // 1000
    before = Replay.read(space, name)
    if end_at is not None and end_at > now:
        raise UserError("--to lies in the future: what will be in the log is not known yet")
    if start_at >= (end_at or now):
        raise UserError("--from must lie before --to")
    _no_live_job(config, name)
    opened = open_log(log)
    try:
        partitions = range(opened.partitions())
        if before is not None:
            _same(before, opened.uri, start_at, end_at, lateness_s, watermark_delay_s)
            for p, first in before.first.items():
                if p in partitions and first < before.last[p] and opened.earliest(p) > first:
                    raise UserError(f"partition {p} now begins at offset {opened.earliest(p)}, replay {name} began at {first}: "
                                    "retention deleted the rest. Take another --group")
            return before
        begin = {p: opened.offset_at(p, start_at) for p in partitions}
        end = {p: max(begin[p], opened.offset_at(p, end_at or now)) for p in partitions}
        cut = [p for p in partitions if 0 < opened.earliest(p) == begin[p]]
        uri = opened.uri
    finally:
        opened.close()
    found = Replay(name, uri, start_at, end_at or now, begin, end, lateness_s, watermark_delay_s, cut)
    if not found.records:
        raise UserError(f"{log.partition('?')[0]} holds no record between --from and --to")
    return found


def _same(before: Replay, uri: str, start_at: int, end_at: int | None, lateness_s: int, watermark_delay_s: float) -> None:
    asked = {"--log": uri, "--from": start_at, "--to": end_at or before.end_at, "--lateness": lateness_s,
             "--watermark-delay": watermark_delay_s}
    was = {"--log": before.log, "--from": before.start_at, "--to": before.end_at, "--lateness": before.lateness_s,
           "--watermark-delay": before.watermark_delay_s}
    if differs := [flag for flag in asked if asked[flag] != was[flag]]:
        raise UserError(f"replay {before.name} was planned with another {', '.join(differs)}; take another --group, or "
                        f"beamrec replay drop {before.name}")


def _no_live_job(config: Config, name: str) -> None:
    """Raises UserError when a streaming job of this name lives in production."""
    status = status_of(StreamConfig(config, "", name))
    if status is not None and not status["ended"] and time.time() - status["written_at"] / 1e6 < _ALIVE_S:
        raise UserError(f"{name} is in use: a streaming job of that name writes to {config.store}. Take another --group")


@contextlib.contextmanager
def alone(space: Workspace, name: str) -> Iterator[None]:
    """Holds a replay for one process; the lock is free once that has died.

    Raises:
      UserError: another process holds it.
    """
    path = space.root / "replays" / f".{name}.lock"
    folder(space, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{name} is in use: another process works on that replay") from None
        yield


def perform(config: Config, found: Replay, services: Path | None = None, readers: int = 2,
            tell: Callable[[dict[str, Any]], None] | None = None) -> Replay:
    """Runs a planned replay from its first offset to its last, whatever an earlier run left; returns its manifest.

    Args:
      config: of production, with the runner to take.
      found: from ``plan``.
      services: folder of ``beamrec services`` (default: that of the workspace).
      readers: sources that share the log's partitions.
      tell: called about once a second with the job's status row.

    Raises:
      UserError: the name is in use, or the job failed.
    """
    space, name = config.workspace, found.name
    services, began = services or space.root / "services", time.monotonic()
    runner = runner_of(config.runner)
    with alone(space, name):
        _no_flink_job(runner, services, name)
        home = folder(space, name)
        found = replace(found, state="running", runner=runner, beamrec=version("beamrec"), cells={}, newest=None)
        found.write(space)
        _empty(home)
        job = StreamConfig(
            Config.of(home, runner=runner, beam_args=config.beam_args, quiet=config.quiet), found.log, name,
            start=tuple(sorted(found.first.items())), stop=tuple(sorted(found.last.items())), until_end=True,
            lateness_s=found.lateness_s, watermark_delay_s=found.watermark_delay_s, readers=readers, audit=home / "audit",
            idle_s=None)
        with launched(job, services=services) as running:
            try:
                state = running.wait(tell)
            except BaseException:  # interrupted, or failed: on Flink the job would go on without us
                if running.cancel is not None:
                    with contextlib.suppress(UserError, OSError):
                        running.cancel()
                raise
            status = running.status()
        if status is None or not status["ended"]:
            raise UserError(f"the job of replay {name} ended as {state} before it had read everything; run it again")
        cells, newest = _count(job.common.store)
        found = replace(found, state="done", run=status["run"], counters=dict(sorted(status["counters"].items())), cells=cells,
                        newest=newest, seconds=round(time.monotonic() - began, 1))
        found.write(space)
    return found


def _empty(home: Path) -> None:
    """Removes all but the manifest: what a killed run left would stay where the next one writes nothing."""
    for path in home.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "replay.json":
            path.unlink()


def _no_flink_job(runner: str, services: Path, name: str) -> None:
    """Raises UserError when Flink runs a job of this name: one whose command was killed runs on."""
    if runner == "flink" and (job := running_on(cluster_of(services), name)) is not None:
        raise UserError(f"{name} is in use: Flink job {job} runs; if it is of a replay that was killed: "
                        f"beamrec replay drop {name}")


def _count(store: str) -> tuple[dict[str, int], int | None]:
    """Cells by group and the newest time of any."""
    opened, cells, newest = open_store(store, create=False), dict[str, int](), -1
    try:
        for group in STREAM_GROUPS:
            cells[group] = 0
            for _, cell in opened.scan_features("stream", group):
                cells[group] += 1
                newest = max(newest, cell.timestamp)
    finally:
        opened.close()
    return cells, newest if newest >= 0 else None


def lost_meanwhile(found: Replay) -> list[int]:
    """Partitions of which retention has by now deleted what the replay began with: it may have missed records."""
    opened: EventLog | None = None
    try:
        opened = open_log(found.log)
        return [p for p, first in found.first.items() if first < found.last[p] and opened.earliest(p) > first]
    except LogError:
        return []
    finally:
        if opened is not None:
            opened.close()


def replays(space: Workspace) -> list[Replay]:
    """Every replay of a workspace, by name."""
    names = sorted(path.parent.name for path in (space.root / "replays").glob("*/replay.json"))
    return [found for name in names if (found := Replay.read(space, name)) is not None]


def drop(space: Workspace, name: str, services: Path | None = None) -> bool:
    """Deletes a replay with its store, and ends its job on Flink if that still runs; False when there is none.

    Raises:
      UserError: another process works on it.
    """
    home = folder(space, name)
    with alone(space, name):
        if not home.exists():
            return False
        record: Record | None = Record.read(Workspace(home), name)
        if record is not None:
            with contextlib.suppress(UserError, OSError):  # no cluster, or one that has forgotten the job
                cluster = cluster_of(services or space.root / "services")
                job = record.jobs[-1] if record.jobs else running_on(cluster, name)  # killed while it was submitted
                if job is not None:
                    cluster.rest.cancel(job)
        shutil.rmtree(home)
    return True


def summary(found: Replay) -> Mapping[str, Any]:
    """A manifest for printing as JSON."""
    return {**asdict(found), "records": found.records, "until": found.until}
