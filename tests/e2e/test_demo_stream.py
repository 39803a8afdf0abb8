"""``beamrec demo --stream``: the stream's whole chain as processes, a visitor whose features change, nothing left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import need

from beam_pipelines.services import process
from schemas.workspace import Workspace

CLI = [sys.executable, "-m", "beam_pipelines.cli.main"]


def beamrec(*words):
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=400)


def left_behind(workspace):
    """Pids of processes that speak of the workspace in their command line, or live in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lives_there = os.readlink(path.parent / "cwd").startswith(str(workspace))
            if (lives_there or str(workspace).encode() in path.read_bytes()) and int(path.parent.name) != os.getpid():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    need("prism")
    root = tmp_path_factory.mktemp("demo") / "workspace"
    done = beamrec("demo", "--stream", "--json", "--rate", "50", "--workspace", str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    return root, json.loads(done.stdout), done.stderr


def test_each_step_of_the_visitor_is_readable_in_time(demo):
    _, report, _ = demo
    steps = {step["did"]: step for step in report["steps"]}
    assert len(steps) == len(report["steps"]) == 8 and all(step["good"] for step in report["steps"])
    assert (steps["clicks another one"]["before"], steps["clicks another one"]["after"]) == ("0", "1")
    assert steps["sends that click again"]["after"].startswith("1")
    assert steps["a click of 11 min ago is late"]["after"] == "2"
    suppressed = next(s for s in report["steps"] if s["feature"] == "the list")
    assert suppressed["after"] == "gone" and suppressed["seconds"] < 1
    assert report["lost"] == 0 and report["probes"] > 10 and 0 < report["freshness_p50_s"] <= report["freshness_p99_s"]


def test_all_that_was_accepted_is_counted(demo):
    _, report, err = demo
    live = report["live"]
    assert live["accepted"] == live["sent"] > 300 and live["rejected"] == live["unsent"] == 0
    visitor = sum(step["accepted"] for step in report["steps"])
    assert visitor == 6  # view, click and its copy, save, purchase, late click
    assert report["stored"] + report["duplicates"] == live["accepted"] + report["probed"] + visitor
    assert report["duplicates"] > 0 and report["late"] == 0 and report["refused"] == 1
    assert "history:" in err and "up after" in err


def test_it_leaves_a_workspace_to_go_on_with_and_no_process(demo):
    root, report, _ = demo
    assert process.poll(lambda: left_behind(root) == [], 10), left_behind(root)
    assert not Workspace(root).is_frozen
    words = ["show", "user", report["visitor"], "--json", "--workspace", str(root), "--stream", "demo"]
    shown = json.loads(beamrec(*words).stdout)
    assert shown["low_confidence"] and len(shown["history"]) == 3
    assert shown["features"]["count_purchase_1h"]["source"] == "stream"
    assert any(f"show user {report['visitor']} --watch" in command for command in report["commands"])


def test_a_killed_demo_leaves_no_process(tmp_path):
    need("prism")
    root = tmp_path / "workspace"
    with (tmp_path / "out").open("w") as out:
        running = subprocess.Popen([*CLI, "demo", "--stream", "--workspace", str(root)], stdout=out, stderr=out)
    try:
        assert process.poll(lambda: (root / "demo-stream" / "stream.json").exists(), 120), (tmp_path / "out").read_text()
        time.sleep(1)
    finally:
        running.kill()
        running.wait()
    assert process.poll(lambda: left_behind(root) == [], 15), left_behind(root)


def test_other_data_is_left_alone(tmp_path):
    root = tmp_path / "workspace"
    for name in ("workspace", "workspace-stream"):
        (tmp_path / name / "lake").mkdir(parents=True)
    done = beamrec("demo", "--stream", "--workspace", str(root))
    assert done.returncode == 2 and "--workspace DIR" in done.stderr and done.stderr.count("\n") == 1
