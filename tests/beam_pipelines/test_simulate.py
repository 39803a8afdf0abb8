"""A simulated world is deterministic, continues, and behaves as its truth says."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beam_pipelines.cli.main import main
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from beam_pipelines.simulate.world import World, WorldSpec, examination
from beam_pipelines.simulate.write import day_tables, simulate
from schemas.tables import EVENTS
from schemas.workspace import DAY_MICROS

SPEC = WorldSpec(users=300, items=120, days=6, seed=11)
START = SPEC.first


def events_of(spec: WorldSpec) -> pl.DataFrame:
    """Everything the world sends, duplicates included."""
    frames = [pl.from_arrow(table) for table in day_tables(World.from_seed(spec))]
    plain = pl.concat([f.with_columns(pl.col(pl.Categorical).cast(pl.String)) for f in frames])  # type: ignore[union-attr]
    return plain.with_columns(pl.col("occurred_at").cast(pl.Int64), pl.col("ingested_at").cast(pl.Int64))


def stored(config: Config) -> pl.DataFrame:
    """The lake's events, by id."""
    return pl.DataFrame(pl.from_arrow(Lake.open(config.lake).read("events"))).sort("event_id")


@pytest.fixture(scope="module")
def sent() -> pl.DataFrame:
    return events_of(WorldSpec(users=2_000, items=200, days=12, seed=3, duplicates=0.05, late=0.1))


@pytest.fixture(scope="module")
def world() -> World:
    return World.from_seed(WorldSpec(users=2_000, items=200, days=12, seed=3, duplicates=0.05, late=0.1))


def index_of(ids: pl.Series) -> np.ndarray:
    return ids.str.slice(1).cast(pl.Int64).to_numpy()


def test_same_seed_same_rows_and_another_seed_others() -> None:
    assert events_of(SPEC).equals(events_of(SPEC))
    assert not events_of(SPEC).equals(events_of(replace(SPEC, seed=12)))


def test_a_later_first_day_moves_the_same_world() -> None:
    """By whole weeks, so that weekends fall alike."""
    later = events_of(replace(SPEC, start="2026-10-01"))
    moved = WorldSpec(start="2026-10-01").first - START
    times = [pl.col(c) + moved for c in ("occurred_at", "ingested_at")]
    assert moved % (7 * DAY_MICROS) == 0 and later.equals(events_of(SPEC).with_columns(times))
    for wrong in ("yesterday", "1066-10-14"):
        with pytest.raises(ValueError, match="start"):
            WorldSpec(start=wrong)


def test_the_lake_holds_each_event_once_as_sent(tmp_path: Path) -> None:
    config = Config.of(tmp_path, quiet=True)
    report = simulate(config, SPEC)
    everything = events_of(SPEC)
    first = everything.sort("offset", "index").unique("event_id", keep="first", maintain_order=True).sort("event_id")
    held = stored(config)
    assert report.read == len(everything) and report.events == len(first) == len(held)
    assert report.duplicates == len(everything) - len(first) > 0
    assert report.rejected == 0
    same = ["event_id", "user_id", "item_id", "event_type", "page_position", "price", "categories", "session_id", "offset"]
    assert held.select(same).equals(first.select(same))
    assert config.workspace.now() == START + SPEC.days * DAY_MICROS
    assert set(held["occurred_at"].dt.date().to_list()) == set(pl.date_range(
        pl.date(2026, 1, 1), pl.date(2026, 1, 6), eager=True))
    again = simulate(config, SPEC)
    assert again.already and again.events == 0 and stored(config).equals(held)


def test_more_days_continue_the_same_world(tmp_path: Path) -> None:
    grown, whole = Config.of(tmp_path / "grown", quiet=True), Config.of(tmp_path / "whole", quiet=True)
    for days in (2, 3, SPEC.days):
        simulate(grown, replace(SPEC, days=days))
    simulate(whole, SPEC)
    assert stored(grown).equals(stored(whole))
    for table in ("items", "users"):
        key = f"{table[:-1]}_id"
        one, other = (pl.DataFrame(pl.from_arrow(Lake.open(c.lake).read(table))).sort(key) for c in (grown, whole))
        assert one.equals(other)


def test_another_world_or_other_data_is_refused(tmp_path: Path) -> None:
    config = Config.of(tmp_path, quiet=True)
    simulate(config, SPEC)
    with pytest.raises(UserError, match=r"another world .*--users 300"):
        simulate(config, replace(SPEC, users=301))
    with pytest.raises(UserError, match="6 days"):
        simulate(config, replace(SPEC, days=5))
    (tmp_path / "world.json").unlink()
    with pytest.raises(UserError, match="other data"):
        simulate(config, SPEC)


def test_truth_file_is_the_world(tmp_path: Path) -> None:
    simulate(Config.of(tmp_path, quiet=True), replace(SPEC, days=1))
    truth = np.load(tmp_path / "truth.npz")
    world = World.from_seed(WorldSpec(**json.loads((tmp_path / "world.json").read_text())))
    assert np.array_equal(truth["user_taste"], world.user_taste)
    assert np.array_equal(truth["item_quality"], world.item_quality)


