"""``beamrec stream``: its flags, its one-line errors, its reports and metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stream_job_world import config, fill

from beam_pipelines.cli.main import main
from beam_pipelines.cli.stream import start_of
from beam_pipelines.errors import UserError
from beam_pipelines.jobs.stream_metrics import Ends, exposition
from beam_pipelines.jobs.stream_run import flags_of
from beam_pipelines.options import Config, StreamConfig, parse_seconds
from beam_pipelines.services.flink_rest import Failure, OnFlink, reason_of
from beam_pipelines.stream_status import report, told
from schemas.keys import STATUS, status_key
from schemas.metric_names import EVENTS_ACCEPTED, EVENTS_READ, FRESHNESS, FRESHNESS_MS, by_segment, rejected
from serving.eventlog import open_log
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stream", "--help"])
    assert "Beam runner (default: prism)" in " ".join(capsys.readouterr().out.split())
    assert [parse_seconds(t) for t in ("10", "10s", "5m", "1.5h", "1d")] == [10, 10, 300, 5400, 86400]
    offsets = tmp_path / "offsets.json"
    offsets.write_text(json.dumps({"1": 7, "0": 5}))
    assert start_of(str(offsets)) == ((0, 5), (1, 7))
    assert start_of("2026-02-01") == 1_769_904_000_000_000
    for bad in ("soon", "5 weeks"):
        with pytest.raises(UserError, match="no length of time"):
            parse_seconds(bad)


@pytest.mark.parametrize(("flags", "says"), [
    ([], "--log is needed"),
    (["--log", "dir:nowhere/at-all"], "nowhere/at-all"),
    (["--log", "ftp://x"], "is not a log"),
    (["--status"], "no job stream has written"),
    (["--log", "dir:x", "--user-buckets", "12"], "--user-buckets is a power of two"),
    (["--log", "dir:x", "--lateness", "1.5s"], "whole seconds"),
    (["--log", "dir:x", "--detach", "--metrics-port", "0"], "leave --detach or --metrics-port away"),
    (["--drain"], "no Flink cluster runs here"),
])
def test_wrong_input_is_one_clear_line(flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", *flags, "--workspace", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1


def test_direct_needs_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_log(f"dir:{tmp_path}/log?partitions=1").close()
    assert main(["stream", "--log", f"dir:{tmp_path}/log", "--runner", "direct", "--workspace", str(tmp_path)]) == 2
    assert "--until-end" in capsys.readouterr().err


def test_the_command_reports_and_status_prints_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(f"dir:{tmp_path}/log")
    flags = ["--log", f"dir:{tmp_path}/log", "--runner", "DirectRunner", "--until-end", "--workspace", str(tmp_path), "--quiet"]
    assert main(["stream", *flags, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert main(["stream", "--status", "--workspace", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == done
    assert done["counters"][EVENTS_ACCEPTED] == 3_000


def test_metrics_are_prometheus_text() -> None:
    counters = {EVENTS_READ: 3, by_segment(EVENTS_READ, 'vi"ew', "phone"): 3, rejected("bad_pack"): 1}
    text = exposition({"written_at": 5_000_000, "watermark": 4_000_000, "ended": False, "run": "r", "counters": counters},
                      7.0)
    assert 'beamrec_events_read_by_segment_total{event_type="vi\\"ew",device="phone"} 3' in text
    read = {by_segment(EVENTS_READ, "view", f"Mozilla/{version} 100%2F"): 1 for version in ("4.0", "5.0")}
    agents = exposition({"written_at": 0, "watermark": None, "ended": False, "run": "r", "counters": read}, 7.0)
    for version in ("4.0", "5.0"):
        assert f'event_type="view",device="Mozilla/{version} 100%2F"}} 1\n' in agents
    assert 'beamrec_events_rejected_by_reason_total{reason="bad_pack"} 1' in text
    assert "beamrec_status_age_seconds 2\n" in text and "beamrec_watermark_delay_seconds 3\n" in text
    assert "beamrec_events_late_total 0\n" in text
    assert exposition(None, 0.0) == "\n"
    assert "beamrec_job_restarts_total 2\n" in exposition(None, 0.0, restarts=2)


def test_lag_is_what_the_log_holds_beyond_what_was_read_even_of_a_job_that_hangs(tmp_path: Path) -> None:
    row = {"written_at": 5_000_000, "watermark": None, "ended": False, "run": "r", "counters": {},
           "offsets": {"0": [1, 0], "1": [0, 4]}, "state_bytes": {"user": 5_000}}
    log = open_log(f"dir:{tmp_path}/log?partitions=2")
    log.append(0, [b"a", b"b", b"c"], 1)
    ends = Ends(log.uri)
    assert ends.known() == {0: 3, 1: 0}
    text = exposition(row, 7.0, {0: 3})
    assert 'beamrec_lag{partition="0"} 2\n' in text and 'beamrec_lag{partition="1"} 4\n' in text
    assert 'beamrec_state_bytes{entity="user"} 5000\n' in text
    ends.close()
    assert Ends(f"dir:{tmp_path}/nowhere").known() == {}


def test_freshness_is_a_histogram_for_prometheus_and_quantiles_for_people(tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    done = config(tmp_path, "dir:x", "prism")
    counters = {by_segment(FRESHNESS, "user_stored", bound): n for bound, n in (("0.75", 50), ("1", 49), ("+Inf", 1))}
    row = {"written_at": 5_000_000, "watermark": 4_000_000, "ended": False, "run": "r",
           "counters": {EVENTS_READ: 100, **counters, by_segment(FRESHNESS_MS, "user_stored"): 75_000}}
    lines = exposition(row, 7.0).splitlines()
    assert lines.count("# TYPE beamrec_freshness_seconds histogram") == 1
    for bound, n in (("0.5", 0), ("0.75", 50), ("1", 99), ("60", 99), ("+Inf", 100)):
        assert f'beamrec_freshness_seconds_bucket{{stage="user_stored",le="{bound}"}} {n}' in lines
    assert 'beamrec_freshness_seconds_count{stage="user_stored"} 100' in lines
    assert 'beamrec_freshness_seconds_sum{stage="user_stored"} 75' in lines
    store = open_store(done.common.store)
    store.write_features([FeatureWrite(status_key(done.name), "stream", STATUS, Cell(json.dumps(row).encode(), 5_000_000))])
    store.close()
    assert main(["stream", "--status", "--workspace", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "user_stored   0.8 s after an event was accepted (p50), 1.0 s (p99)" in told and "freshness_seconds" not in told


def test_the_flags_that_decide_are_printed_and_are_the_defaults(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["stream", "--print-flags", "--runner", "flink", "--workspace", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == flags_of(StreamConfig(Config.of(tmp_path, runner="flink"), ""))
    assert printed["bundle_ms"] == 200 and printed["flush_s"] == 0.5


PYTHON_FAILED = """java.lang.RuntimeException: Error received from SDK harness: Traceback (most recent call last):
  File "worker.py", line 5, in process
    raise StoreError("the disk is full")
