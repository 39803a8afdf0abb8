"""``beamrec bench freshness``: the whole chain for a few seconds, and how its figures are made."""

import json
import subprocess
import sys

import numpy as np
import pytest
from servers import need

from benchmarks.freshness import quantiles
from benchmarks.freshness_load import EventTime
from benchmarks.freshness_memory import Series
from benchmarks.freshness_probes import Probe


def test_the_whole_chain_on_prism(tmp_path):
    need("prism")
    done = subprocess.run([sys.executable, "-m", "beam_pipelines.cli.main", "bench", "freshness", "--rate", "200", "--seconds",
                           "4", "--warm-up", "1", "--users", "500", "--work", str(tmp_path / "w"), "--json"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["lost"] == figures["refused"] == 0 < figures["probes"]
    assert 0 < figures["p50_s"] <= figures["p99_s"] <= figures["max_s"]
    assert 0 < figures["items_p50_s"] <= figures["items_max_s"]
    assert figures["accepted"] > 200
    for role in ("collector", "worker", "prism"):
        assert figures[f"{role}_rss_mib"]["max"] > 10
        assert figures["cores"][role] > 0


def test_event_time_runs_through_the_past_and_meets_the_wall_clock():
    now = EventTime(begin=1000.0)
    assert [now.at(t) for t in (1000.0, 1234.5)] == [1000.0, 1234.5]
    fast = EventTime(begin=1000.0, span=100.0, speed=10.0)
    assert fast.at(1010.0) - fast.at(1000.0) == pytest.approx(100.0)
    assert fast.at(1000.0) == pytest.approx(100.0)
    assert fast.at(1100.0) == pytest.approx(1100.0)
    assert fast.at(1200.0) == 1200.0


def test_growth_is_that_of_the_later_half():
    minutes = np.arange(0, 10, 0.1)
    for slope in (0.0, 3.0):
        values = np.where(minutes < 5, 100 * minutes, 500 + slope * (minutes - 5))
        series = Series((60 * minutes).tolist(), values.tolist())
        assert series.since(0.0)["growth_per_min"] == pytest.approx(slope, abs=0.01)
        assert series.since(0.0)["first"] == 0.0
    assert Series([0.0, 10.0, 20.0], [1.0, 6.0, 100.0]).between(0.0, 10.0) == 0.5
    assert Series().since(0.0) == {}


def test_quantiles_are_from_accepted_to_readable_and_leave_out_what_never_came():
    probes = [Probe(0, 10.0, {"u": 10.0 + wait}) for wait in (0.5, 1.0, 1.5)] + [Probe(0, 10.0, {})]
    assert quantiles(probes, "u") == {"p50_s": 1.0, "p90_s": 1.4, "p99_s": 1.49, "max_s": 1.5}
    assert quantiles(probes, "i")["p50_s"] is None
