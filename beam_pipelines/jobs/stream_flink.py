"""The streaming job on Flink: started anew or from a checkpoint, found while it runs, drained, and what failed it."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from apache_beam.runners.runner import PipelineState

from beam_pipelines.errors import UserError
from beam_pipelines.jobs.stream_run import BUNDLE_MS, Resume, Running, flags_of, job_name, new_run, status_of, submit
from beam_pipelines.options import StreamConfig
from beam_pipelines.services import flink
from beam_pipelines.services.flink_rest import ENDED, OnFlink, Rest, newest_checkpoint
from schemas.workspace import Workspace, write_atomically
from transforms.beam.stream.state import LAYOUT

_REWRITTEN_S = 600.0
"""A run that lived for so long has written all again: a pane closes every 5 minutes, for buckets without events too."""
_RETRIES = 10
"""Of a job with an end: who waits for it is told that it failed. One without end goes on for ever."""
_STATES = {"CANCELED": PipelineState.CANCELLED, "FAILED": PipelineState.FAILED, "FINISHED": PipelineState.DONE}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What a checkpoint can only be resumed with: it is in the state's keys or layout."""

    log: str
    readers: int
    user_buckets: int
    item_buckets: int
    layout: int = LAYOUT

    @classmethod
    def of(cls, config: StreamConfig) -> Shape:
        """The shape of a configuration."""
        return cls(config.log, config.readers, config.user_buckets, config.item_buckets)


@dataclass
class Record:
    """What a workspace knows of a job that has run: where its checkpoints are and what they fit.

    Attributes:
      shape: of the runs so far.
      jobs: Flink's ids of them, oldest first.
      savepoint: the folder that the last drain wrote.
      rewriting: since when (seconds since 1970) a run writes again all that its checkpoint held; 0 for never.
      run: of the status rows of the last one.
      flags: of the last one, as ``stream --print-flags`` tells, and its store.
    """

    shape: dict[str, Any]
    jobs: list[str] = field(default_factory=list)
    savepoint: str | None = None
    rewriting: float = 0.0
    run: str = ""
    flags: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def path(workspace: Workspace, name: str) -> Path:
        """Its file."""
        return workspace.root / "streams" / f"{name}.json"

    @classmethod
    def read(cls, workspace: Workspace, name: str) -> Record | None:
        """The record of a job; None when it never ran."""
        try:
            return cls(**json.loads(cls.path(workspace, name).read_text()))
        except FileNotFoundError:
            return None

    def write(self, workspace: Workspace, name: str) -> None:
        """Keeps it."""
        write_atomically(self.path(workspace, name), json.dumps(asdict(self)).encode())


def cluster_of(services: Path) -> flink.Cluster:
    """The Flink cluster that runs from a services folder; raises UserError without one."""
    cluster = flink.Cluster.found(services / "flink")
    if cluster is None or not cluster.healthy():
        raise UserError("no Flink cluster runs here: beamrec services up flink")
    return cluster


def found_on_flink(config: StreamConfig, services: Path | None = None) -> OnFlink | None:
    """How Flink says that a job is; None where it is not on Flink, or the cluster does not answer."""
    space = config.common.workspace
    cluster = flink.Cluster.found((services or space.root / "services") / "flink")
    known = Record.read(space, config.name)
    return cluster.rest.on_flink(known.jobs[-1]) if cluster is not None and known is not None and known.jobs else None


def running_on(cluster: flink.Cluster, name: str) -> str | None:
    """Id of the job of a name that Flink has and that has not ended; None without one."""
    job = cluster.rest.find(job_name(name))
    return None if job is None or cluster.rest.state(job) in ENDED else str(job)


def start(config: StreamConfig, resume: Resume, services: Path, job_endpoint: str | None, checkpoints: Path | None,
          checkpoint_s: float) -> Running:
    """Submits the job, or finds it where it runs; for the arguments and what is raised see ``stream_run.launched``."""
    space, name = config.common.workspace, job_name(config.name)
    cluster = cluster_of(services)
    shape, known = asdict(Shape.of(config)), Record.read(space, config.name)
    flags = {**flags_of(config, checkpoint_s), "store": config.common.store}
    if (lives := running_on(cluster, config.name)) is not None:
        if resume == "if possible" and known is not None and known.run:
            return _living(config, cluster, lives, known, {**flags, **shape})
        raise UserError(f"{config.name} already runs as Flink job {lives}: --drain stops it with a savepoint, --status tells "
                        "how it is, another --name is another job")
    point = resumable(config, known, resume, checkpoints or cluster.checkpoint_dir) if resume else None
    if point is not None and known is not None:
        _log.info("resuming from %s", point)
        cut_short = (point / "_metadata").stat().st_mtime < known.rewriting + _REWRITTEN_S
        if not config.rewrite and (cut_short or status_of(config) is None):
            _log.warning("the store has nothing of %s, or not all: what the checkpoint holds is written again", config.name)
            config = replace(config, rewrite=True)
    options = cluster.pipeline_options(name, checkpoint_ms=round(checkpoint_s * 1000), savepoint=point,
                                       retries=_RETRIES if config.until_end else None)
    options.append(f"--max_bundle_time_mills={BUNDLE_MS}")
    if job_endpoint:
        options.append(f"--job_endpoint={job_endpoint}")
    record = Record(shape, rewriting=time.time() if config.rewrite else 0.0, run=new_run(), flags=flags)
    if point is not None and known is not None:  # what this run goes on from the next does too, until there is a checkpoint
        record.jobs, record.savepoint = [*known.jobs], known.savepoint
    record.write(space, config.name)  # before it is submitted: who is interrupted here can drain it
    before = set(cluster.rest.jobs())
    try:
        running = submit(config, options, record.run)
        job = _new_job(cluster, name, before, running)
    except Exception:
        if known is not None:
            known.write(space, config.name)
        else:
            Record.path(space, config.name).unlink()
        raise
    record.jobs += [job] if job else []
    record.write(space, config.name)
    return replace(running, flink_job=job, rest=cluster.rest)


