"""Submitting the streaming job to a runner and following it while it runs."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState

from beam_pipelines.errors import UserError
from beam_pipelines.io.stream_status import read_status
from beam_pipelines.jobs.stream import construct
from beam_pipelines.options import StreamConfig, runner_of
from beam_pipelines.services.flink_rest import OnFlink, Rest
from serving.stores import StoreError, open_store

RUNNERS = ("prism", "flink", "direct")
CHECKPOINT_S = 10.0
"""Between checkpoints: each copies the whole state, and after a crash so much of the log is read again."""
BUNDLE_MS = 200
"""On Flink what a stage is given waits for the end of a bundle, whose age is looked at twice in this time: with Beam's 1000 an
event waits for seconds on its way through source, users and items."""
_LOOK_S = 5.0
"""Between looks at what Flink says of failures: it keeps them."""
Resume = bool | Literal["if possible"]
_log = logging.getLogger(__name__)


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
    """A job on a runner. ``wait`` returns when it has ended, and raises what failed it.

    Attributes:
      config: of the job.
      result: Beam's, or what stands for it where another process submitted the job.
      run: the ``run`` of its status rows.
      flink_job: Flink's id of it; None on another runner.
      rest: what to ask of that job; None on another runner.
      told: when the failure was that was told of last, by Flink's clock; those before are not told.
    """

    config: StreamConfig
    result: Any
    run: str
    flink_job: str | None = None
    rest: Rest | None = None
    told: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return bool(PipelineState.is_terminal(self.result.state))

    def status(self) -> dict[str, Any] | None:
        """The job's status row, None before the first; until this run has written one, its ``run`` is an earlier one."""
        return status_of(self.config)

    @property
    def cancel(self) -> Callable[[], None] | None:
        """Ends a job on Flink that has an end; None where there is nothing to be done."""
        if self.rest is None or self.flink_job is None or not self.config.until_end:
            return None
        return functools.partial(self.rest.cancel, self.flink_job)

    def on_flink(self) -> OnFlink | None:
        """How Flink says that it is; None on another runner, and while Flink does not answer."""
        return None if self.rest is None or self.flink_job is None else self.rest.on_flink(self.flink_job)

    def wait(self, tell: Callable[[dict[str, Any]], None] | None = None, seconds: float | None = None) -> str:
        """Follows the job to its end, or for so long; warns of each failure that Flink restores it from.

        Args:
          tell: called about once a second with the status row.
          seconds: None for ever.

        Returns:
          Beam's name of its state.

        Raises:
          UserError: the job failed, or its runner does not answer.
        """
        try:
            return self._wait(tell, seconds)
        except grpc.RpcError as error:
            raise UserError(f"the runner of {self.config.name} does not answer any more ({error.code().name})") from error

    def _wait(self, tell: Callable[[dict[str, Any]], None] | None, seconds: float | None) -> str:
        until = None if seconds is None else time.monotonic() + seconds
        look = time.monotonic() + _LOOK_S
        while not self.ended and (until is None or time.monotonic() < until):
            time.sleep(0.5)
            if time.monotonic() >= look:
                look = time.monotonic() + _LOOK_S
                self._warn()
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

    def _warn(self) -> None:
        """Tells of the last failure if it is new. Flink starts a job again for ever, so it shows."""
        found = self.on_flink()
        failure = found.last_failure if found is not None else None
        if found is not None and failure is not None and failure.at > self.told:
            self.told = failure.at
            _log.warning("%s failed, Flink starts it again (%d times by now): %s", self.config.name, found.restarts,
                         failure.reason)


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


def new_run() -> str:
    """What tells a run of a job from its earlier ones."""
    return os.urandom(4).hex()


def submit(config: StreamConfig, flags: list[str], run: str | None = None) -> Running:
    """Builds the job and hands it to the runner that the flags name; direct runs it here, to its end.

    The store is made here: a worker that comes up while it is away must not make an empty one in its place.

    Args:
      config: of the job.
      flags: Beam's.
      run: what its status rows are to be told by (default: made here).
    """
    open_store(config.common.store).close()
    options = PipelineOptions([*flags, *config.common.beam_args])
    pipeline = beam.Pipeline(runner=FnApiRunner() if config.is_direct else None, options=options)
    run = run or new_run()
    construct(pipeline, config, run)
    return Running(config, pipeline.run(), run)


@contextlib.contextmanager
def launched(config: StreamConfig, resume: Resume = False, services: Path | None = None, job_endpoint: str | None = None,
             checkpoints: Path | None = None, checkpoint_s: float = CHECKPOINT_S) -> Iterator[Running]:
    """Submits the job to its runner; with Prism that lives as long as the ``with``, unless one runs already.

    Args:
      config: of the job.
      resume: go on from the newest complete checkpoint or savepoint (Flink); "if possible": follow the job where it runs
        already, start it anew where there is no checkpoint, or one of another layout of the state.
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
        from beam_pipelines.jobs import stream_flink

        yield stream_flink.start(config, resume, services, job_endpoint, checkpoints, checkpoint_s)
    else:
        yield submit(config, [f"--runner={runner}", "--streaming", f"--job_name={name}",
                              *([f"--job_endpoint={job_endpoint}"] if job_endpoint else [])])


def job_name(name: str) -> str:
    """What a runner calls the job."""
    return f"beamrec-{name}"
