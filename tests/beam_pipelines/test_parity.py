"""Parity on a small made-up set of clicks in the published format: equal as it is, and found out when something is not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from beam_pipelines.parity.clicks import Disturbance, disturb, read_clicks
from beam_pipelines.parity.compare import (
    Difference,
    batch_states,
    cells_of,
    compare_cells,
    compare_features,
    compare_suppressions,
    compare_table,
    final_of,
)
from beam_pipelines.parity.oracle import Oracle
from beam_pipelines.parity.run import Plan, run
from schemas.xxh3 import hash64_strings
from serving.stores import open_store
from transforms.accumulators.stream.item import ItemState
from transforms.accumulators.stream.user import UserState

pytest.importorskip("duckdb", reason="pip install duckdb")
START_MS = 1_507_260_000_000
HEADER = ("user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,"
          "click_deviceGroup,click_os,click_country,click_region,click_referrer_type")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 clicks of 150 users and 60 articles in ten hours: many a user in bursts, so that sessions and pairs abound."""
    chance, folder = random.Random(3), tmp_path_factory.mktemp("clicks")
    rows = []
    for n in range(3000):
        user = min(int(chance.paretovariate(0.7)), 150)
        at = START_MS + chance.randrange(20) * 1_800_000 + chance.randrange(900) * 1000
        rows.append(f"{user},{user * 100 + at % 7},{at},1,{min(int(chance.paretovariate(0.6)), 60)},{at},4,{n % 3},17,1,6,5")
    for part in (0, 1):
        (folder / f"clicks_hour_{part:03d}.csv").write_text("\n".join([HEADER, *rows[part::2]]) + "\n")
    return folder


def test_direct_runner_is_equal_to_batch_and_sql(data: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "run", Plan(data, how=Disturbance(delayed=0.3, duplicates=0.2, malformed=0.05)), quiet=True)
    assert report.examples == [] and report.equal
    assert (report.clicks, report.malformed, report.dead_letters, report.late) == (3000, 150, 150, 0)
    assert report.cells > 15_000
    store, missing = open_store(f"sqlite:{tmp_path / 'run' / 'store.db'}", create=False), Difference()
    clicks = read_clicks(data)
    one = (pl.col("user_id") == 1) & (pl.col("click_article_id") == 1)
    compare_suppressions(store, Oracle(clicks.filter(~one)), missing)
    compare_suppressions(store, Oracle(clicks), same := Difference())
    store.close()
    assert (missing.cells, missing.differing, same.cells, same.differing) == (same.cells, 1, same.cells, 0) and same.cells > 500


def test_what_is_disturbed_is_counted(data: Path) -> None:
    clicks = read_clicks(data)
    arrivals = disturb(clicks, Disturbance(delayed=0.2, duplicates=0.05, malformed=0.01))
    assert arrivals.malformed.sum() == 30 and 3000 + 30 + 100 < len(arrivals.arrival) < 3000 + 30 + 200
    assert (arrivals.arrival[1:] >= arrivals.arrival[:-1]).all()


def test_a_wrong_value_is_found(data: Path) -> None:
    clicks = read_clicks(data)
    events = disturb(clicks, Disturbance(0, 0, 0)).events
    events = events.append_column("event_hash", pa.array(hash64_strings(events["event_id"].combine_chunks()).view(np.int64)))
    users, items = batch_states(events.to_batches(max_chunksize=500), 2)
    oracle, states = Oracle(clicks), list[UserState | ItemState]([*users, *items])
    cells, good, bad = cells_of(states), Difference(), Difference()
    compare_features("user_panes", cells["user_panes"], oracle, good)
    panes = final_of(states)["stream_panes"]
    compare_table("panes", panes, oracle.table("stream_panes"), good)
    assert good.cells > 0 and good.differing == 0
    first, *others = sorted(cells["user_panes"])
    swapped = {**cells["user_panes"], first: cells["user_panes"][others[-1]]}
    compare_cells("cells", swapped, cells["user_panes"], bad)
    compare_table("panes", pl.concat([panes.head(1), panes]), oracle.table("stream_panes"), bad)
    compare_table("panes", panes.tail(-1), oracle.table("stream_panes"), bad)
    assert bad.differing == 3
