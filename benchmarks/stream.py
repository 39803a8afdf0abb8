"""How fast the streaming job catches up: an event log of 6 hours of event time, read to its end, values in the embedded store.

``packed``: 1,000 events a record, user_panes and user_session (5-minute and 1-hour counts, sessions). ``single``: the same, an
event a record (Avro). ``full_job``: packed, every feature group of users and items. A rate is all events over the seconds from
the first batch counted to the last event in the state; the final write is ``drain_s``. Flink runs with checkpoints every 2 s.

The final panes are compared with Polars over the same events (``equal``). ``where`` is the CPU of each stage on one core,
microseconds an event, in this process, so that it says where the time goes without a runner.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa

from beam_pipelines.io.stream_audit import read_parts
from beam_pipelines.jobs.stream_run import launched, runner_of
from beam_pipelines.options import Config, StreamConfig
from beam_pipelines.services import flink
from benchmarks.synthetic import FIRST_DAY, day_of_events, print_measured
from schemas import avro
from schemas.arrow import arrow_schema
from schemas.keys import hash64_column
from schemas.metric_names import EVENTS_ACCEPTED
from schemas.stream_cells import PANE
from schemas.tables import EVENTS
from schemas.workspace import DAY_MICROS
from serving.eventlog import open_log
from transforms.beam.stream.item import ItemBucket
from transforms.beam.stream.stages import by_item
from transforms.beam.stream.state import Rules
from transforms.beam.stream.user import ITEM_COLUMNS, USER_COLUMNS, UserBucket
from transforms.beam.stream.wire import pack as pack_batch
from transforms.beam.stream.wire import split, unpack
from transforms.records import pack

COMPARED = ("user_panes", "user_session")
PARTITIONS = 4
_PACK = 1000
_HOURS_MICROS = 6 * 3_600_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--events", type=int, default=5_000_000, help="in each log (default: 5,000,000)")
    parser.add_argument("--users", type=int, default=200_000, help="Zipf users (default: 200,000)")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--runner", default="flink", help="flink, prism or direct (default: flink)")
    parser.add_argument("--services", metavar="DIR", help="folder of 'beamrec services' (default: Flink is started for it)")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="read from this broker (default: a local log)")
    parser.add_argument("--kinds", default="packed,single,full_job", help="comma-separated (default: all three)")
    parser.add_argument("--work", metavar="DIR", help="where everything goes (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Runs every kind; exit code 1 when results differ."""
    return print_measured(args, measure)


