"""A log to read, the configuration of a job over it, and the cells that it wrote."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from source_world import NOON, SECOND, event, record

from beam_pipelines.options import Config, StreamConfig
from serving.eventlog import open_log, partition_of
from serving.stores import open_store

HOUR = 3600 * SECOND
KINDS = ("view", "click", "impression", "purchase", "save")


def fill(uri: str, events: int = 3_000, seed: int = 3) -> int:
    """A log of two partitions: events of 40 users over 3 hours, each tenth twice, and two records that are no events."""
    rng, log = random.Random(seed), open_log(f"{uri}?partitions=2")
    try:
        copies = 0
        for start in range(0, events, 50):
            packs: dict[int, list[dict[str, object]]] = {0: [], 1: []}
            for i in range(start, start + 50):
                user = f"u{rng.randrange(40)}"
                at = NOON + i * 3 * HOUR // events
                fields = {"user_id": user, "item_id": f"i{rng.randrange(30)}", "event_type": rng.choice(KINDS),
                          "surface": "homepage", "device": "phone", "ingested_at": at, "categories": ["a", rng.choice("bc")]}
                again = 1 + (i % 10 == 0)
                copies += again - 1
                packs[partition_of(user, 2)] += [event(f"e{i}", at, **fields)] * again
            for partition, pack in packs.items():
                if pack:
                    log.append(partition, [record(*pack)], NOON)
        log.append(0, [b"", b"\xff nothing of the kind"], NOON)
    finally:
        log.close()
    return copies


def config(folder: Path, uri: str, runner: str, **fields: Any) -> StreamConfig:
    folder.mkdir(parents=True, exist_ok=True)
    return StreamConfig(Config.of(folder, runner=runner, quiet=True), uri, user_buckets=4, item_buckets=2,
                        audit=folder / "audit", **fields)


def user_cells(store: str) -> dict[tuple[str, str], Any]:
    opened = open_store(store)
    try:
        return {(group, row): cell for group in ("user_panes", "user_day", "user_session", "user_preference", "user_recent")
                for row, cell in opened.scan_features("stream", group)}
    finally:
        opened.close()
