"""Submitting the streaming job to a runner, going on from a checkpoint, draining it, and following it while it runs."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState

from beam_pipelines.errors import UserError
from beam_pipelines.io.stream_status import read_status
from beam_pipelines.jobs.stream import construct
from beam_pipelines.options import StreamConfig, runner_of
from beam_pipelines.services.flink_rest import newest_checkpoint
from schemas.workspace import Workspace, write_atomically
from serving.stores import StoreError, open_store
from transforms.beam.stream.state import LAYOUT

RUNNERS = ("prism", "flink", "direct")
CHECKPOINT_S = 10.0
"""Between checkpoints: each copies the whole state, and after a crash so much of the log is read again."""
BUNDLE_MS = 200
"""On Flink what a stage is given waits for the end of a bundle, whose age is looked at twice in this time: with Beam's 1000 an
event waits for seconds on its way through source, users and items."""
_REWRITTEN_S = 600.0
"""A run that lived for so long has written all again: a pane closes every 5 minutes, for buckets without events too."""
_RETRIES = 10
"""Of a job with an end: who waits for it is told that it failed. One without end goes on for ever."""
Resume = bool | Literal["if possible"]
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
    """

    shape: dict[str, Any]
    jobs: list[str] = field(default_factory=list)
    savepoint: str | None = None
    rewriting: float = 0.0

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


def flags_of(config: StreamConfig, checkpoint_s: float = CHECKPOINT_S) -> dict[str, Any]:
    """What decides a job's values, speed and freshness: flags of the command, and what it sets for Flink."""
    found = {name: getattr(config, name) for name in (
        "lateness_s", "watermark_delay_s", "idle_s", "flush_s", "readers", "user_buckets", "item_buckets", "store_wait_s")}
    if runner_of(config.common.runner) == "flink":
        found |= {"checkpoint_s": checkpoint_s, "bundle_ms": BUNDLE_MS}
    return {"runner": config.common.runner, **found, "groups": list(config.groups) if config.groups else "all",
            "beam": list(config.common.beam_args)}


