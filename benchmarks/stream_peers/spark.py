"""The windows of the stream benchmark in Spark Structured Streaming, run by a Python of its own: ``python spark.py SPEC.json``.

Spark runs inside this process (``cores`` threads) and reads the topic with its own Kafka source and ``from_avro``. Tuned as its
documentation says: state in RocksDB with changelog checkpoints, as many shuffle partitions as cores, the sliding windows
chained to the 5-minute ones, files in append mode. Micro-batches of at most ``batch`` events, each with its checkpoint, go
back to back.

Spark closes a window when the watermark has passed it, and the end of the input does not move it: when all events are read,
one that lies far after them goes to a second topic, and the queries run again. Writes {"first": time, "stored": time,
"seconds": s} of the last topic into ``result``; ``seconds`` leaves out the time between those two runs.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession  # type: ignore[import-not-found]
from pyspark.sql import functions as f
from pyspark.sql.avro.functions import from_avro  # type: ignore[import-not-found]
from pyspark.sql.streaming.query import StreamingQuery  # type: ignore[import-not-found]

_STATE = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"


def session(spec: dict[str, Any]) -> SparkSession:
    """Spark in this process."""
    build = SparkSession.builder.master(f"local[{spec['cores']}]")
    for name, value in {
        "spark.jars": ",".join(spec["jars"]), "spark.driver.memory": "4g",
        "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": str(spec["cores"]), "spark.sql.session.timeZone": "UTC",
        "spark.sql.streaming.stateStore.providerClass": _STATE,
        "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
        "spark.local.dir": str(Path(spec["out"]) / "local"), "spark.sql.warehouse.dir": str(Path(spec["out"]) / "warehouse"),
    }.items():
        build = build.config(name, value)
    spark = build.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def windows(events: DataFrame) -> dict[str, DataFrame]:
    """The rows to store of each kind of window; times are seconds since 1970."""
    start, end = (f.col(f"window.{name}").cast("long").alias(f"window_{name}") for name in ("start", "end"))
    panes = events.groupBy("user_id", f.window("ts", "5 minutes")).count()
    hours = (panes.groupBy("user_id", f.window(f.window_time("window"), "1 hour", "5 minutes"))
             .agg(f.sum("count").alias("count")))
    sessions = events.groupBy("user_id", f.session_window("ts", "30 minutes").alias("window")).count()
    return {"tumbling": panes.select("user_id", start, "count"), "sliding": hours.select("user_id", start, "count"),
            "sessions": sessions.select("user_id", start, end, "count")}


def run(spark: SparkSession, spec: dict[str, Any], topic: str, end_topic: str, out: Path) -> dict[str, float]:
    """Reads one topic to its end; returns when the first batch began, when all was stored, and the seconds at work."""
    kafka = {"kafka.bootstrap.servers": spec["bootstrap"]}
    last = spark.createDataFrame([(bytes.fromhex(spec["end_record"]),)], "value binary")

    def queries() -> list[StreamingQuery]:
        log = (spark.readStream.format("kafka").options(**kafka).option("subscribe", f"{topic},{end_topic}")
               .option("startingOffsets", "earliest").option("maxOffsetsPerTrigger", spec["batch"]).load())
        read = from_avro("value", json.dumps(spec["schema"]), {"avroSchema": json.dumps(spec["reader_schema"])})
        events = (log.select(read.alias("e")).select("e.user_id", f.col("e.occurred_at").alias("ts"))
                  .withWatermark("ts", f"{spec['delay_s']} seconds"))
        return [rows.writeStream.outputMode("append").format("csv")
                .option("checkpointLocation", str(out / "checkpoints" / name)).trigger(availableNow=True).start(str(out / name))
                for name, rows in windows(events).items() if name in spec["windows"]]

    def worked(running: list[StreamingQuery]) -> tuple[float, float]:
        for query in running:
            query.awaitTermination()
        progress = [p for query in running for p in query.recentProgress]
        starts = [_seconds(p["timestamp"]) for p in progress]
        ends = [at + p["durationMs"].get("triggerExecution", 0) / 1000 for at, p in zip(starts, progress, strict=True)]
        return min(starts), max(ends)

    first, read_all = worked(queries())
    last.write.format("kafka").options(**kafka).option("topic", end_topic).save()
    again, stored = worked(queries())
    return {"first": first, "stored": stored, "seconds": read_all - first + stored - again}


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def main(spec: dict[str, Any]) -> None:
    """Runs the topics one after the other, the first ones to warm up."""
    spark = session(spec)
    for number, (topic, end_topic) in enumerate(zip(spec["topics"], spec["end_topics"], strict=True)):
        took = run(spark, spec, topic, end_topic, Path(spec["out"]) / str(number))
    Path(spec["result"]).write_text(json.dumps(took))
    spark.stop()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
