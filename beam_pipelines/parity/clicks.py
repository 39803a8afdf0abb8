"""Published Globo clicks as a disturbed event log: late, doubled and malformed records, with the truth beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from beam_pipelines.errors import UserError
from schemas.arrow import TIMESTAMP, arrow_schema
from schemas.keys import import_event_id
from serving.eventlog import EventLog, partitions_of
from transforms.records import encode_singles, pack

Form = Literal["packed", "single"]
MAX_DELAY_MICROS = 50 * 60 * 1_000_000
CATEGORIES = 37
"""The articles have no metadata: categories and prices are made from the id, so that what needs them is compared too."""

_CHUNK = 20_000
_PACK_ROWS = 500
_COLUMNS = ("user_id", "session_id", "click_article_id", "click_timestamp", "click_deviceGroup", "click_os", "click_country",
            "click_referrer_type")


@dataclass(frozen=True)
class Disturbance:
    """How the clicks are disturbed.

    Attributes:
      delayed: share of clicks that arrive up to 50 minutes late.
      duplicates: share that arrive a second time.
      malformed: malformed records to add, as a share of the clicks.
      seed: of every choice.
    """

    delayed: float = 0.20
    duplicates: float = 0.05
    malformed: float = 0.01
    seed: int = 7


@dataclass(frozen=True)
class Arrivals:
    """n records in the order of their arrival.

    Attributes:
      events: n events, columns of ``arrow_schema("event")``; those of malformed rows have no known type.
      arrival: (n,) microseconds, ascending.
      malformed: (n,) whether the row is a dead letter.
    """

    events: pa.Table
    arrival: npt.NDArray[np.int64]
    malformed: npt.NDArray[np.bool_]


def read_clicks(path: Path, limit: int | None = None) -> pl.DataFrame:
    """The clicks of a folder of ``clicks_hour_*.csv[.gz]``, by click_timestamp, with event_id: one row per line.

    Raises:
      UserError: no such file there.
    """
    files = sorted([*path.glob("clicks_hour_*.csv"), *path.glob("clicks_hour_*.csv.gz")])
    if not files:
        raise UserError(f"no clicks_hour_*.csv or .csv.gz in {path}")
    frames, rows = [], 0
    for file in files:
        frame = pl.read_csv(file, columns=list(_COLUMNS), schema_overrides=dict.fromkeys(_COLUMNS, pl.Int64))
        frames.append(frame.with_columns(event_id=pl.Series(
            [import_event_id(f"globo/{file.name.removesuffix('.gz')}", row) for row in range(len(frame))], dtype=pl.String)))
        rows += len(frame)
        if limit is not None and rows >= limit:
            break
    clicks = pl.concat(frames).sort("click_timestamp", "event_id")
    return clicks.head(limit) if limit is not None else clicks


def disturb(clicks: pl.DataFrame, how: Disturbance) -> Arrivals:
    """Delays, doubles and adds to the clicks; copies are the same in content and arrive within the same 50 minutes."""
    random = np.random.default_rng(how.seed)
    n = len(clicks)
    times = clicks["click_timestamp"].to_numpy() * np.int64(1000)
    copies = np.flatnonzero(random.random(n) < how.duplicates)
    bad = random.choice(n, size=round(how.malformed * n), replace=False) if n else np.zeros(0, np.int64)
    late = np.where(random.random(n) < how.delayed, random.integers(0, MAX_DELAY_MICROS, n), 0)
    row = np.concatenate([np.arange(n), copies, bad])
    arrival = np.concatenate([times + late, times[copies] + random.integers(0, MAX_DELAY_MICROS, len(copies)), times[bad]])
    malformed = np.arange(len(row)) >= n + len(copies)
    order = np.argsort(arrival, kind="stable")
    row, arrival, malformed = row[order], arrival[order], malformed[order]
    return Arrivals(_events(clicks, row, times[row] + late[row], malformed), arrival, malformed)


def _events(clicks: pl.DataFrame, row: npt.NDArray[np.int64], ingested: npt.NDArray[np.int64],
            malformed: npt.NDArray[np.bool_]) -> pa.Table:
    taken = clicks[row]
    article = taken["click_article_id"].to_numpy()
    n = len(row)

    def text(name: str) -> pa.Array:
        return taken[name].cast(pl.String).to_arrow().cast(pa.string())

    ids = taken["event_id"].to_arrow().cast(pa.string())
    ids = pa.compute.binary_join_element_wise(ids, pa.array(np.where(malformed, "-bad", "").tolist(), pa.string()), "")
    names = pa.array([f"c{i}" for i in range(CATEGORIES)])
    made = {
        "event_id": ids, "user_id": text("user_id"), "item_id": text("click_article_id"),
        "event_type": pa.array(["click", "no such type"]).take(pa.array(malformed.astype(np.int8))),
        "occurred_at": pa.array(taken["click_timestamp"].to_numpy() * np.int64(1000)).cast(TIMESTAMP),
        "ingested_at": pa.array(ingested).cast(TIMESTAMP),
        "device": text("click_deviceGroup"), "os": text("click_os"), "country": text("click_country"),
        "referrer": text("click_referrer_type"), "session_id": text("session_id"),
        "categories": pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32)),
                                               names.take(pa.array(article % CATEGORIES))),
        "price": pa.array((article % 97).astype(np.float64) + 0.25),
        "attributes": pa.MapArray.from_arrays(pa.array(np.zeros(n + 1, np.int32)), pa.array([], pa.string()),
                                              pa.array([], pa.string())),
        "schema_version": pa.array(np.ones(n, np.int32)),
    }
    schema = arrow_schema("event")
    columns = [made[f.name].cast(f.type) if f.name in made else pa.nulls(n, f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def produce(log: EventLog, arrivals: Arrivals, form: Form, advance: Callable[[int], None] | None = None) -> int:
    """Appends the arrivals to a log, each user to its partition, partitions side by side; returns how many records.

    Every second malformed event becomes a record of its own that is no event at all, where it stood.
    """
    partitions = log.partitions()
    of = partitions_of(arrivals.events["user_id"], partitions)
    records = 0
    for start in range(0, len(arrivals.arrival), _CHUNK):
        end = min(start + _CHUNK, len(arrivals.arrival))
        part = arrivals.events.slice(start, end - start).combine_chunks()
        stamp = int(arrivals.arrival[end - 1])
        for partition in range(partitions):
            rows = np.flatnonzero(of[start:end] == partition)
            if len(rows):
                made = list(_records(part.take(pa.array(rows)), arrivals.malformed[start:end][rows], form))
                log.append(partition, made, stamp)
                records += len(made)
        if advance is not None:
            advance(end - start)
    return records


def _records(events: pa.Table, malformed: npt.NDArray[np.bool_], form: Form) -> Iterator[bytes]:
    bad = np.flatnonzero(malformed)
    garbage = set(bad[::2].tolist())
    kept = np.array([r for r in range(len(events)) if r not in garbage], np.int64)
    for number in range(len(garbage)):
        yield b"\x01\x02 no event " + str(number).encode()
    if form == "packed":
        for start in range(0, len(kept), _PACK_ROWS):
            yield pack(events.take(pa.array(kept[start : start + _PACK_ROWS])))
        return
    yield from encode_singles(events.take(pa.array(kept)))
