"""The features job against plain DuckDB over the same events: every column, several as-of times, one by one and in one pass."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from beam_pipelines.io.ingest import ingest
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features
from beam_pipelines.options import Config
from schemas.event_types import EVENT_TYPES, NAMES
from schemas.tables import EVENTS
from schemas.workspace import DAY_MICROS
from transforms.accumulators import cooccurrence

FIRST, DAYS, USERS, ITEMS = 10_200, 50, 40, 30
AS_OFS = [FIRST + 3, FIRST + 37, FIRST + 50]  # day 10240 begins a new decay epoch


def some_events(seed: int = 3, n: int = 5_000) -> pa.Table:
    rng = np.random.default_rng(seed)
    start = FIRST * DAY_MICROS + rng.integers(0, DAYS * 24 * 4, n // 5).repeat(5) * 900_000_000  # bursts, across midnights too
    time = start + rng.integers(0, 20, n) * 120_000_000  # coarse, so that times tie
    kind = rng.choice(len(NAMES), n, p=[.3, .2, .15, .03, .05, .05, .05, .03, .12, .02])
    names = np.array(NAMES)[kind]
    user = (rng.zipf(1.4, n // 5) % USERS).repeat(5)
    return pa.table({
        "event_id": [f"event {k}" for k in range(n)], "user_id": [f"u{u}" for u in user],
        "item_id": pa.array([f"i{i}" for i in rng.zipf(1.3, n) % ITEMS], mask=names == "signup"),
        "event_type": names, "occurred_at": pa.array(time).cast(EVENTS.schema.field("occurred_at").type),
        "dwell_ms": pa.array(rng.integers(0, 10_000, n), mask=rng.random(n) < .5),
        "value": pa.array(rng.integers(1, 6, n).astype(float), mask=names != "rating"),
        "categories": [[f"c{c}" for c in rng.choice(6, rng.integers(0, 4), replace=False)] for _ in range(n)],
        "price": pa.array(np.round(rng.random(n) * 90, 2), mask=rng.random(n) < .3),
        "attributes": pa.array([[]] * n, EVENTS.schema.field("attributes").type),
        "schema_version": pa.array([1] * n, pa.int32()), "source": ["test"] * n,
        "partition": pa.array([0] * n, pa.int32()), "offset": pa.array(range(n), pa.int64()),
        "index": pa.array([0] * n, pa.int32()),
    })


@pytest.fixture(scope="module")
def lake_of(tmp_path_factory):
    """A workspace whose lake got every event out of order, some twice, in two writes."""
    events = some_events()
    rng = np.random.default_rng(1)
    copies = events.take(rng.integers(0, len(events), 700))
    shuffled = pa.concat_tables([events, copies])
    shuffled = shuffled.take(rng.permutation(len(shuffled)))

    def make(name: str) -> Config:
        config = Config.of(tmp_path_factory.mktemp(name), quiet=True)
        lake = Lake.open(config.lake)
        ingest(lake, [shuffled.slice(0, 2_000), shuffled.slice(2_000, 2_000)])
        ingest(lake, [shuffled.slice(4_000)])
        return config

    return make


@pytest.fixture(scope="module")
def computed(lake_of):
    config = lake_of("one_pass")
    features.backfill(config, [d * DAY_MICROS for d in AS_OFS])
    return config


@pytest.fixture(scope="module")
def oracle():
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    db.register("raw", some_events())
    weights = ", ".join(f"('{t.name}', {t.weight}, {t.consumes}, {t.positive}, {t.min_value or 'NULL'})" for t in EVENT_TYPES)
    db.execute(f"CREATE TABLE kinds AS SELECT * FROM (VALUES {weights}) k(event_type, weight, consumes, positive, floor)")
    from schemas.keys import hash64_column
    ids = some_events().column("event_id")
    db.register("hashes", pa.table({"event_id": ids, "tie": pa.array(hash64_column(ids))}))
    db.execute(f"""CREATE TABLE e AS SELECT raw.*, weight, consumes AND item_id IS NOT NULL AS consumes, tie,
        positive AND item_id IS NOT NULL AND (floor IS NULL OR value >= floor) AS positive,
        weight > 0 AND item_id IS NOT NULL AS active,
        epoch_us(occurred_at) AS t, epoch_us(occurred_at) // {DAY_MICROS} AS day
        FROM raw JOIN kinds USING (event_type) JOIN hashes USING (event_id)""")
    return db


def stored(config: Config, table: str, day: int) -> dict:
    rows = Lake.open(config.lake).read(table, start=day * DAY_MICROS, end=(day + 1) * DAY_MICROS).to_pylist()
    key = f"{table.split('_')[0]}_id"
    assert len({r[key] for r in rows}) == len(rows)
    return {r[key]: r for r in rows}


def same(got, wanted, tolerance=1e-6):
    if wanted is None:
        return got is None
    return got == pytest.approx(wanted, rel=tolerance, abs=1e-9)


@pytest.mark.parametrize("day", AS_OFS)
def test_user_numbers(computed, oracle, day):
    got = stored(computed, "user_snapshots", day)
    counts = ", ".join(f"count(*) FILTER (event_type = '{name}' AND day >= {day - w}) AS count_{name}_{w}d"
                       for name in NAMES for w in (1, 7, 30))
    rows = oracle.execute(f"""SELECT user_id, {counts},
        avg(dwell_ms) FILTER (day >= {day - 7}) AS dwell_mean_7d,
        count(DISTINCT item_id) FILTER (active AND day >= {day - 30}) AS distinct_items_30d,
        count(DISTINCT day) FILTER (weight > 0 AND day >= {day - 30}) AS active_days_30d,
        avg(price) FILTER (active AND day >= {day - 30}) AS price_mean_30d,
        min(price) FILTER (active AND day >= {day - 30}) AS price_min_30d,
        max(price) FILTER (active AND day >= {day - 30}) AS price_max_30d,
        ({day * DAY_MICROS} - max(t) FILTER (active)) / {DAY_MICROS} AS recency_days,
        CASE WHEN active_days_30d = 0 THEN 3 WHEN {day * DAY_MICROS} - min(t) < {7 * DAY_MICROS} THEN 0
             WHEN active_days_30d >= 8 THEN 2 ELSE 1 END AS segment
        FROM e WHERE day < {day} GROUP BY user_id""").to_arrow_table().to_pylist()
    assert {r["user_id"] for r in rows} == got.keys()
    for row in rows:
        for name, wanted in row.items():
            exact = name.startswith(("count_", "distinct", "active", "segment", "user_id"))
            found = got[row["user_id"]][name]
            assert found == wanted if exact else same(found, wanted), (name, row["user_id"], found, wanted)


@pytest.mark.parametrize("day", AS_OFS)
def test_affinity(computed, oracle, day):
    wanted: dict = {}
    for user, category, weight in oracle.execute(f"""SELECT user_id, c, sum(weight) FROM (SELECT user_id, weight,
            unnest(CASE WHEN len(categories) = 0 THEN ['unknown'] ELSE categories END) AS c
            FROM e WHERE active AND day < {day} AND day >= {day - 30}) GROUP BY ALL
            ORDER BY user_id, sum(weight) DESC, c""").fetchall():
        wanted.setdefault(user, []).append((category, weight))
    for user, row in stored(computed, "user_snapshots", day).items():
        found, expected = row["category_affinity_30d"], wanted.get(user, [])
        total = sum(w for _, w in expected)
        assert found["ids"] == [c for c, _ in expected]
        assert found["scores"] == pytest.approx([w / total for _, w in expected], rel=1e-6)


@pytest.mark.parametrize("day", AS_OFS)
@pytest.mark.parametrize(("feature", "chosen", "cap"), [
    ("last_items", "active", 50), ("liked_items", "positive", 50), ("consumed_items", "consumes", 2_000)])
def test_item_lists(computed, oracle, day, feature, chosen, cap):
    wanted: dict = {}
    for user, item, t, weight in oracle.execute(f"""SELECT user_id, item_id, t, weight FROM e WHERE {chosen} AND day < {day}
            QUALIFY row_number() OVER (PARTITION BY user_id, item_id ORDER BY t DESC, tie DESC) = 1
            ORDER BY user_id, t DESC, tie DESC""").fetchall():
        wanted.setdefault(user, []).append((item, t, weight))
    for user, row in stored(computed, "user_snapshots", day).items():
        found = row[feature]
        assert list(zip(found["ids"], found["times"], found["scores"], strict=True)) == wanted.get(user, [])[:cap]


@pytest.mark.parametrize("day", AS_OFS)
def test_item_numbers(computed, oracle, day):
    got = stored(computed, "item_snapshots", day)
    popularity = ", ".join(f"coalesce(sum(weight) FILTER (day >= {day - w}), 0) AS popularity_{w}d" for w in (1, 7, 30))
    rows = oracle.execute(f"""WITH s AS (SELECT item_id, {popularity},
        count(*) FILTER (event_type = 'click' AND day >= {day - 30}) AS clicks,
        count(*) FILTER (event_type = 'impression' AND day >= {day - 30}) AS shown,
        count(*) FILTER (event_type = 'impression') AS impressions_total,
        avg(dwell_ms) FILTER (day >= {day - 30}) AS dwell_mean_30d, ({day * DAY_MICROS} - min(t)) / {DAY_MICROS} AS age_days
        FROM e WHERE day < {day} AND item_id IS NOT NULL GROUP BY item_id)
        SELECT * EXCLUDE (clicks, shown), popularity_1d / sum(popularity_1d) OVER () AS popularity_share_1d,
        popularity_7d / sum(popularity_7d) OVER () AS popularity_share_7d,
        popularity_30d / sum(popularity_30d) OVER () AS popularity_share_30d,
        CASE WHEN shown > 0 THEN (clicks + 20 * (sum(clicks) OVER () / sum(shown) OVER ())) / (shown + 20) END
            AS ctr_smoothed_30d
        FROM s""").to_arrow_table().to_pylist()
    assert {r["item_id"] for r in rows} == got.keys()
    for row in rows:
        for name, wanted in row.items():
            exact = name in ("popularity_1d", "popularity_7d", "popularity_30d", "impressions_total", "item_id")
            found = got[row["item_id"]][name]
            assert found == wanted if exact else same(found, wanted), (name, row["item_id"], found, wanted)


@pytest.mark.parametrize("day", AS_OFS)
def test_cooccurrence(computed, oracle, day):
    """Pairs of a user's rows at most REACH apart and half an hour, once per user and day, decayed and shrunk."""
    since = (day // cooccurrence.EPOCH - 1) * cooccurrence.EPOCH
    wanted: dict = {}
    for a, b, score in oracle.execute(f"""
        WITH r AS (SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY t, tie) AS n FROM e WHERE active AND day < {day}),
        one AS (SELECT DISTINCT l.user_id, l.day, p.item_id AS a, l.item_id AS b FROM r l JOIN r p ON l.user_id = p.user_id
            AND p.n < l.n AND l.n - p.n <= {cooccurrence.REACH} AND l.t - p.t <= {cooccurrence.GAP} AND l.item_id <> p.item_id
            WHERE l.day >= {since}),
        pairs AS (SELECT user_id, day, a, b FROM one UNION SELECT user_id, day, b, a FROM one),
        ab AS (SELECT a, b, sum(pow(2, (day - {day}) / {cooccurrence.HALF_LIFE})) AS c FROM pairs GROUP BY a, b),
        own AS (SELECT item_id, sum(pow(2, (day - {day}) / {cooccurrence.HALF_LIFE})) AS c
            FROM (SELECT DISTINCT user_id, day, item_id FROM r WHERE day >= {since}) GROUP BY item_id)
        SELECT a, b, ab.c / (sqrt(x.c * y.c) + {cooccurrence.SHRINKAGE}) FROM ab JOIN own x ON x.item_id = a
            JOIN own y ON y.item_id = b""").fetchall():
        wanted.setdefault(a, {})[b] = score
    for item, row in stored(computed, "item_snapshots", day).items():
        found = row["cooccurring_items"]
        scores = dict(zip(found["ids"], found["scores"], strict=True))
        assert scores.keys() == wanted.get(item, {}).keys()
        assert all(same(s, wanted[item][other], 2e-6) for other, s in scores.items())
        assert found["scores"] == sorted(found["scores"], reverse=True)
        assert found["ids"] == [i for _, i in sorted((-s, i) for i, s in scores.items())]


def rows_of(config: Config, table: str, day: int) -> pa.Table:
    rows = Lake.open(config.lake).read(table, start=day * DAY_MICROS, end=(day + 1) * DAY_MICROS)
    return rows.sort_by(f"{table.split('_')[0]}_id").drop_columns(["published_at"])


@pytest.mark.parametrize("small", [True, False])
def test_night_by_night_is_one_pass(computed, lake_of, monkeypatch, small):
    """Running states and reused partials give the same bits, whether the lake is one bucket or eight."""
    if not small:
        monkeypatch.setattr(features, "SMALL_DAY", 110)  # some days are cut in eight, some are not
        monkeypatch.setattr(features, "SMALL_LAKE", 0)
    config = lake_of(f"nightly{small}")
    # From no state, from one of long ago (all of its window has gone), a young one, an old one, last night's.
    nights = (FIRST + 3, FIRST + 34, FIRST + 37, FIRST + 49, FIRST + 50) if small else (FIRST + 37, FIRST + 50)
    reports = [features.run(config, d * DAY_MICROS, publish=False) for d in nights]
    assert [r.days_read for r in reports] == ([3, 31, 3, 12, 1] if small else [37, 13])
    states = {day // DAY_MICROS for day in Lake.open(config.lake).days("states")}
    assert states == ({FIRST + 34, FIRST + 49} if small else {FIRST + 37, FIRST + 50})
    assert not any(r.failures for r in reports)
    for day in set(AS_OFS) & set(nights):
        for table in ("user_snapshots", "item_snapshots"):
            assert rows_of(config, table, day).equals(rows_of(computed, table, day)), (table, day)


def test_a_done_snapshot_is_reused_and_a_replaced_day_is_not(lake_of):
    config = lake_of("replaced")
    day = FIRST + 40
    features.run(config, day * DAY_MICROS, publish=False)
    lake = Lake.open(config.lake)
    before = lake.snapshot_id("user_snapshots")
    again = features.run(config, day * DAY_MICROS + 5, publish=False)
    assert again.made == [] and lake.snapshot_id("user_snapshots") == before
    gone = (FIRST + 20) * DAY_MICROS
    lake.replace_days("events", {gone: []})
    changed = features.run(config, day * DAY_MICROS, publish=False)
    assert changed.made == [day * DAY_MICROS]
    users = stored(config, "user_snapshots", day)
    events = lake.read("events", ["user_id", "event_type", "occurred_at"], start=(day - 30) * DAY_MICROS, end=day * DAY_MICROS)
    views = sum(t == "view" for t in events.column("event_type").to_pylist())
    assert sum(u["count_view_30d"] for u in users.values()) == views
