"""Where the time of the streaming job goes: CPU of each stage on one core, in this process, without a runner."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa

from transforms.beam.stream.item import ItemBucket
from transforms.beam.stream.state import Rules
from transforms.beam.stream.user import ITEM_COLUMNS, USER_COLUMNS, UserBucket
from transforms.beam.stream.wire import by_item, split, unpack
from transforms.beam.stream.wire import pack as pack_batch


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
