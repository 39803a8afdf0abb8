"""A small world of tastes, as a lake: users of one taste like items of one category."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from schemas.keys import hash64_column
from schemas.tables import EVENTS, ITEMS
from schemas.workspace import DAY_MICROS

START = 20_000 * DAY_MICROS
DAYS, USERS, ITEMS_PER_TASTE, TASTES = 12, 90, 15, 3
AS_OF = START + DAYS * DAY_MICROS


def events(seed: int = 5, per_user: int = 14) -> pa.Table:
    """Clicks on items of the user's own taste (nine in ten), and an impression before each."""
    rng = np.random.default_rng(seed)
    n = USERS * per_user
    users = np.repeat(np.arange(USERS), per_user)
    taste = np.where(rng.random(n) < 0.9, users % TASTES, rng.integers(0, TASTES, n))
    items = taste * ITEMS_PER_TASTE + np.minimum(rng.geometric(0.12, n) - 1, ITEMS_PER_TASTE - 1)
    times = START + np.sort(rng.integers(0, DAYS * DAY_MICROS, n))
    order = rng.permutation(n)
    users, items = users[order], items[order]
    kinds = np.where(rng.random(n) < 0.8, "click", "purchase")
    ids = pa.array([f"e{k}" for k in range(n)])
    columns = {
        "event_id": ids, "user_id": pa.array([f"u{u}" for u in users]), "item_id": pa.array([f"i{i}" for i in items]),
        "event_type": pa.array(kinds.tolist()), "occurred_at": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
        "categories": pa.array([[f"taste{i // ITEMS_PER_TASTE}"] for i in items], pa.list_(pa.string())),
        "event_hash": pa.array(hash64_column(ids).view(np.int64)), "source": pa.array(["test"] * n),
        "partition": pa.array(np.zeros(n, np.int32)), "offset": pa.array(np.arange(n)),
        "index": pa.array(np.zeros(n, np.int32)), "schema_version": pa.array(np.ones(n, np.int32)),
        "attributes": pa.array([[]] * n, EVENTS.schema.field("attributes").type)}
    return pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in EVENTS.schema], schema=EVENTS.schema)


def items() -> pa.Table:
    """The catalogue: one category per taste; the last item is not active."""
    n = TASTES * ITEMS_PER_TASTE
    columns = {
        "item_id": pa.array([f"i{k}" for k in range(n)]),
        "categories": pa.array([[f"taste{k // ITEMS_PER_TASTE}"] for k in range(n)], pa.list_(pa.string())),
        "is_active": pa.array([k != n - 1 for k in range(n)]),
        "updated_at": pa.array(np.zeros(n, np.int64)).cast(pa.timestamp("us", tz="UTC")),
        "attributes": pa.array([[("year", str(1990 + k % 5))] for k in range(n)], ITEMS.schema.field("attributes").type),
        "schema_version": pa.array(np.ones(n, np.int32))}
    return pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in ITEMS.schema], schema=ITEMS.schema)


def make(folder: Path, reverse: bool = False, seed: int = 7) -> Config:
    """A workspace with that lake; ``reverse`` writes each day's events in two files, last event first."""
    config = Config.of(folder, quiet=True, seed=seed)
    lake, table = Lake.open(config.lake), events()
    days = table["occurred_at"].cast(pa.int64()).to_numpy() // DAY_MICROS
    files = {}
    for day in np.unique(days):
        rows, at = table.filter(pa.array(days == day)), int(day) * DAY_MICROS
        if not reverse:
            files[at] = [lake.write_file("events", rows, at)]
            continue
        backwards, half = rows.take(pa.array(np.arange(rows.num_rows)[::-1])), rows.num_rows // 2
        files[at] = [lake.write_file("events", part, at) for part in (backwards.slice(0, half), backwards.slice(half))]
    lake.replace_days("events", files)
    lake.replace_all("items", items())
    config.workspace.freeze_after(AS_OF - 1)
    return config