serving.stores.base.StoreError: the disk is full

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "worker.py", line 9, in process
    raise WriteError("no cell was written")
beam_pipelines.WriteError: no cell was written [while running 'Users cells/Write']

\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient$ResponseStreamObserver.onNext(FnApiControlClient.java:180)
Caused by: java.lang.RuntimeException: Error received from SDK harness
\t... 6 more
"""
JAVA_FAILED = """java.lang.RuntimeException: Exception occurred while setting the current key context.
\tat org.apache.flink.streaming.api.operators.StreamOperatorStateHandler.setCurrentKey(StreamOperatorStateHandler.java:373)
Caused by: java.util.concurrent.TimeoutException: Heartbeat of TaskManager timed out.
\tat org.apache.flink.runtime.jobmaster.JobMaster.lambda(JobMaster.java:1)
"""


@pytest.mark.parametrize(("stacktrace", "reason"), [
    (PYTHON_FAILED, "beam_pipelines.WriteError: no cell was written [while running 'Users cells/Write']"),
    (JAVA_FAILED, "java.util.concurrent.TimeoutException: Heartbeat of TaskManager timed out."),
    ("java.lang.OutOfMemoryError\n\tat somewhere", "java.lang.OutOfMemoryError"),
    ("x" * 1_000, "x" * 300), ("", "no reason given"),
])
def test_why_a_job_failed_is_one_line_of_its_stack_trace(stacktrace: str, reason: str) -> None:
    assert reason_of(stacktrace) == reason


def test_status_tells_what_flink_knows() -> None:
    row = {"written_at": 5_000_000, "watermark": None, "ended": False, "run": "r", "counters": {}}
    on_flink = OnFlink("ab12", "RUNNING", 2, Failure(1_770_000_000.0, "StoreError: gone"))
    lines = report(row, on_flink).splitlines()
    assert "Flink         job ab12 is RUNNING, started again 2 times" in lines
    assert "last failure  2026-02-02 02:40:00: StoreError: gone" in lines
    assert told(row, on_flink)["flink"]["last_failure"] == {"at": 1_770_000_000.0, "reason": "StoreError: gone"}
    assert "flink" not in told(row)
    failing = OnFlink("ab12", "RESTARTING", 1, None)
    assert report({}, failing) == "Flink         job ab12 is RESTARTING, started again once\nwritten       nothing yet"
    assert told({}, failing) == {"flink": {"job": "ab12", "state": "RESTARTING", "restarts": 1, "last_failure": None}}
