"""The windows of the stream benchmark in Flink SQL, run by a Python of its own: ``python flink_sql.py SPEC.json``.

Flink runs as a cluster inside this process (parallelism: ``cores``, checkpoints every 10 s), and reads the topic with its own
Kafka connector and Avro format. Tuned as its documentation says: windowing table-valued functions, two-phase aggregation, one
source for all queries, object reuse, state on the heap. Writes {"first": time, "stored": time} of the last topic into
``result``, seconds since 1970.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from pyflink.common import Configuration  # type: ignore[import-not-found]
from pyflink.table import EnvironmentSettings, TableEnvironment  # type: ignore[import-not-found]

# The writer's schema is made from these columns, so all of them are named, in the order of event.v1.avsc.
COLUMNS = """event_id STRING NOT NULL, user_id STRING NOT NULL, item_id STRING, event_type STRING NOT NULL,
  occurred_at BIGINT NOT NULL, ingested_at BIGINT, surface STRING, device STRING, session_id STRING, page_position INT,
  request_id STRING, model_version STRING, dwell_ms BIGINT, `value` DOUBLE, categories ARRAY<STRING NOT NULL> NOT NULL,
  price DOUBLE, country STRING, os STRING, referrer STRING, attributes MAP<STRING NOT NULL, STRING NOT NULL> NOT NULL,
  schema_version INT NOT NULL"""
_WINDOW = "SELECT user_id, {bounds}, COUNT(*) AS events FROM TABLE({window}) GROUP BY user_id, window_start, window_end"
_START, _END = (f"UNIX_TIMESTAMP(CAST({name} AS STRING)) AS {name}" for name in ("window_start", "window_end"))
QUERIES = {
    "tumbling": ("window_start BIGINT", _WINDOW.format(
        bounds=_START, window="TUMBLE(TABLE log, DESCRIPTOR(ts), INTERVAL '5' MINUTE)")),
    "sliding": ("window_start BIGINT", _WINDOW.format(
        bounds=_START, window="HOP(TABLE log, DESCRIPTOR(ts), INTERVAL '5' MINUTE, INTERVAL '1' HOUR)")),
    "sessions": ("window_start BIGINT, window_end BIGINT", _WINDOW.format(
        bounds=f"{_START}, {_END}",
        window="SESSION(TABLE log PARTITION BY user_id, DESCRIPTOR(ts), INTERVAL '30' MINUTE)")),
}


def settings(spec: dict[str, Any], rest: int) -> dict[str, str]:
    """Flink's configuration."""
    return {
        "parallelism.default": str(spec["cores"]), "taskmanager.numberOfTaskSlots": str(spec["cores"]),
        "execution.runtime-mode": "STREAMING", "rest.bind-port": str(rest), "rest.port": str(rest),
        "pipeline.jars": ";".join(Path(jar).as_uri() for jar in spec["jars"]), "pipeline.object-reuse": "true",
        "execution.checkpointing.interval": f"{spec['checkpoint_ms']} ms", "execution.checkpointing.storage": "filesystem",
        "execution.checkpointing.dir": (Path(spec["out"]) / "checkpoints").as_uri(), "state.backend.type": "hashmap",
        "table.optimizer.agg-phase-strategy": "TWO_PHASE", "table.local-time-zone": "UTC",
        "taskmanager.memory.network.min": "256mb", "taskmanager.memory.network.max": "256mb",
        "taskmanager.memory.managed.size": "512mb", "metrics.fetcher.update-interval": "100",
    }


def run(env: TableEnvironment, spec: dict[str, Any], topic: str, out: Path, rest: int) -> dict[str, float]:
    """Reads one topic to its end; returns when the first record was read and when all results were stored."""
    env.execute_sql("DROP TABLE IF EXISTS log")
    env.execute_sql(f"""CREATE TABLE log ({COLUMNS}, ts AS TO_TIMESTAMP_LTZ(occurred_at / 1000, 3),
      WATERMARK FOR ts AS ts - INTERVAL '{spec["delay_s"]}' SECOND) WITH ('connector' = 'kafka', 'topic' = '{topic}',
      'properties.bootstrap.servers' = '{spec["bootstrap"]}', 'scan.startup.mode' = 'earliest-offset',
      'scan.bounded.mode' = 'latest-offset', 'format' = 'avro', 'properties.max.poll.records' = '5000',
      'properties.fetch.min.bytes' = '65536', 'properties.max.partition.fetch.bytes' = '8388608')""")
    statements = env.create_statement_set()
    for name in spec["windows"]:
        bounds, query = QUERIES[name]
        env.execute_sql(f"DROP TABLE IF EXISTS {name}")
        env.execute_sql(f"CREATE TABLE {name} (user_id STRING, {bounds}, events BIGINT) WITH ('connector' = 'filesystem', "
                        f"'path' = '{(out / name).as_uri()}', 'format' = 'csv')")
        statements.add_insert_sql(f"INSERT INTO {name} {query}")
    result = statements.execute()
    job = str(result.get_job_client().get_job_id())
    first = _first_read(f"http://127.0.0.1:{rest}/jobs/{job}")
    result.wait()
    return {"first": first, "stored": time.time()}


def _first_read(url: str) -> float:
    """When the source had read its first records, by Flink's own metrics, which are asked every 50 ms."""
    while True:
        asked = time.time()
        try:
            job = _get(url)
            source = job["vertices"][0]
            if source["metrics"]["write-records"] > 0 or job["state"] == "FINISHED":
                return asked
        except (OSError, LookupError):  # not there yet
            pass
        time.sleep(0.05)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.loads(answer.read())


def main(spec: dict[str, Any]) -> None:
    """Runs the topics one after the other, the first ones to warm up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rest = free.getsockname()[1]
    configuration = Configuration()
    for name, value in settings(spec, rest).items():
        configuration.set_string(name, value)
    build = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration)
    env = TableEnvironment.create(build.build())
    for number, topic in enumerate(spec["topics"]):
        took = run(env, spec, topic, Path(spec["out"]) / str(number), rest)
    Path(spec["result"]).write_text(json.dumps(took))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
