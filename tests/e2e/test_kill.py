"""Killed by SIGKILL at any moment and run again, the daily run ends with exactly the rows of an undisturbed one.

One run is killed at one moment after the other, each time going on from what the kill before left, and compared with the
undisturbed one after every step. Both live at one path, one after the other, for Iceberg's metadata holds absolute paths. The
runs are children of one process that has Beam imported already.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beam_pipelines import crashpoints
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs.steps import STEPS
from beam_pipelines.options import Config
from beam_pipelines.simulate.world import WorldSpec
from beam_pipelines.simulate.write import simulate
from schemas.tables import TABLES

pytestmark = pytest.mark.slow
sys.path.insert(0, str(Path(__file__).parent))
PRELOAD = ["warm", "test_kill"]

# Moments at which each step is killed, in this order; a number kills after so many seconds.
MOMENTS: dict[str, list[str | float]] = {
    "features": ["features.start", 0.4, "partials.files", "partials.committed", 0.7, "states.committed", "user_snapshots.files",
                 "user_snapshots.committed", "item_snapshots.committed", "features.snapshots", "features.cells",
                 "features.done", "features.recorded"],
    "train": ["train.start", "model.written", "train.done"],
    "index": ["index.start", "index.done", "index.recorded"],
    "recommend": ["lists.chunk", "lists.written", "recommend.done"],
    "publish": ["publish.start", "publish.gated", "publish.flipped", "publish.done", "publish.recorded"],
}


def _command(words: list[str], crash: str, log: str) -> None:
    """In a forked child: one beamrec command, output to a file, killed where ``crash`` says."""
    from beam_pipelines.cli.main import main

    with Path(log).open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ[crashpoints.VARIABLE] = crash
    sys.exit(main(words))


class Runner:
    """Runs beamrec commands on one workspace, as children of a warm process."""

    def __init__(self, root: Path) -> None:
        self.root, self._log = root, root.parent / "output.log"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)

    def run(self, *flags: str, crash: str = "", after: float | None = None) -> int:
        """The exit code (-9: killed)."""
        words = ["run", "--workspace", str(self.root), "--in-process", "--quiet", *flags]
        child = self._context.Process(target=_command, args=(words, crash, str(self._log)))
        child.start()
        if after is not None:
            child.join(after)
            child.kill()
        child.join(120)
        assert child.exitcode is not None, "still running after two minutes"
        return child.exitcode

    def output(self) -> str:
        """What the commands printed."""
        return self._log.read_text()[-3000:] if self._log.exists() else ""


def state(root: Path) -> dict[str, Any]:
    """Every row of every lake table and of the store, and the names and contents of models."""
    config = Config.of(root)
    lake = Lake.open(config.lake)
    found: dict[str, Any] = {}
    for name in TABLES:
        rows = pl.DataFrame(pl.from_arrow(lake.read(name)))
        found[name] = sorted(json.dumps(row, default=repr) for row in rows.iter_rows())
    with contextlib.closing(sqlite3.connect(config.workspace.store)) as db:
        tables = [t for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        for table in tables:
            if table == "streamed":  # the name of a file, drawn for each store
                continue
            found[f"store.{table}"] = sorted(map(repr, db.execute(f"SELECT * FROM {table}")))
    for path in sorted(config.workspace.models.rglob("items.arrow")):
        found[str(path.relative_to(root))] = path.read_bytes()
    found["versions"] = sorted(p.name for p in config.workspace.lists.glob("*.json"))
    return found


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Names of what differs, with how many entries; empty when nothing does."""
    names = [n for n in wanted.keys() | found.keys() if found.get(n) != wanted.get(n)]
    return ", ".join(f"{n}: {len(found.get(n, ()))} instead of {len(wanted.get(n, ()))}" for n in sorted(names))


class Undisturbed:
    """The states after each step of a run that nothing disturbs; the workspace is then as it was before the first."""

    def __init__(self, folder: Path) -> None:
        self.runner, self.before = Runner(folder / "workspace"), folder / "before"
        self.after: dict[str, dict[str, Any]] = {}
        simulate(Config.of(self.runner.root, quiet=True), WorldSpec(users=40, items=220, days=4, sessions=1.5))
        shutil.copytree(self.runner.root, self.before)
        for step in STEPS:
            assert self.runner.run("--to-step", step.name) == 0, self.runner.output()
            self.after[step.name] = state(self.runner.root)
        self.restore()

    def restore(self) -> None:
        """The workspace with its events and nothing else."""
        shutil.rmtree(self.runner.root)
        shutil.copytree(self.before, self.runner.root)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("kill"))


def test_killed_at_any_moment_and_run_again(undisturbed: Undisturbed) -> None:
    runner = undisturbed.runner
    assert sum(map(len, MOMENTS.values())) >= 20 and list(MOMENTS) == [step.name for step in STEPS]
    for step, moments in MOMENTS.items():
        for moment in moments:
            if isinstance(moment, float):
                runner.run("--to-step", step, after=moment)
            else:
                assert runner.run("--to-step", step, crash=moment) == -signal.SIGKILL, (moment, runner.output())
        assert runner.run("--to-step", step) == 0, runner.output()
        wanted = undisturbed.after[step]
        assert all(wanted[name] for name in ("events", "partials", "states", "user_snapshots", "store.features_batch"))
        assert not difference(state(runner.root), wanted), step
    assert undisturbed.after["publish"]["store.active"] and undisturbed.after["publish"]["versions"]


def test_a_step_dies_with_its_run_and_the_lock_is_free(undisturbed: Undisturbed) -> None:
    undisturbed.restore()
    runner = undisturbed.runner
    words = [sys.executable, "-m", "beam_pipelines.cli.main", "run", "--workspace", str(runner.root), "--to-step", "features"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        children = _wait_for(lambda: _children(run.pid))
        second = subprocess.run(words, capture_output=True, text=True, check=False)
        assert second.returncode == 2 and "still going on" in second.stderr
        run.kill()
    assert _wait_for(lambda: not any(Path(f"/proc/{c}/cmdline").exists() and Path(f"/proc/{c}/cmdline").read_bytes()
                                     for c in children))
    assert runner.run("--to-step", "features") == 0, runner.output()
    assert not difference(state(runner.root), undisturbed.after["features"])


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _wait_for(what: Any, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")