@dataclass(frozen=True)
class _Result:
    """What Beam gives who submits a job, of one that another process has submitted."""

    rest: Rest
    job: str

    @property
    def state(self) -> str:
        return str(_STATES.get(self.rest.state(self.job), PipelineState.RUNNING))

    def wait_until_finish(self) -> None:
        """Raises RuntimeError when it has failed."""
        if self.state == PipelineState.FAILED:
            failure = self.rest.last_failure(self.job)
            raise RuntimeError(failure.reason if failure is not None else "Flink does not say why")


def _living(config: StreamConfig, cluster: flink.Cluster, job: str, known: Record, asked: dict[str, Any]) -> Running:
    """The job where it runs: a supervisor that starts its command again finds it so, after the command alone was killed."""
    differs = [f"{key} {value!r}, asked {asked.get(key)!r}" for key, value in {**known.flags, **known.shape}.items()
               if asked.get(key) != value]
    if differs:
        raise UserError(f"{config.name} already runs as Flink job {job}, with other flags ({'; '.join(differs)}): --drain "
                        "stops it with a savepoint, from which --resume goes on")
    _log.warning("%s runs already as Flink job %s, and is followed", config.name, job)
    if job not in known.jobs:  # who submitted it was killed before it knew
        known.jobs.append(job)
        known.write(config.common.workspace, config.name)
    failed = cluster.rest.last_failure(job)
    return Running(config, _Result(cluster.rest, job), known.run, job, cluster.rest, failed.at if failed is not None else 0.0)


def resumable(config: StreamConfig, known: Record | None, resume: Resume, folder: Path) -> Path | None:
    """The newest complete checkpoint or savepoint of a job; None: it is to start anew.

    Raises:
      UserError: there is none, or it is of another shape.
    """
    anew, shape = resume == "if possible", asdict(Shape.of(config))
    differs = [key for key in shape if known is not None and shape[key] != known.shape.get(key)]
    if known is None:
        trouble = f"nothing to resume: no job {config.name} has run from this workspace"
    elif differs:
        trouble = "the checkpoints cannot be resumed: " + "; ".join(
            f"{key} was {known.shape.get(key)!r}, now it is {shape[key]!r}" for key in differs)
        anew = anew and differs == ["layout"]
        trouble += "" if anew else ". Run it as it was, or start anew (without --resume), which reads the log again"
    else:
        found = [p for p in (newest_checkpoint(folder, job) for job in known.jobs) if p is not None]
        found += [Path(known.savepoint)] if known.savepoint and (Path(known.savepoint) / "_metadata").exists() else []
        if found:
            return max(found, key=lambda path: (path / "_metadata").stat().st_mtime_ns)
        trouble = f"no complete checkpoint of {config.name} under {folder}" + ("" if anew else "; start anew, without --resume")
    if not anew:
        raise UserError(trouble)
    _log.warning("%s; starts anew, the log is read again", trouble)
    return None


def _new_job(cluster: flink.Cluster, name: str, before: set[str], running: Running, seconds: float = 120.0) -> str | None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not running.ended:
        job = cluster.rest.find(name)
        if job is not None and job not in before:
            return str(job)
        time.sleep(0.2)
    return None


def drain(config: StreamConfig, services: Path | None = None) -> Path:
    """Stops the job on Flink with a savepoint, from which --resume goes on; returns the savepoint's folder.

    Raises:
      UserError: no such job runs.
    """
    space = config.common.workspace
    cluster = cluster_of(services or space.root / "services")
    record, job = Record.read(space, config.name), running_on(cluster, config.name)
    if record is None or job is None or cluster.rest.state(job) != "RUNNING":
        raise UserError(f"no job {config.name} of this workspace runs on Flink")
    folder: Path = cluster.rest.savepoint(job, cluster.checkpoint_dir / "savepoints", stop=True)
    record.savepoint = str(folder)
    record.jobs += [] if job in record.jobs else [job]
    record.write(space, config.name)
    return folder
