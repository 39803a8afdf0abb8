"""The plan of a load: by hand for round numbers, and what must hold for any."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.capacity import HOURS, Load, Prices, Rates, Sizes, distinct, overridden, plan
from beam_pipelines.cli.main import main

LOADS = st.builds(Load, users=st.integers(100, 10**9), items=st.integers(10, 10**8), events_per_second=st.floats(1, 1e6),
                  daily_users=st.integers(10, 10**8), requests_per_second=st.floats(0.1, 1e6),
                  utilisation=st.floats(0.1, 1), surfaces=st.integers(1, 5))


def need(found, part):
    return next(n for n in found.needs if n.part == part)


def test_round_numbers_by_hand():
    load = Load(users=1000, items=100, events_per_second=1200, daily_users=500, requests_per_second=300, utilisation=0.5,
                peak_factor=4, log_days=1, dimensions=10)
    rates = Rates(collect_requests=600, collect_events=10_000, stream_events=100, api_requests=60, partition_events=400)
    found = plan(load, rates, Sizes(log_event=100, lake_event=10), Prices(core_hour=1, disk_gb=10))
    assert need(found, "collector").amount == 4  # 1200 / 600 / .5
    assert need(found, "collector").usd_per_month == 4 * HOURS
    assert need(found, "stream").amount == 24
    assert need(found, "API").amount == 10
    day = 1200 / 4 * 86_400
    assert need(found, "event log, disk").amount == pytest.approx(day * 100 * 3 / 1e9)
    assert need(found, "lake").amount == pytest.approx(day * 10 * 400 / 1e9)
    assert found.settings["log partitions"] == 3 and found.settings["min.insync.replicas"] == 2
    assert need(found, "item index, memory").amount == pytest.approx(2 * 100 * (40 + Sizes().bundle_item) / 1e9)
    assert not found.one_machine and "cores" in found.why


@given(LOADS)
def test_any_load_has_a_plan_and_ten_times_the_load_needs_no_less(load):
    found = plan(load)
    assert all(n.amount > 0 and math.isfinite(n.usd_per_month) for n in found.needs)
    assert found.usd_per_month == pytest.approx(sum(n.usd_per_month for n in found.needs))
    for name in ("--user-buckets", "--item-buckets", "--buckets (batch)"):
        assert math.log2(found.settings[name]).is_integer()
    more = plan(Load(**{**vars(load), "events_per_second": load.events_per_second * 10}))
    assert all(m.amount >= n.amount for m, n in zip(more.needs, found.needs, strict=True))


@given(st.floats(1, 1e6), st.floats(1, 1e6))
def test_distinct_lies_between_nothing_and_either(draws, kinds):
    assert 0 < distinct(draws, kinds) <= min(draws, kinds) * (1 + 1e-9)


def test_overrides_name_what_there_is():
    assert overridden(Rates(), ["stream_events=5"]).stream_events == 5
    with pytest.raises(ValueError, match="stream_events"):
        overridden(Rates(), ["stream=5"])
    for wrong in ("stream_events=fast", "stream_events=0", "stream_events=inf", "stream_events"):
        with pytest.raises(ValueError):
            overridden(Rates(), [wrong])


def test_the_command_prints_a_table_or_json(capsys):
    size = ["--users", "50e6", "--items", "1e7", "--events-per-second", "218000"]
    assert main(["capacity", *size, "--json", "--price", "core_hour=1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["load"]["users"] == 50_000_000 and said["prices"]["core_hour"] == 1 and not said["one_machine"]
    assert {"collector", "event log", "stream", "store", "API"} <= {n["part"] for n in said["needs"]}
    assert main(["capacity", *size, "--formulas", "--defaults"]) == 0
    text = capsys.readouterr().out
    assert "Bigtable nodes" in text and "= events/s / stream_events / 0.6" in text and "core_hour=0.05" in text


@pytest.mark.parametrize("wrong", [["--users", "0"], ["--daily-users", "1e9"], ["--utilisation", "2"], ["--rate", "x=1"],
                                   ["--events-per-second", "nan"]])
def test_what_cannot_be_is_said_in_one_line(wrong, capsys):
    size = ["--users", "1000", "--items", "10", "--events-per-second", "5"]
    assert main(["capacity", *size, *wrong]) == 2
    assert capsys.readouterr().err.startswith("beamrec capacity: ")
