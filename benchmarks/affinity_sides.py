"""The engines of the affinity benchmark, each run in a process of its own: ``python -m benchmarks.affinity_sides SIDE ...``.

Every side reads the same Parquet files of a lake (events are distinct there: the lake de-duplicates when it writes, so no
side does it again) and writes Parquet with one row per user: categories by falling weight, then name, and their shares.
Start-up (interpreter, imports, compiled kernels, Spark session) is warmed on one day and not counted, on every side.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from schemas.event_types import EVENT_TYPES

WEIGHTS = {t.name: t.weight for t in EVENT_TYPES if t.weight > 0}
CAP = 64


def beamrec(paths: list[str], out: Path) -> None:
    """The features job itself, on a lake of its own that references the files."""
    from beam_pipelines.io.lake import Lake
    from beam_pipelines.jobs import features
    from beam_pipelines.options import Config
    from schemas.workspace import DAY_MICROS

    config = Config.of(out.with_suffix(".ws"), quiet=True)
    lake = Lake.open(config.lake)
    as_of = max(lake.days("events")) + DAY_MICROS
    report = features.run(config, as_of, ["user_affinity"], publish=False)
    if report.failures:
        raise RuntimeError("; ".join(report.failures))
    files = [f.path for f in lake.files("user_snapshots")]
    out.write_text("\n".join(files))


def prepare_beamrec(paths: list[str], out: Path) -> None:
    """Not timed: the lake that holds the event files, and empty tables for what is made of them."""
    from beam_pipelines.io.lake import Lake

    shutil.rmtree(out.with_suffix(".ws"), ignore_errors=True)
    lake = Lake.open(out.with_suffix(".ws") / "lake")
    lake.append("events", paths)
    for table in ("partials", "states", "user_snapshots", "item_snapshots"):
        lake.table(table)


def polars(paths: list[str], out: Path) -> None:
    """Lazy scan, streaming engine, both cores."""
    import polars as pl

    (pl.scan_parquet(paths).select("user_id", "item_id", "event_type", "categories")
     .filter(pl.col("event_type").is_in(list(WEIGHTS)) & pl.col("item_id").is_not_null())
     .with_columns(pl.col("event_type").replace_strict(WEIGHTS, return_dtype=pl.Int64).alias("w"))
     .explode("categories").with_columns(pl.col("categories").fill_null("unknown"))
     .group_by("user_id", "categories").agg(pl.col("w").sum())
     .group_by("user_id")  # a sort within each user is faster than one of all rows
     .agg(pl.col("categories").sort_by([-pl.col("w"), pl.col("categories")]).head(CAP).alias("ids"),
          (pl.col("w").sort(descending=True) / pl.col("w").sum()).head(CAP).cast(pl.Float32).alias("scores"))
     .collect(engine="streaming").write_parquet(out, compression="zstd", compression_level=1))


def pyspark(paths: list[str], out: Path) -> None:
    """Spark SQL on local[2], adaptive execution, one shuffle partition count for two cores."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    spark = (SparkSession.builder.master("local[2]").config("spark.driver.memory", "6g").config("spark.ui.enabled", "false")
             .config("spark.sql.shuffle.partitions", "8").getOrCreate())
    weight = f.create_map(*[f.lit(x) for pair in WEIGHTS.items() for x in pair])
    events = (spark.read.parquet(*paths).select("user_id", "item_id", "event_type", "categories")
              .where(f.col("event_type").isin(list(WEIGHTS)) & f.col("item_id").isNotNull())
              .select("user_id", weight[f.col("event_type")].cast("long").alias("w"),
                      f.explode_outer("categories").alias("c")))
    sums = events.groupBy("user_id", f.coalesce("c", f.lit("unknown")).alias("c")).agg(f.sum("w").alias("w"))
    lists = (sums.groupBy("user_id").agg(f.sum("w").alias("total"), f.sort_array(f.collect_list(
        f.struct((-f.col("w")).alias("n"), f.col("c")))).alias("l"))
        .select("user_id", f.slice("l.c", 1, CAP).alias("ids"),
                f.expr(f"transform(slice(l, 1, {CAP}), x -> cast(-x.n / total as float))").alias("scores")))
    lists.write.mode("overwrite").parquet(str(out))


def beam_rowwise(paths: list[str], out: Path) -> None:
    """Stock Beam, one element per event, on the same runner."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as p:
        (p | "files" >> beam.Create(paths)
         | "rows" >> beam.io.ReadAllFromParquet(columns=["user_id", "item_id", "event_type", "categories"])
         | "interactions" >> beam.FlatMap(_weights) | "sum" >> beam.CombinePerKey(sum)
         | "by user" >> beam.MapTuple(_by_user) | "gather" >> beam.GroupByKey() | "rank" >> beam.MapTuple(_ranked)
         | "write" >> beam.io.WriteToParquet(str(out), _schema(), num_shards=1, shard_name_template=""))


def _schema() -> object:
    import pyarrow as pa

    return pa.schema([("user_id", pa.string()), ("ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])


def _weights(row: dict) -> list[tuple[tuple[str, str], int]]:
    weight = WEIGHTS.get(row["event_type"])
    if weight is None or row["item_id"] is None:
        return []
    return [((row["user_id"], c), weight) for c in row["categories"] or ["unknown"]]


def _by_user(key: tuple[str, str], weight: int) -> tuple[str, tuple[int, str]]:
    return key[0], (-weight, key[1])


def _ranked(user: str, found: object) -> dict:
    ranked = sorted(found)  # type: ignore[call-overload]
    total = -sum(w for w, _ in ranked)
    return {"user_id": user, "ids": [c for _, c in ranked[:CAP]], "scores": [-w / total for w, _ in ranked[:CAP]]}


SIDES: dict[str, Callable[[list[str], Path], None]] = {
    "beamrec": beamrec, "polars": polars, "pyspark": pyspark, "beam_rowwise": beam_rowwise}


def main(argv: list[str]) -> None:
    """SIDE RUNS OUT FILES_LIST: prints {"seconds": [...], "cpu_s": [...], "peak_rss_gib": ...}."""
    side, runs, out, listing = argv[0], int(argv[1]), Path(argv[2]), Path(argv[3])
    paths = listing.read_text().split()
    prepare = prepare_beamrec if side == "beamrec" else None
    seconds, cpu = [], []
    for run in range(-1, runs):
        some = paths[:1] if run < 0 else paths
        if prepare:
            prepare(some, out)
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        SIDES[side](some, out)
        if run >= 0:
            after = resource.getrusage(resource.RUSAGE_SELF)
            seconds.append(time.perf_counter() - started)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_rss_gib": peak}))


if __name__ == "__main__":
    main(sys.argv[1:])