def test_clicks_follow_propensity_and_position(world: World, sent: pl.DataFrame) -> None:
    once = sent.unique("event_id")
    shown = once.filter(pl.col("event_type") == "impression").sort("occurred_at")
    shown = shown.unique(["user_id", "item_id"], keep="first", maintain_order=True)  # later ones may be suppressed
    clicks = once.filter(pl.col("event_type") == "click").select("request_id", "item_id", "page_position", clicked=pl.lit(1))
    joined = shown.join(clicks, on=["request_id", "item_id", "page_position"], how="left").with_columns(
        pl.col("clicked").fill_null(0))
    chance = world.propensity(index_of(joined["user_id"]), index_of(joined["item_id"]))
    expected = chance * examination(joined["page_position"].to_numpy())
    clicked = joined["clicked"].to_numpy()
    for position in range(1, 11):
        here = joined["page_position"].to_numpy() == position
        sigma = np.sqrt((expected[here] * (1 - expected[here])).sum())
        assert abs(clicked[here].sum() - expected[here].sum()) < 5 * sigma, position
    # The truth tells clicked from not clicked: the mean propensity of clicked pairs is far higher.
    assert chance[clicked == 1].mean() > 1.5 * chance[clicked == 0].mean()


def test_the_funnel_is_ordered_in_time(world: World, sent: pl.DataFrame) -> None:
    # What happened on the last day may not have arrived yet, its beginnings included.
    once = sent.unique("event_id").filter(pl.col("occurred_at") < world.end - DAY_MICROS)
    counts = dict(once["event_type"].value_counts().iter_rows())
    assert counts["impression"] > counts["click"] > counts["cart"] > counts["purchase"] > counts["return"] > 0
    assert counts["signup"] > 0 and counts["rating"] > 0
    keys = ["user_id", "item_id", "request_id", "page_position"]
    steps = [once.filter(pl.col("event_type") == kind).select(*keys, at="occurred_at")
             for kind in ("impression", "click", "cart", "purchase", "return")]
    for before, after in itertools.pairwise(steps):
        pairs = after.join(before, on=keys, how="left", suffix="_before")
        assert pairs["at_before"].null_count() == 0
        assert (pairs["at"] > pairs["at_before"]).all()
    waits = steps[3].join(steps[2], on=keys, suffix="_before")
    hours = ((waits["at"] - waits["at_before"]) / 3.6e9).to_numpy()
    assert (hours < 0.3).mean() > 0.5 and (hours > 1).any()
    clicks = once.filter(pl.col("event_type") == "click")
    assert clicks["dwell_ms"].null_count() == 0 and clicks["price"].null_count() == 0
    again = once.filter(pl.col("event_type") == "click").group_by("user_id", "item_id").len()
    assert (again["len"] == 1).all()


def test_items_are_shown_only_while_they_live(world: World, sent: pl.DataFrame) -> None:
    shown = sent.filter(pl.col("event_type") == "impression")
    item, day = index_of(shown["item_id"]), (shown["occurred_at"].to_numpy() - START) // DAY_MICROS
    assert (world.item_born[item] <= START + day * DAY_MICROS).all()
    late_pages = START + day * DAY_MICROS - DAY_MICROS  # a session that began before midnight keeps its shelves
    assert (world.item_dies[item] > late_pages).all()
    user = index_of(shown["user_id"])
    assert (world.user_born[user] < shown["occurred_at"].to_numpy()).all()
    # Zipf: the most popular tenth gets far more than a tenth of what is shown.
    top = np.argsort(-world.item_weight)[:20]
    assert np.isin(item, top).mean() > 0.2


def test_late_events_outages_and_bots() -> None:
    spec = replace(SPEC, users=800, bots=3, outages=2.0, late=0.2)
    frame = events_of(spec)
    lag = (frame["ingested_at"] - frame["occurred_at"]).to_numpy()
    assert (lag > 0).all() and 0.15 < (lag > 60_000_000).mean() < 0.5
    assert frame["ingested_at"].max() < START + spec.days * DAY_MICROS
    bots = frame.filter(pl.col("user_id").str.starts_with("bot"))
    assert bots["user_id"].n_unique() == 3 and len(bots) > 3 * 200 * spec.days
    quiet = events_of(replace(spec, outages=0.0))
    assert len(frame) < len(quiet)


def test_columns_are_those_of_the_events_table(sent: pl.DataFrame) -> None:
    assert sent.columns == [name for name in EVENTS.schema.names if name != "event_hash"]
    assert sent["event_id"].str.len_bytes().unique().to_list() == [16]


@pytest.mark.parametrize("flags", [["--users", "0"], ["--days", "0"], ["--late", "2"], ["--items", "5"]])
def test_impossible_sizes_are_one_clear_line(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--workspace", str(tmp_path), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
