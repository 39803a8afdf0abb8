"""The daily run: a DAG of steps, each in a process of its own, recorded in a manifest, skipped when it is done already.

A step's process has clean peaks of memory and gives all of it back. It dies with the run, however the run dies, and the
run's lock is free once both are dead. Whatever moment that is, the next run goes on from the last recorded step.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beam_pipelines import crashpoints, manifest
from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.sweep import sweep
from beam_pipelines.jobs import store_gc
from beam_pipelines.jobs.steps import FEATURE_STEP, STEPS, Context, Step, active_version, step_named
from beam_pipelines.jobs.store_gc import GcReport
from beam_pipelines.options import Config
from schemas.workspace import Workspace
from serving.stores.base import StoreError

_PR_SET_PDEATHSIG = 1
_LOG = logging.getLogger("beamrec.daily")


class StepFailed(RuntimeError):  # noqa: N818 - reads as what it is
    """A step died or raised; what it had recorded before stays, and the next run goes on from there."""


@dataclass(frozen=True)
class StepResult:
    """What became of a step: ``done`` or ``skipped``, and why; seconds and peak memory are those of the run that did it."""

    step: str
    title: str
    state: str
    why: str
    seconds: float
    peak_rss_mib: float
    outputs: dict[str, Any]


@dataclass(frozen=True)
class DailyReport:
    """A whole run. ``version`` is what the store serves afterwards; ``store_gc`` what was deleted from it, None where the run
    stopped before that or the store could not be looked through."""

    run_id: str
    as_of: str
    version: str | None
    seconds: float
    steps: list[StepResult] = field(default_factory=list)
    store_gc: GcReport | None = None


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
      from_step: do this step and all after it, whatever is recorded.
      to_step: stop after this step.
      force: do every step.
      deadline: seconds from the start by which the features must be there, None for no limit.
      isolate: each step in a process of its own.
    """

    from_step: str | None = None
    to_step: str | None = None
    force: bool = False
    deadline: float | None = None
    isolate: bool = True


def run(config: Config, as_of: int, options: RunOptions | None = None,
        on_step: Callable[[StepResult], None] | None = None) -> DailyReport:
    """Does what is not done yet for a midnight, and publishes.

    Args:
      as_of: midnight, microseconds.
      on_step: called after each step.

    Raises:
      UserError: nothing to work on, or another run of the workspace goes on.
      KeptPrevious: features missed their deadline or a check failed: what was served is still served.
      StepFailed: a step died.
    """
    options = options or RunOptions()
    started = time.monotonic()
    run_id = manifest.new_run_id(as_of)
    context = Context(config, as_of, run_id)
    names = [s.name for s in STEPS]
    for name in (options.from_step, options.to_step):
        if name is not None and name not in names:
            raise UserError(f"no step {name!r}; one of: {', '.join(names)}")
    lake = context.lake()
    if not any(d < as_of for d in lake.days("events")):
        raise UserError(f"no events before {_date(as_of)} in {config.lake}: 'beamrec simulate' or 'beamrec import' first")
    last = names.index(options.to_step) + 1 if options.to_step else len(names)
    again = names.index(options.from_step) if options.from_step else 0 if options.force else len(names)
    results: list[StepResult] = []
    with manifest.locked(config.workspace, run_id) as lock, _logged(config.workspace, as_of, run_id, "run"):
        _LOG.info("started")
        for position, step in enumerate(STEPS[:last]):
            limit = options.deadline - (time.monotonic() - started) if options.deadline and step.name == FEATURE_STEP else None
            result = _one(step, context, lake, position >= again, lock, limit, options)
            results.append(result)
            context = Context(config, as_of, run_id, {**context.outputs, step.name: result.outputs})
            _LOG.info("%s %s: %s", step.name, result.state, result.why)
            if on_step is not None:
                on_step(result)
        _sweep(lake)
        deleted = _collect(config) if last == len(STEPS) else None
        active = active_version(config)
        _LOG.info("finished, serving %s", active.champion if active else None)
    return DailyReport(run_id, _date(as_of), active.champion if active else None, time.monotonic() - started, results,
                       deleted)


def _sweep(lake: Lake) -> None:
    """Tidies the lake; whatever goes wrong with that is no reason to fail a run that is done."""
    try:
        swept = sweep(lake)
    except OSError as error:
        _LOG.warning("the lake was not swept: %s", error)
        return
    if swept.busy:
        _LOG.info("the lake was not swept: a writer holds it")
    elif swept.files:
        _LOG.info("swept %d files that no snapshot knows, %.1f MiB", swept.files, swept.bytes / 2**20)


def _collect(config: Config) -> GcReport | None:
    """Tidies the store; as with the lake, no reason to fail."""
    try:
        report = store_gc.run(config, apply=True)
    except (StoreError, OSError) as error:
        _LOG.warning("the store was not tidied: %s", error)
        return None
    _LOG.info("deleted from the store: %d stream cells, %d versions", sum(report.stream_cells.values()), len(report.versions))
    return report


def line(result: StepResult) -> str:
    """One line about a step, for people."""
    cost = f" in {result.seconds:.1f} s, {result.peak_rss_mib:.0f} MiB" if result.state == "done" else ""
    return f"{result.step:<10} {result.state}{cost} ({result.why})"


