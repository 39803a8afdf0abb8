"""Small parts that answers are made of: the catalogue's cache, sentences, times; and a disk that is full."""

import pytest

from schemas.keys import ITEM, row_key
from serving.catalogue import Catalogue, title_of
from serving.responses import reason_sentence, rfc3339
from serving.stores import StoreError
from serving.stores.base import Cell, FeatureWrite


class Counting:
    """A store that counts the rows that are asked of it."""

    def __init__(self, store):
        self._store, self.rows = store, 0

    def read_features(self, rows, family, groups):
        self.rows += len(rows)
        return self._store.read_features(rows, family, groups)


def test_the_catalogue_reads_an_item_once_and_forgets_the_oldest(world):
    world.catalogue("a", "b", "c")
    world.store.write_features([FeatureWrite(row_key(ITEM, "bad"), "meta", "item", Cell(b"{not json", 0))])
    store, catalogue = Counting(world.store), Catalogue(capacity=3)
    for _ in range(3):
        items = catalogue.items(store, ["a", "b", "absent", "a"])
        assert set(items) == {"a", "b"} and title_of(items, "a") == "Title of a" and title_of(items, "absent") is None
    assert store.rows == 3
    catalogue.items(store, ["c"])  # the fourth: the oldest goes
    catalogue.items(store, ["b", "c"])
    assert store.rows == 4
    assert catalogue.items(store, ["bad"]) == {}


def test_a_full_disk_is_an_error_that_can_be_repeated(world):
    connection = world.store._connection()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 2}")
    writes = [FeatureWrite(row_key(ITEM, str(n)), "batch", "item_stats", Cell(b"x" * 1000, 0)) for n in range(1000)]
    with pytest.raises(StoreError, match="full"):
        world.store.write_features(writes)
    assert list(world.store.scan_features("batch", "item_stats")) == []
    connection.execute("PRAGMA max_page_count=1000000")
    assert world.store.write_features(writes) == 1000


def test_sentences_and_times():
    assert reason_sentence("because_you_watched", "Heat") == "Because you watched Heat"
    assert all(reason_sentence(kind, None) for kind in ("because_you_watched", "similar_taste", "popular", "unheard of"))
    assert rfc3339(0) == "1970-01-01T00:00:00Z" and rfc3339(1_700_006_400_123_456) == "2023-11-15T00:00:00.123456Z"
