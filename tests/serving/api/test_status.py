"""What the server says of itself: metrics of all workers, and the status at a glance."""

import json
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from api_world import client_of, ids, publish
from hypothesis import given
from hypothesis import strategies as st

from schemas import metric_names
from schemas.keys import STATUS, status_key
from schemas.metric_names import FRESHNESS, by_segment
from serving.api.metrics import Shown, coverage_and_gini
from serving.api.peers import merge
from serving.api.status import Status
from serving.stores.base import Cell, FeatureWrite

NAMES = {value for name, value in vars(metric_names).items() if name.isupper() and isinstance(value, str)}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 10))
def test_gini_is_half_the_relative_mean_difference(shown, never):
    counts = np.array(shown + [0] * never, float)
    expected = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    coverage, gini = coverage_and_gini(shown, len(counts))
    assert coverage == pytest.approx(len(shown) / len(counts)) and gini == pytest.approx(expected)


def test_what_was_shown_is_forgotten_after_two_hours():
    clock = [0.0]
    shown = Shown(lambda: clock[0])
    shown.add(["a", "b"])
    clock[0] = 3700.0
    shown.add(["a"])
    assert shown.counts() == {"a": 2, "b": 1}
    clock[0] = 7500.0
    shown.add(["c"])
    assert shown.counts() == {"a": 1, "c": 1}


@pytest.mark.parametrize("versions", [1, 2, 6])
def test_items_of_a_bundle_are_counted_by_their_position(versions):
    clock, rng = [0.0], np.random.default_rng(1)
    shown, plain = Shown(lambda: clock[0]), Shown(lambda: clock[0])
    bundles = [SimpleNamespace(version=f"v{v}", manifest=SimpleNamespace(items=40),
                               item_ids=pa.array([f"i{k + v}" for k in range(40)])) for v in range(versions)]
    for page in range(300):
        clock[0] += 30.0
        bundle, positions = bundles[page % versions], rng.permutation(40)[:7].astype(np.int32)
        item_ids = bundle.item_ids.take(pa.array(positions)).to_pylist()
        shown.add(item_ids, bundle, positions)
        plain.add(item_ids)
        assert page % 50 or shown.counts() == plain.counts()
    assert shown.counts() == plain.counts() and sorted(shown.times()) == sorted(plain.times())


def test_workers_are_added_and_of_gauges_the_greatest_counts():
    one = ["# TYPE a_total counter", 'a_total{x="1"} 2', "# TYPE g gauge", "g 3"]
    two = ["# TYPE a_total counter", 'a_total{x="1"} 5', 'a_total{x="2"} 1', "# TYPE g gauge", "g 1"]
    types, samples = merge([one, two])
    assert types == {"a_total": "counter", "g": "gauge"}
    assert samples == {'a_total{x="1"}': 7, 'a_total{x="2"}': 1, "g": 3}


def test_status_and_metrics_tell_what_was_answered(world, tmp_path):
    publish(world)
    counters = {"events_accepted": 7, "events_late": 1, "events_rejected": 2, "events_rejected_not_json": 2,
                by_segment(FRESHNESS, "user_stored", "0.5"): 98, by_segment(FRESHNESS, "user_stored", "2"): 2}
    row = {"written_at": world.workspace.now() - 5_000_000, "watermark": world.workspace.now() - 15_000_000, "ended": False,
           "run": "r", "counters": counters, "offsets": {"1": [40, 0], "0": [7, 12]}}
    world.store.write_features([FeatureWrite(status_key(), "stream", STATUS, Cell(json.dumps(row).encode(), 1000))])
    with client_of(world, log=f"dir:{tmp_path / 'log'}") as client:
        assert len(ids(client.get("/v1/recommendations", params={"user_id": "ann"}))) == 20
        ids(client.get("/v1/recommendations", params={"user_id": "bob", "page_size": 5}))
        client.get("/v1/recommendations")
        client.post("/v1/events", json={"user_id": "u", "item_id": "i", "event_type": "click"})
        client.post("/v1/events", content=b"nonsense")
        said = msgspec.json.decode(client.get("/v1/status").content, type=Status)
        text = client.get("/metrics").text
    assert said.status == "ready" and said.requests.total >= 5 and said.requests.p99_ms
    assert said.tiers["list"] == 1 and sum(said.tiers.values()) == 2 and said.versions == {"v1": 2}
    assert said.events.accepted == 1 and said.events.rejected == {"not_json": 1}
    assert said.stream.alive and said.stream.events == 7 and said.stream.rejected == {"not_json": 2}
    assert said.stream.lag == {"0": 12, "1": 0}
    assert said.stream.freshness["user_stored"].p50_s == 0.5 and said.stream.freshness["user_stored"].p99_s == 2.0
    assert said.shown.items >= 20 and 0 < said.shown.coverage <= 1 and 0 <= said.shown.gini < 1
    assert set(said.breakers.values()) == {"closed"}
    told = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert told <= NAMES and metric_names.SERVE_TIERS in told and metric_names.COLLECT_ACCEPTED in told
    assert 'beamrec_serve_requests_total{route="/v1/recommendations",status="422"} 1' in text


def test_any_worker_tells_the_counts_of_all(world, server_of):
    publish(world)
    server = server_of(world.workspace.root, "--workers", "2")
    for _ in range(40):
        server.items("ann")
    for _ in range(60):
        total = server.client.get("/v1/status").json()["tiers"].get("list", 0)
        if total == 40:
            break
        time.sleep(0.1)
    assert total == 40


def test_a_breaker_that_is_open_in_another_worker_is_told(world, tmp_path):
    with client_of(publish(world), workers=2, run=tmp_path) as client:
        (tmp_path / "1.prom").write_text(f"# TYPE {metric_names.SERVE_BREAKER} gauge\n"
                                         f'{metric_names.SERVE_BREAKER}{{dependency="lists"}} 2')
        breakers = client.get("/v1/status").json()["breakers"]
    assert breakers.pop("lists") == "open" and set(breakers.values()) == {"closed"}