def measure(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """The figures, by the names that ``--json`` prints."""
    kinds = args.kinds.split(",")
    table = events_of(args.events, args.users, args.items)
    expected = pane_counts(table)
    figures: dict[str, object] = {"events": args.events, "users": args.users, "runner": args.runner,
                                  "log": "kafka" if args.kafka else "local"}
    equal = True
    with _services(args, work) as services:
        for kind in kinds:
            uri = _fill(args, work, table, single=kind == "single")
            rate, drain, same = _run(args, work / kind, uri, COMPARED if kind != "full_job" else None, expected, services)
            name = "full_job_events_per_s" if kind == "full_job" else f"{kind}_events_per_s"
            figures |= {name: round(rate), f"{kind}_drain_s": round(drain, 1)}
            equal &= same
    return {**figures, "where": where(table.slice(0, 1_000_000)), "equal": equal}


@contextlib.contextmanager
def _services(args: argparse.Namespace, work: Path) -> Iterator[Path | None]:
    """The folder of the services to use: the one named, or of a Flink cluster that lives as long as the ``with``."""
    if args.services or runner_of(args.runner) != "flink":
        yield Path(args.services).absolute() if args.services else None
        return
    with flink.running(work.absolute() / "services" / "flink"):
        yield work.absolute() / "services"


def events_of(events: int, users: int, items: int) -> pa.Table:
    """Events in order of time, as many a second for 6 hours, with the columns of the event schema."""
    table = day_of_events(FIRST_DAY, events, users, items).sort_by("occurred_at")
    times = pa.array(FIRST_DAY * DAY_MICROS + np.arange(events) * (_HOURS_MICROS // events)).cast(EVENTS.schema.field(
        "occurred_at").type)
    for name in ("occurred_at", "ingested_at"):
        table = table.set_column(table.column_names.index(name), name, times)
    columns = {f.name: table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(events, f.type)
               for f in arrow_schema("event")}
    return pa.table({**columns, "event_hash": table["event_hash"]}).combine_chunks()


def pane_counts(table: pa.Table) -> pl.DataFrame:
    """Events per user and pane, by Polars."""
    times = table["occurred_at"].cast(pa.int64()).to_numpy()
    rows = pl.DataFrame({"user_id": pl.from_arrow(table["user_id"]), "start": times // PANE * PANE})
    return rows.group_by("user_id", "start").agg(pl.len().alias("events")).sort("user_id", "start")


def _fill(args: argparse.Namespace, work: Path, table: pa.Table, single: bool) -> str:
    name = "single" if single else "packed"
    uri = f"kafka://{args.kafka}/{name}-{args.events}" if args.kafka else f"dir:{(work / name).absolute()}/log"
    log = open_log(f"{uri}?partitions={PARTITIONS}")
    try:
        if sum(log.latest(p) for p in range(PARTITIONS)):
            return uri
        partition = ((hash64_column(table["user_id"]) >> np.uint64(32)) % np.uint64(PARTITIONS)).astype(np.int64)
        plain, now = table.select(arrow_schema("event").names), time.time_ns() // 1000
        for first in range(0, len(plain), PARTITIONS * _PACK):  # partitions advance side by side
            part = plain.slice(first, PARTITIONS * _PACK)
            for p in range(PARTITIONS):
                mine = part.filter(pa.array(partition[first : first + len(part)] == p)).combine_chunks()
                log.append(p, list(_singles(mine)) if single else [pack(b) for b in mine.to_batches()], now)
    finally:
        log.close()
    return uri


def _singles(table: pa.Table) -> Iterator[bytes]:
    schema = fastavro.parse_schema(dict(avro.load("event")))
    for row in table.to_pylist():
        with io.BytesIO() as buffer:
            fastavro.schemaless_writer(buffer, schema, {**row, "attributes": dict(row["attributes"] or ())})
            yield buffer.getvalue()


def _run(args: argparse.Namespace, folder: Path, uri: str, groups: tuple[str, ...] | None,
         expected: pl.DataFrame, services: Path | None) -> tuple[float, float, bool]:
    shutil.rmtree(folder / "run", ignore_errors=True)
    common = Config.of(folder / "run", runner=args.runner, quiet=True)
    common.workspace.root.mkdir(parents=True)
    config = StreamConfig(common, uri, name=f"bench{time.time_ns() % 1_000_000}", until_end=True, groups=groups,
                          audit=folder / "run" / "audit")
    seen: list[tuple[float, int]] = []

    def tell(status: dict[str, object]) -> None:
        counters = status["counters"]
        assert isinstance(counters, dict)
        seen.append((int(str(status["written_at"])) / 1e6, counters.get(EVENTS_ACCEPTED, 0)))

    began = time.time()
    with launched(config, services=services) as job:
        job.wait(tell)
        ended = (job.status() or {}).get("written_at", 0) / 1e6
    first = max((at for at, count in seen if count == 0), default=began)
    last = min((at for at, count in seen if count == args.events), default=ended)
    rows = read_parts(folder / "run" / "audit", "stream_panes")
    counts = [name for name in rows.column_names if name.startswith("count_")]
    found = (pl.DataFrame(pl.from_arrow(rows)).select("user_id", pl.col("start").dt.epoch("us"),
                                                      pl.sum_horizontal(counts).alias("events")).sort("user_id", "start"))
    same = found.select("user_id", "start").equals(expected.select("user_id", "start")) and \
        bool((found["events"].to_numpy() == expected["events"].to_numpy()).all())
    return args.events / max(last - first, 1e-9), ended - last, same


def where(table: pa.Table) -> dict[str, float]:
    """CPU of each stage in microseconds an event, on one core, all groups."""
    spent: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def counted(stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[stage] += time.process_time() - began

    users = [UserBucket.new(Rules()) for _ in range(16)]
    items = [ItemBucket.new(Rules()) for _ in range(8)]
    batches = table.select(list(USER_COLUMNS)).to_batches(max_chunksize=50_000)
    for number, batch in enumerate(batches):
        if number == 1:
            spent.clear()  # the first one compiled
        with counted("split and pack"):
            parts = [(bucket, pack_batch(part)) for bucket, part in split(batch, "user_id", 16)]
        fresh, pairs = [], []
        with counted("user state"):
            for bucket, packed in parts:
                taken = users[bucket].take(unpack(packed))
                fresh.append(taken.fresh.select(ITEM_COLUMNS))
                pairs += [taken.pairs] if taken.pairs is not None and taken.pairs.num_rows else []
        with counted("split by item"):
            messages = list(by_item(fresh, pairs, 8))
        with counted("item state"):
            for bucket, message in messages:
                items[bucket].take(message)
    for stage, buckets in (("flush users", users), ("flush items", items)):
        with counted(stage):
            for each in buckets:
                each.flush()
    counted_events = max(1, len(table) - len(batches[0]))
    return {stage: round(seconds / counted_events * 1e6, 3) for stage, seconds in spent.items()}
