"""A server process is found again, ended with everything it started, and never outlives whom it was started for."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beam_pipelines.errors import UserError
from beam_pipelines.services import kafka, process
from beam_pipelines.services.ports import claim, free_port

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# A child in a session of its own, and one that its parent leaves behind.
FAMILY = [sys.executable, "-c", f"""
import subprocess, time
subprocess.Popen({SLEEP!r}, start_new_session=True)
subprocess.Popen({SLEEP!r})
time.sleep(600)
"""]


def gone(pids):
    return process.poll(lambda: all(process.ticks(pid) is None for pid in pids), 10)


def test_stop_ends_children_that_detached(tmp_path):
    run = process.start(tmp_path, "family", FAMILY)
    assert process.poll(lambda: len(run.members()) == 3, 10)
    members = run.members()
    run.stop()
    assert gone(members) and not run.pid_file.exists()


def test_children_of_a_dead_leader_are_still_found(tmp_path):
    run = process.start(tmp_path, "family", FAMILY)
    assert process.poll(lambda: len(run.members()) == 3, 10)
    members = run.members()
    os.kill(run.pid, signal.SIGKILL)
    assert process.poll(lambda: not run.alive, 10)
    assert len(run.members()) == 2
    process.find(tmp_path, "family").stop()
    assert gone(members)


def test_one_that_ignores_sigterm_is_killed(tmp_path):
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
    run = process.start(tmp_path, "deaf", [sys.executable, "-c", deaf])
    assert process.poll(lambda: "up" in run.tail(), 10)
    started = time.monotonic()
    run.stop(grace=0.5)
    assert not run.alive and 0.4 < time.monotonic() - started < 8


def test_another_command_finds_it_by_its_pid_file(tmp_path):
    run = process.start(tmp_path, "sleeper", SLEEP, ports={"web": 1234})
    known = process.find(tmp_path, "sleeper")
    assert known == run and known.alive and known.ports == {"web": 1234}
    run.kill()
    assert not known.alive and known.pid_file.exists()
    assert process.find(tmp_path, "nobody") is None


def test_a_later_process_of_the_same_pid_is_not_ours(tmp_path):
    run = process.start(tmp_path, "sleeper", SLEEP)
    try:
        stale = process.Process("sleeper", tmp_path, run.pid, "another", run.started_at, run.ticks - 1)
        assert not stale.alive
        stale.stop(0.1)
        assert run.alive
    finally:
        run.kill()


def test_one_that_ends_at_its_start_shows_its_last_lines(tmp_path):
    run = process.start(tmp_path, "broken", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    with pytest.raises(UserError, match=r"(?s)the thing ended at its start.*broken\.log.*no such thing"):
        run.wait_ready(lambda: False, 10, "the thing")


def test_one_that_never_answers_is_said_to(tmp_path):
    run = process.start(tmp_path, "mute", SLEEP)
    try:
        with pytest.raises(UserError, match="does not answer after 0 s"):
            run.wait_ready(lambda: False, 0.3, "the thing")
    finally:
        run.kill()


def test_no_such_program(tmp_path):
    with pytest.raises(UserError, match="no program /no/such/java"):
        process.start(tmp_path, "java", ["/no/such/java"])


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_it_goes_with_its_parent_however_that_ends(tmp_path, end):
    script = (f"import os, sys, time, pathlib\nfrom beam_pipelines.services import process\n"
              f"run = process.start(pathlib.Path({str(tmp_path)!r}), 'family', {FAMILY!r}, parent=os.getpid())\n"
              f"process.poll(lambda: len(run.members()) == 3, 10)\n"
              f"os.kill(os.getpid(), 9) if {end!r} == 'kill' else sys.exit(0)")
    subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    run = process.find(tmp_path, "family")
    assert process.poll(lambda: not run.members(), 10)


def test_a_taken_port_names_the_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} for Kafka is taken .* --port-kafka PORT"):
            claim(port, "Kafka", "--port-kafka")
    assert claim(0, "Kafka", "--port-kafka") > 0
    free = free_port()
    assert claim(free, "Kafka", "--port-kafka") == free


def test_a_cluster_id_is_never_taken_for_an_option():
    names = [kafka._cluster_id(Path(f"/data/{number}/kafka.properties")) for number in range(500)]
    assert len(set(names)) == 500 and {len(name) for name in names} == {22}
    assert not any(name.startswith("-") for name in names)
