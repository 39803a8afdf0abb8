"""Ctrl-C and SIGTERM while Beam runs: one line, exit code 130, and nothing that was started lives on."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from e2e.servers import need

CLI = [sys.executable, "-m", "beam_pipelines.cli.main"]
MARK = "BEAMREC_INTERRUPT_TEST"


def started_by(token):
    """Command lines of the living processes whose environment has the token."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={token}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def begun(tmp_path, words):
    """A command with its output in a file, leader of a group as in a terminal; and the token of its processes."""
    token = secrets.token_hex(8)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*CLI, *words, "--workspace", str(tmp_path / "w")], stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=said, process_group=0, env={**os.environ, MARK: token})
    return process, token


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.2)


def ended(process, token, tmp_path, number):
    """What the command had said once the signal has ended it."""
    try:
        os.killpg(process.pid, number)
        assert process.wait(60) == 130
        until = time.monotonic() + 10
        while started_by(token) and time.monotonic() < until:  # the guard sees to its own end
            time.sleep(0.1)
        assert started_by(token) == []
    finally:
        process.kill()
        process.wait()
    return (tmp_path / "said").read_text()


def test_a_streaming_job_on_prism_ends_in_one_line(tmp_path):
    need("prism")
    process, token = begun(tmp_path, ["stream", "--runner", "prism", "--log", f"dir:{tmp_path}/log?partitions=1",
                                      "--readers", "1", "--user-buckets", "2", "--item-buckets", "1"])

    def runs():
        told = subprocess.run([*CLI, "stream", "--status", "--json", "--workspace", str(tmp_path / "w")], capture_output=True)
        return told.returncode == 0 and json.loads(told.stdout)["written_at"] > 0

    wait_for(runs, process)
    assert ended(process, token, tmp_path, signal.SIGTERM) == "beamrec stream: interrupted; run it again to go on\n"


def test_the_stream_demo_takes_all_its_processes_along(tmp_path):
    need("prism")
    process, token = begun(tmp_path, ["demo", "--stream"])
    wait_for(lambda: "started:" in (tmp_path / "said").read_text(), process)
    assert len(started_by(token)) >= 4, "demo, Prism, collector, job"
    assert ended(process, token, tmp_path, signal.SIGINT).splitlines()[-1] == "beamrec demo: interrupted; run it again to go on"


def test_a_batch_job_ends_in_one_line(tmp_path):
    subprocess.run([*CLI, "simulate", "--users", "2000", "--items", "300", "--days", "20", "--workspace", str(tmp_path / "w")],
                   check=True, capture_output=True)
    process, token = begun(tmp_path, ["run"])
    wait_for(lambda: len(started_by(token)) > 1, process)
    time.sleep(4)  # into the first step's pipeline
    assert ended(process, token, tmp_path, signal.SIGINT) == "beamrec run: interrupted; run it again to go on\n"
