"""The daily run: what is skipped and why, what is done again, deadlines, locks, logs; and where the demo puts its data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from beam_pipelines import crashpoints, manifest
from beam_pipelines.cli.main import main
from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import daily, demo
from beam_pipelines.jobs.steps import MAX_SNAPSHOTS, STEPS, snapshot_days, step_named, table_fingerprint
from beam_pipelines.options import Config, parse_as_of
from beam_pipelines.simulate.world import WorldSpec
from beam_pipelines.simulate.write import simulate
from schemas.keys import USER, list_key, row_key
from schemas.workspace import DAY_MICROS
from serving.stores import open_store
from serving.stores.base import Active, Cell, FeatureWrite, ListWrite
from transforms import definitions

SPEC = WorldSpec(users=30, items=40, days=3, sessions=1.5, late=0.5)
START = SPEC.first
FEATURES = daily.RunOptions(to_step="features", isolate=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config.of(tmp_path / "workspace", quiet=True)
    simulate(made, SPEC)
    return made


def test_a_step_is_done_once_and_again_when_its_inputs_change(config: Config) -> None:
    as_of = config.workspace.now()
    first = daily.run(config, as_of, FEATURES)
    assert [s.state for s in first.steps] == ["done"] and first.steps[0].why == "not done yet"
    again = daily.run(config, as_of, FEATURES)
    assert [s.state for s in again.steps] == ["skipped"]
    assert first.run_id in again.steps[0].why and again.steps[0].outputs == json.loads(json.dumps(first.steps[0].outputs))

    record = manifest.read(config.workspace, as_of, "features")
    assert record is not None
    lake = Lake.open(config.lake)
    assert record.snapshots == {"events": lake.snapshot_id("events")}
    assert record.inputs == {"events": table_fingerprint(lake, "events", end=as_of)}
    assert record.seconds > 0 and record.peak_rss_mib > 50
    assert record.beamrec == version("beamrec")

    forced = daily.run(config, as_of, replace(FEATURES, force=True))
    assert forced.steps[0].why == "asked for"
    config.workspace.root.joinpath("store.db").unlink()
    assert "store is gone" in daily.run(config, as_of, FEATURES).steps[0].why
    simulate(config, replace(SPEC, days=SPEC.days + 1))  # its last day also brings late events of the day before
    assert daily.run(config, as_of, FEATURES).steps[0].why == "changed: events"
    log = (manifest.run_folder(config.workspace, as_of) / "run.log").read_text().splitlines()
    assert log and all(" run=2026" in line and " step=" in line for line in log)


def test_a_whole_run_tidies_the_store_at_its_end(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    now = config.workspace.now()
    monkeypatch.setattr(daily, "STEPS", ())
    assert daily.run(config, now).store_gc is None  # nothing was ever stored
    versions = [f"2026010{n}T000000-aaaaaaaa" for n in range(1, 8)]
    config.workspace.lists.mkdir(parents=True)
    for name, surface in zip(versions, ["homepage"] * 5 + ["email"] * 2, strict=True):
        config.workspace.list_manifest(name).write_text(json.dumps({"report": {"surface": surface}}))
    with closing(open_store(config.store)) as store:
        store.write_lists([ListWrite(list_key("u", "homepage"), name, Cell(b"x", now)) for name in versions])
        for row, age in (("old", 3), ("new", 1)):
            store.write_features([FeatureWrite(row_key(USER, row), "stream", "user_panes", Cell(b"x", now - age * DAY_MICROS))])
        store.flip("homepage", None, Active(versions[1]))
        found = daily.run(config, now).store_gc
        assert found is not None and found.applied and found.stream_cells == {"user_panes": 1}
        assert found.versions == {versions[0]: 1} and store.versions() == versions[1:]  # three of each surface stay
        assert list(store.read_features([row_key(USER, "new")], "stream", ["user_panes"])[0]) == ["user_panes"]
    assert "1 stream cells, 1 versions" in (manifest.run_folder(config.workspace, now) / "run.log").read_text()
    monkeypatch.undo()
    assert daily.run(config, now, FEATURES).store_gc is None


def test_a_missed_deadline_keeps_what_is_served(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeptPrevious, match="features missed the deadline; nothing has been published yet"):
        daily.run(config, config.workspace.now(), daily.RunOptions(deadline=0.2))
    assert main(["run", "--workspace", str(config.workspace.root), "--deadline", "0.2"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert manifest.read(config.workspace, config.workspace.now(), "features") is None


def test_a_step_that_dies_is_told_and_can_be_gone_on_with(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(crashpoints.VARIABLE, "features.start")
    with pytest.raises(daily.StepFailed, match=r"features was killed \(signal 9\)"):
        daily.run(config, config.workspace.now(), replace(FEATURES, isolate=True))
    log = (manifest.run_folder(config.workspace, config.workspace.now()) / "run.log").read_text().splitlines()
    assert "step=run ERROR" in log[-1] and "stopped: step features was killed (signal 9)" in log[-1]
    monkeypatch.delenv(crashpoints.VARIABLE)
    assert daily.run(config, config.workspace.now(), FEATURES).steps[0].state == "done"


def test_only_a_release_that_changes_values_repeats_a_step(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    as_of = config.workspace.now()
    daily.run(config, as_of, FEATURES)
    record = manifest.read(config.workspace, as_of, "features")
    assert record is not None
    manifest.write(config.workspace, replace(record, beamrec="0.0.1"))
    assert daily.run(config, as_of, FEATURES).steps[0].state == "skipped"
    monkeypatch.setattr(definitions, "FEATURES", "next")
    assert daily.run(config, as_of, FEATURES).steps[0].why == "changed: features definition"


def test_two_runs_of_a_workspace_do_not_meet(config: Config) -> None:
    going_on = pytest.raises(UserError, match="run run-one of this workspace is still going on")
    with manifest.locked(config.workspace, "run-one"), going_on:
        daily.run(config, config.workspace.now(), FEATURES)
    with manifest.locked(config.workspace, "run-two"):
        pass


def test_a_lock_dies_with_its_process(config: Config) -> None:
    code = ("import os, signal, sys; from beam_pipelines import manifest; from schemas.workspace import Workspace; "
            "from pathlib import Path\n"
            "with manifest.locked(Workspace(Path(sys.argv[1])), 'dead'): os.kill(os.getpid(), signal.SIGKILL)")
    died = subprocess.run([sys.executable, "-c", code, str(config.workspace.root)], check=False)
    assert died.returncode == -signal.SIGKILL
    with manifest.locked(config.workspace, "alive"):
        assert (config.workspace.runs / "run.lock").read_text() == "alive"


def test_a_broken_manifest_counts_as_none(config: Config) -> None:
    folder = manifest.run_folder(config.workspace, START)
    folder.mkdir(parents=True)
    for text in ("", "{", '{"step": "features"}', '{"unknown": 1}'):
        (folder / "features.json").write_text(text)
        assert manifest.read(config.workspace, START, "features") is None


def test_snapshot_days_are_few_and_stay_the_same_the_next_night() -> None:
    class Days(Lake):
        def __init__(self, count: int) -> None:
            self.count = count

        def days(self, name: str, snapshot_id: int | None = None) -> list[int]:
            return [START + d * DAY_MICROS for d in range(self.count)]

    for count in (1, 2, 5, 33, 34, 90, 400):
        as_of = START + count * DAY_MICROS
        today, tomorrow = snapshot_days(Days(count), as_of), snapshot_days(Days(count + 1), as_of + DAY_MICROS)
        assert len(today) <= MAX_SNAPSHOTS and all(START < d < as_of for d in today)
        assert len(today) >= min(count - 1, MAX_SNAPSHOTS // 2)
        assert len(set(tomorrow) - set(today)) <= 1


def test_as_of_is_a_midnight_not_after_the_clock(config: Config) -> None:
    assert parse_as_of(None, config.workspace) == START + 3 * DAY_MICROS
    assert parse_as_of("2026-01-02T13:00", config.workspace) == START + DAY_MICROS
    for text in ("tomorrow", "2026-02-01"):
        with pytest.raises(UserError, match="--as-of"):
            parse_as_of(text, config.workspace)


@pytest.mark.parametrize("flags", [["--from-step", "nothing"], ["--as-of", "soon"], ["--as-of", "2026-01-01"]])
def test_wrong_flags_are_one_clear_line(flags: list[str], config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--workspace", str(config.workspace.root), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_stops_before_publishing_says_so(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--workspace", str(config.workspace.root), "--to-step", "features", "--in-process", "--quiet"]
    assert main(words) == 0
    assert "as of 2026-01-04: nothing is published yet (" in capsys.readouterr().out


def test_an_empty_workspace_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--workspace", str(tmp_path)]) == 2
    assert "'beamrec simulate' or 'beamrec import' first" in capsys.readouterr().err


def test_deciding_to_skip_loads_neither_beam_nor_tensorflow() -> None:
    code = "import beam_pipelines.jobs.daily, sys; sys.exit(bool({'apache_beam', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0
    with pytest.raises(KeyError, match="features, train"):
        step_named("nothing")
    assert [s.name for s in STEPS] == ["features", "train", "index", "recommend", "publish"]


def test_what_a_demo_says_to_type_next_makes_its_page_live(config: Config) -> None:
    user = demo.UserExample("u 1", [], [])
    said = demo._commands([user], " --workspace w", config.workspace.root)
    log = f"--log dir:{config.workspace.root}/log --workspace w"
    assert any(command.split(" ", 1)[1] == f"serve {log}" for command in said)
    assert any(f"stream {log}" in command for command in said)
    assert any(command.startswith("http://127.0.0.1:8000/#/user/u%201 ") for command in said)


def test_a_demo_leaves_other_data_alone(config: Config, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match="no movielens or globo data"):
        demo.run(config, str(tmp_path), SPEC, on_workspace=told.append)
    assert told and "holds other data" in told[0] and not (tmp_path / f"workspace-{tmp_path.name}").exists()
    empty = replace(config, workspace=type(config.workspace)(tmp_path / "other"))
    with pytest.raises(UserError, match="does not exist"):
        demo.run(empty, str(tmp_path / "nowhere"), SPEC)
    assert not (tmp_path / "other").exists()