@dataclass
class Running:
    """A submitted job. ``wait`` returns when it has ended, and raises what failed it."""

    config: StreamConfig
    result: Any
    run: str
    flink_job: str | None = None
    cancel: Callable[[], None] | None = None

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return bool(PipelineState.is_terminal(self.result.state))

    def status(self) -> dict[str, Any] | None:
        """The job's status row, None before the first; until this run has written one, its ``run`` is an earlier one."""
        return status_of(self.config)

    def wait(self, tell: Callable[[dict[str, Any]], None] | None = None, seconds: float | None = None) -> str:
        """Follows the job to its end, or for so long.

        Args:
          tell: called about once a second with the status row.
          seconds: None for ever.

        Returns:
          Beam's name of its state.

        Raises:
          UserError: the job failed.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while not self.ended and (until is None or time.monotonic() < until):
            time.sleep(0.5)
            status = self.status()
            if status is None or status["run"] != self.run:
                continue
            if tell is not None:
                tell(status)
            if status["ended"] and self.cancel is not None:  # Flink keeps a job for its checkpoints that has nothing left to do
                self.cancel()
                return str(PipelineState.DONE)
        if self.ended:
            try:
                self.result.wait_until_finish()
            except RuntimeError as error:
                raise UserError(f"the job failed: {error}") from error
        return str(self.result.state)


def status_of(config: StreamConfig) -> dict[str, Any] | None:
    """The status row of a job by the store; None when it never ran on it."""
    try:
        store = open_store(config.common.store, create=False)
    except StoreError:
        return None
    try:
        return read_status(store, config.name)
    finally:
        store.close()


def submit(config: StreamConfig, flags: list[str]) -> Running:
    """Builds the job and hands it to the runner that the flags name; direct runs it here, to its end.

    The store is made here: a worker that comes up while it is away must not make an empty one in its place.
    """
    open_store(config.common.store).close()
    options = PipelineOptions([*flags, *config.common.beam_args])
    pipeline = beam.Pipeline(runner=FnApiRunner() if config.is_direct else None, options=options)
    run = os.urandom(4).hex()
    construct(pipeline, config, run)
    return Running(config, pipeline.run(), run)


@contextlib.contextmanager
def launched(config: StreamConfig, resume: Resume = False, services: Path | None = None, job_endpoint: str | None = None,
             checkpoints: Path | None = None, checkpoint_s: float = CHECKPOINT_S) -> Iterator[Running]:
    """Submits the job to its runner; with Prism that lives as long as the ``with``, unless one runs already.

    Args:
      config: of the job.
      resume: go on from the newest complete checkpoint or savepoint (Flink); "if possible": start anew where there is none, or
        one of another layout of the state.
      services: folder of ``beamrec services`` (default: WORKSPACE/services).
      job_endpoint: HOST:PORT of a job server that is not one of ours.
      checkpoints: where Flink keeps checkpoints, when the cluster is not one of ours.
      checkpoint_s: between checkpoints.

    Raises:
      UserError: the runner is not there, the state cannot be resumed, or the job runs already (Flink).
    """
    space, runner = config.common.workspace, runner_of(config.common.runner)
    services = services or space.root / "services"
    name = job_name(config.name)
    if runner == "direct":
        if not config.until_end:
            raise UserError("--runner direct reads bounded input only: add --until-end, or take --runner prism")
        yield submit(config, [f"--job_name={name}"])
    elif runner == "prism":
        from beam_pipelines.services import prism

        if resume:
            raise UserError("Prism keeps no checkpoints: --resume needs --runner flink")
        found = prism.Prism.found(services / "prism")
        if found is not None and found.healthy():
            context: contextlib.AbstractContextManager[prism.Prism] = contextlib.nullcontext(found)
        else:
            prism.ensure(_log.warning)
            context = prism.running(space.root / "scratch" / f"prism-{config.name}")
        with context as server:
            flags = server.pipeline_options(name)
            if job_endpoint:
                flags = [f for f in flags if not f.startswith("--job_endpoint")] + [f"--job_endpoint={job_endpoint}"]
            yield submit(config, flags)
    elif runner == "flink":
        yield _on_flink(config, name, resume, services, job_endpoint, checkpoints, checkpoint_s)
    else:
        yield submit(config, [f"--runner={runner}", "--streaming", f"--job_name={name}",
                              *([f"--job_endpoint={job_endpoint}"] if job_endpoint else [])])


def cluster_of(services: Path) -> Any:
    """The Flink cluster that runs from a services folder; raises UserError without one."""
    from beam_pipelines.services import flink

    cluster = flink.Cluster.found(services / "flink")
    if cluster is None or not cluster.healthy():
        raise UserError("no Flink cluster runs here: beamrec services up flink")
    return cluster


def running_on(cluster: Any, name: str) -> str | None:
    """Id of the job of a name that Flink has and that has not ended; None without one."""
    from beam_pipelines.services.flink_rest import ENDED

    job = cluster.rest.find(job_name(name))
    return None if job is None or cluster.rest.state(job) in ENDED else str(job)


def job_name(name: str) -> str:
    """What a runner calls the job."""
    return f"beamrec-{name}"


def _on_flink(config: StreamConfig, name: str, resume: Resume, services: Path, job_endpoint: str | None,
              checkpoints: Path | None, checkpoint_s: float) -> Running:
    space = config.common.workspace
    cluster = cluster_of(services)
    if (lives := running_on(cluster, config.name)) is not None:
        raise UserError(f"{config.name} already runs as Flink job {lives}: --drain stops it with a savepoint, --status tells "
                        "how it is, another --name is another job")
    shape, known = asdict(Shape.of(config)), Record.read(space, config.name)
    point = resumable(config, known, resume, checkpoints or cluster.checkpoint_dir) if resume else None
    if point is not None and known is not None:
        _log.info("resuming from %s", point)
        cut_short = (point / "_metadata").stat().st_mtime < known.rewriting + _REWRITTEN_S
        if not config.rewrite and (cut_short or status_of(config) is None):
            _log.warning("the store has nothing of %s, or not all: what the checkpoint holds is written again", config.name)
            config = replace(config, rewrite=True)
    flags = cluster.pipeline_options(name, checkpoint_ms=round(checkpoint_s * 1000), savepoint=point,
                                     retries=_RETRIES if config.until_end else None)
    flags.append(f"--max_bundle_time_mills={BUNDLE_MS}")
    if job_endpoint:
        flags.append(f"--job_endpoint={job_endpoint}")
    record = Record(shape, rewriting=time.time() if config.rewrite else 0.0)
    if point is not None and known is not None:  # what this run goes on from the next does too, until there is a checkpoint
        record.jobs, record.savepoint = [*known.jobs], known.savepoint
    record.write(space, config.name)  # before it is submitted: who is interrupted here can drain it
    before = set(cluster.rest.jobs())
    try:
        running = submit(config, flags)
        running.flink_job = job = _new_job(cluster, name, before, running)
    except Exception:
        if known is not None:
            known.write(space, config.name)
        else:
            Record.path(space, config.name).unlink()
        raise
    if config.until_end and job is not None:
        running.cancel = functools.partial(cluster.rest.cancel, job)
    record.jobs += [job] if job else []
    record.write(space, config.name)
    return running


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


def _new_job(cluster: Any, name: str, before: set[str], running: Running, seconds: float = 120.0) -> str | None:
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
