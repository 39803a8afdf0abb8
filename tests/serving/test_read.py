"""Parts of the read path by themselves: cursors, the split of users, the catalogue's cache, dropped versions, full disks."""

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_world import DAY, NOW

from schemas.keys import ITEM, USER, row_key, suppressed_group
from serving.catalogue import Catalogue, title_of
from serving.read import Cursor, CursorError, ListReader, NothingPublishedError, Request
from serving.responses import reason_sentence, rfc3339
from serving.stores import StoreError, open_store
from serving.stores.base import Active, Cell, FeatureWrite
from serving.versions import Pointers, version_for

POSITIONS = st.integers(0, 10**6)


@given(st.builds(Cursor, st.text(max_size=40), st.text(max_size=20), st.booleans(), POSITIONS, POSITIONS))
def test_a_cursor_comes_back(cursor):
    text = cursor.encode()
    assert Cursor.decode(text) == cursor and set(text) <= set(string.ascii_letters + string.digits + "-_")


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: b.decode("latin-1")))
def test_any_other_text_is_refused(text):
    with contextlib.suppress(CursorError):
        assert isinstance(Cursor.decode(text), Cursor)


@pytest.mark.parametrize("percent", [0, 1, 25, 100])
def test_the_challenger_gets_its_share_of_users(percent):
    active = Active("champion", "challenger", percent)
    served = [version_for(active, f"user {n}") for n in range(20_000)]
    assert served.count("challenger") / 200 == pytest.approx(percent, abs=1)
    assert version_for(Active("champion", None, 100), "user 1") == "champion"


def test_a_wider_share_keeps_the_users_it_had():
    few, more = Active("champion", "challenger", 10), Active("champion", "challenger", 20)
    users = [f"user {n}" for n in range(2000)]
    before, after = ({u for u in users if version_for(active, u) == "challenger"} for active in (few, more))
    assert before < after


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, store):
        self._store, self.rows, self.pointers = store, 0, 0

    def read_features(self, rows, family, groups):
        self.rows += len(rows)
        return self._store.read_features(rows, family, groups)

    def active(self, surface):
        self.pointers += 1
        return self._store.active(surface)


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


def test_a_pointer_is_read_once_a_second_and_its_cache_is_bounded(world):
    world.flip("v1")
    store, seen = Counting(world.store), []
    pointers = Pointers(seconds=60, on_change=lambda surface, active: seen.append((surface, active.champion)))
    for _ in range(5):
        assert pointers.get(store, "homepage") == Active("v1") and pointers.get(store, "cart") is None
    assert store.pointers == 2 and seen == [("homepage", "v1")]
    for n in range(1000):
        pointers.get(store, f"surface-{n}")
    assert len(pointers._known) <= 64


def test_a_version_dropped_under_a_reader_costs_no_answer(world):
    world.put_list("", "v1", ["p1"])
    world.put_list("", "v3", ["p3"])
    world.flip("v1")
    reader = ListReader(lambda: open_store(world.uri, create=False), lambda: NOW)
    assert [i.item_id for i in reader.recommend(Request("ann"), "r").items] == ["p1"]
    world.flip("v2", previous="v1")
    world.flip("v3", previous="v2")
    world.store.drop_version("v1")  # within the second for which the reader believes its pointer
    assert [i.item_id for i in reader.recommend(Request("ann"), "r").items] == ["p3"]
    reader.close()


def suppress(world, user, item, at=NOW):
    """As the collector does before it answers, and the stream after it."""
    world.store.write_features([FeatureWrite(row_key(USER, user), "stream", suppressed_group(item), Cell(b"", at))])


def test_a_suppressed_item_is_gone_from_the_next_answer_on_every_page(world):
    world.put_list("ann", "v1", ["a", "b", "c", "d"])
    world.put_list("", "v1", ["p1", "p2"])
    world.flip("v1")
    reader = ListReader(lambda: open_store(world.uri, create=False), lambda: NOW)

    def served(user="ann", **more):
        return [i.item_id for i in reader.recommend(Request(user, **more), "r").items]

    first = reader.recommend(Request("ann", page_size=2), "r")
    assert [i.item_id for i in first.items] == ["a", "b"]
    suppress(world, "ann", "b")
    suppress(world, "ann", "c", at=NOW + 60_000_000)  # a client's clock may run ahead
    assert served() == ["a", "d"]
    assert served(cursor=Cursor.decode(first.next_cursor)) == ["d"]
    assert served("bob") == ["p1", "p2"]  # of another user nothing is hidden
    suppress(world, "bob", "p2")
    assert served("bob") == ["p1"]
    suppress(world, "bob", "p1")
    assert served("bob") == ["p1", "p2"]  # who is done with all there is still gets an answer
    world.put_features("cat", "user_consumed", ["p1", "p2"])
    suppress(world, "cat", "p1")
    assert served("cat") == ["p2"]  # but rather what was consumed long ago than what was just now
    reader.close()


def test_a_suppression_ends_when_batch_has_long_had_the_event(world):
    world.put_list("ann", "v1", ["new", "week", "old"])
    world.flip("v1")
    for item, days in (("new", 1), ("week", 7), ("old", 8)):
        suppress(world, "ann", item, NOW - days * DAY)
    reader = ListReader(lambda: open_store(world.uri, create=False), lambda: NOW)
    assert [i.item_id for i in reader.recommend(Request("ann"), "r").items] == ["old"]
    reader.close()


def test_without_any_list_it_says_so(world):
    reader = ListReader(lambda: open_store(world.uri, create=False), lambda: NOW)
    with pytest.raises(NothingPublishedError, match="nothing is published yet"):
        reader.recommend(Request("ann"), "r")
    with pytest.raises(NothingPublishedError):
        reader.check()
    reader.close()


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