def _one(step: Step, context: Context, lake: Lake, forced: bool, lock: int, limit: float | None,
         options: RunOptions) -> StepResult:
    before = manifest.read(context.config.workspace, context.as_of, step.name)
    why = "asked for" if forced else _reason(step, context, lake, before)
    if why is None and before is not None:
        return StepResult(step.name, step.title, "skipped", f"done by run {before.run_id} from the same inputs",
                          before.seconds, before.peak_rss_mib, before.outputs)
    if limit is not None and limit <= 0:
        raise _kept(context, f"{step.title} missed the deadline")
    if options.isolate:
        _in_own_process(step, context, lock, limit)
    else:
        execute(step, context)
    done = manifest.read(context.config.workspace, context.as_of, step.name)
    if done is None or done.run_id != context.run_id:
        raise StepFailed(f"step {step.name} ended without a manifest; run it again to go on")
    return StepResult(step.name, step.title, "done", why or "first run", done.seconds, done.peak_rss_mib, done.outputs)


def _reason(step: Step, context: Context, lake: Lake, before: manifest.Manifest | None) -> str | None:
    """Why a step has to be done; None when it has not."""
    if before is None:
        return "not done yet"
    changed = before.differs(step.inputs(context, lake), step.settings(context))
    if changed:
        return f"changed: {', '.join(changed)}"
    missing = step.missing(context, lake, before.outputs)
    return f"{missing} is gone" if missing else None


def execute(step: Step, context: Context) -> None:
    """Does a step in this process and records it."""
    started = time.monotonic()
    lake = context.lake()
    # Before the work: should an input change meanwhile, the next run sees the difference and does the step again.
    inputs, settings = step.inputs(context, lake), step.settings(context)
    snapshots = {name: lake.snapshot_id(name) for name in step.tables}
    crashpoints.reached(f"{step.name}.start")
    outputs = step.run(context)
    crashpoints.reached(f"{step.name}.done")
    seconds = round(time.monotonic() - started, 3)
    manifest.write(context.config.workspace, manifest.Manifest(
        step.name, context.as_of, context.run_id, inputs, settings, snapshots, outputs, seconds, peak_rss_mib()))
    crashpoints.reached(f"{step.name}.recorded")


def _in_own_process(step: Step, context: Context, lock: int, limit: float | None) -> None:
    order = json.dumps({"step": step.name, "as_of": context.as_of, "run_id": context.run_id, "parent": os.getpid(),
                        "outputs": context.outputs, "config": _config_values(context.config)}, default=str)
    read_end, write_end = os.pipe()
    process = subprocess.Popen([sys.executable, "-m", "beam_pipelines.jobs.daily", str(write_end)], stdin=subprocess.PIPE,
                               pass_fds=(lock, write_end), process_group=0)  # Ctrl-C is for the command, which ends its step
    os.close(write_end)
    try:
        process.communicate(order.encode(), timeout=limit)
    except subprocess.TimeoutExpired:
        raise _kept(context, f"{step.title} missed the deadline") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        with os.fdopen(read_end, "rb") as pipe:
            said = pipe.read()
    if process.returncode == 0:
        return
    outcome = json.loads(said) if said else {}
    message = outcome.get("message", "")
    if outcome.get("kind") == "kept":
        raise _kept(context, message)
    if outcome.get("kind") == "user":
        raise UserError(f"{step.name}: {message}")
    death = f"was killed (signal {-process.returncode})" if process.returncode < 0 else message or f"exit {process.returncode}"
    raise StepFailed(f"step {step.name} {death}; run it again to go on from there")


def _kept(context: Context, reason: str) -> KeptPrevious:
    active = active_version(context.config)
    served = f"version {active.champion} is still served" if active else "nothing has been published yet"
    return KeptPrevious(f"{reason}; {served}")


def peak_rss_mib() -> float:
    """Highest resident memory of this process so far, MiB (0 where the system does not tell)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would include the parent's before exec
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024, 1)
    except (OSError, StopIteration):
        return 0.0


def _config_values(config: Config) -> dict[str, Any]:
    values = asdict(config)
    return {**values, "workspace": str(config.workspace.root), "lake": str(config.lake)}


def _config_of(values: dict[str, Any]) -> Config:
    root = values.pop("workspace")
    return Config.of(root, **{**values, "lake": Path(values["lake"]), "beam_args": tuple(values["beam_args"])})


@contextlib.contextmanager
def _logged(workspace: Workspace, as_of: int, run_id: str, step: str) -> Iterator[None]:
    """Sends this process's log, the libraries' warnings and what ends it to the run's file; every line names run and step."""
    folder = manifest.run_folder(workspace, as_of)
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "run.log")
    handler.setFormatter(logging.Formatter(f"%(asctime)s run={run_id} step={step} %(levelname)s %(name)s %(message)s"))
    for name in ("beamrec", "beam_pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    except (StepFailed, KeptPrevious, UserError) as error:
        _LOG.error("stopped: %s", error)
        raise
    except Exception:
        _LOG.exception("failed")
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _date(as_of: int) -> str:
    return f"{datetime.fromtimestamp(as_of // 1_000_000, UTC):%Y-%m-%d}"


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """The process of one step: its order on stdin, what went wrong as JSON on the descriptor it was given."""
    words = list(sys.argv[1:] if argv is None else argv)
    order = json.loads(sys.stdin.buffer.read())
    _die_with_parent(order["parent"])
    config = _config_of(order["config"])
    context = Context(config, order["as_of"], order["run_id"], order["outputs"])
    logged = _logged(config.workspace, context.as_of, context.run_id, order["step"])
    with os.fdopen(int(words[0]), "w") as answer, logged:
        try:
            execute(step_named(order["step"]), context)
        except KeptPrevious as outcome:
            json.dump({"kind": "kept", "message": str(outcome)}, answer)
            return 3
        except UserError as error:
            json.dump({"kind": "user", "message": str(error)}, answer)
            return 2
        except Exception as error:
            json.dump({"kind": "failed", "message": f"failed: {type(error).__name__}: {error}"}, answer)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
