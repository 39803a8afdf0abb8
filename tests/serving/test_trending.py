"""What is trending comes from the job's row into a worker's memory, and on demand into lists."""

import asyncio

import numpy as np
import pytest

from schemas.cells import encode_list
from schemas.keys import TRENDING, status_key, trending_key
from serving.stores import open_store
from serving.stores.aio import open_async
from serving.stores.base import Cell, FeatureWrite, StoreError
from serving.trending import ITEMS, OLDEST_S, Trends, merged

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND


def cell(at: int, **weights: float) -> Cell:
    scores = np.array(list(weights.values()), np.float32)
    return Cell(encode_list(0, list(weights), np.zeros(len(weights), np.int64), scores), at)


def test_buckets_are_merged_and_what_came_earlier_weighs_less() -> None:
    found = merged([cell(NOW, a=4.0, b=1.0), cell(NOW - 600 * SECOND, c=6.0, d=2.0)], NOW)
    assert found == [("a", 4.0), ("c", 3.0), ("b", 1.0), ("d", 1.0)]


def test_what_is_old_or_broken_says_nothing_and_the_best_are_kept() -> None:
    many = {f"i{n:03d}": float(n) for n in range(3 * ITEMS)}
    broken = Cell(cell(NOW, x=1.0).value[:-1], NOW)
    old = cell(NOW - round(OLDEST_S * SECOND) - SECOND, y=1e9)
    found = merged([broken, old, cell(NOW, **many)], NOW)
    assert [item for item, _ in found] == [f"i{n:03d}" for n in range(3 * ITEMS - 1, 2 * ITEMS - 1, -1)]


def test_a_worker_has_what_the_job_wrote_and_keeps_it_while_the_store_is_away(tmp_path) -> None:
    uri = f"sqlite:{tmp_path / 'store.db'}"
    store = open_store(uri)
    store.write_features([FeatureWrite(trending_key("live"), "stream", f"{TRENDING}{n}", cell(NOW, **{f"i{n}": 1.0 + n}))
                          for n in range(3)])
    store.write_features([FeatureWrite(trending_key("other"), "stream", f"{TRENDING}0", cell(NOW, z=9.0)),
                          FeatureWrite(status_key("live"), "stream", "status", Cell(b"{}", NOW))])

    async def read() -> list:
        told: list = []
        reader = open_async(uri)
        trends = Trends(reader, lambda: NOW, told.append, "live")
        trends.start()
        while not told:
            await asyncio.sleep(0.01)
        await trends.close()
        (tmp_path / "store.db").rename(tmp_path / "away.db")
        with pytest.raises(StoreError):
            await trends.read()
        await reader.close()
        return told

    assert asyncio.run(read()) == [[("i2", 3.0), ("i1", 2.0), ("i0", 1.0)]]
    store.close()
