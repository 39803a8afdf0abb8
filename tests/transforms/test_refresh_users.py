"""Users as they are now, from packed cells: against a plain twin that goes row by row."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cells import encode_list, encode_vector
from schemas.event_types import EVENT_TYPES
from schemas.features import CONSUMED_CAP, LAST_ITEMS_CAP, features_of, group
from schemas.stream_cells import encode_suppression
from schemas.tables import USER_SNAPSHOTS
from transforms.examples import USER_STATS, user_rows_of_snapshot
from transforms.refresh import CONSUMING_WEIGHTS, LIKING_WEIGHTS, user_rows

NOW = 1_700_000_000_000_000


def listed(name, entries):
    ids, times, scores = zip(*entries, strict=True) if entries else ((), (), ())
    return encode_list(group(name).id, list(ids), np.array(times, np.int64), np.array(scores, np.float32))


def stats(**values):
    vector = np.array([values.get(f.name, np.nan) for f in features_of("user_stats")], np.float32)
    return encode_vector(group("user_stats").id, vector)


def entries_of(rows, column, user):
    found = rows.column(column)[user].as_py()
    return list(zip(found["ids"], found["times"], found["scores"], strict=True))


def test_the_weights_that_tell_what_a_recent_event_did_follow_from_the_one_table():
    consuming = {t.weight for t in EVENT_TYPES if t.consumes}
    assert set(CONSUMING_WEIGHTS) < consuming and not set(CONSUMING_WEIGHTS) & {t.weight for t in EVENT_TYPES if not t.consumes}
    assert set(LIKING_WEIGHTS) == {2, 3, 4, 6} and set(CONSUMING_WEIGHTS) == {2, 4, 6}


def test_what_the_stream_knows_stands_before_what_the_night_knew():
    batch = [{"user_last_items": listed("user_last_items", [("a", 50, 2), ("b", 40, 1)]),
              "user_liked_items": listed("user_liked_items", [("a", 50, 2)]),
              "user_consumed": listed("user_consumed", [("a", 50, 2)]),
              "user_affinity": listed("user_affinity", [("Drama", 0, 0.75), ("War", 0, 0.25)]),
              "user_stats": stats(recency_days=2, segment=1)}]
    stream = [{"user_recent": listed("user_recent", [("c", 90, 2), ("b", 80, 3), ("d", 70, 1)]),
               "s:e": encode_suppression(95)}]
    rows = user_rows(["ann"], batch, stream, NOW)
    assert entries_of(rows, "last_items", 0) == [("c", 90, 2), ("b", 80, 3), ("d", 70, 1), ("a", 50, 2)]
    assert entries_of(rows, "liked_items", 0) == [("c", 90, 2), ("b", 80, 3), ("a", 50, 2)]
    assert [e[0] for e in entries_of(rows, "consumed_items", 0)] == ["e", "c", "a"]
    assert rows.column("category_affinity_30d")[0].as_py()["ids"] == ["Drama", "War"]
    assert rows.column("recency_days")[0].as_py() == 2 and rows.column("price_mean_30d")[0].as_py() is None
    tower = user_rows_of_snapshot(rows)
    assert tower["liked_items"][0].as_py() == ["c", "b", "a"]
    assert np.allclose(tower["liked_ages"][0].as_py(), [(NOW - t) / 86_400e6 for t in (90, 80, 50)])


def test_the_columns_are_those_of_a_snapshot_also_for_nobody_and_for_users_nothing_is_known_of():
    for users in ([], ["new", "newer"]):
        rows = user_rows(users, [{}] * len(users), [{}] * len(users), NOW)
        assert rows.num_rows == len(users)
        for column in rows.schema:
            assert column.type.equals(USER_SNAPSHOTS.schema.field(column.name).type), column.name
        assert {"user_id", "as_of", "last_items", "liked_items", "consumed_items", *USER_STATS} <= set(rows.schema.names)


ITEMS = st.sampled_from([f"i{k}" for k in range(8)])
ENTRIES = st.lists(st.tuples(ITEMS, st.integers(0, 9), st.sampled_from([1.0, 2.0, 3.0, 4.0, 6.0])), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ENTRIES, ENTRIES, ENTRIES, ENTRIES, st.sets(ITEMS, max_size=3)), max_size=4))
def test_merging_equals_a_plain_twin(users):
    def unique(entries):  # a stored list holds each item once, newest first
        return list({e[0]: e for e in sorted(entries, key=lambda e: e[1])}.values())[::-1]

    users = [tuple(unique(e) for e in u[:4]) + (u[4],) for u in users]
    batch = [{"user_last_items": listed("user_last_items", a), "user_liked_items": listed("user_liked_items", b),
              "user_consumed": listed("user_consumed", c)} for a, b, c, _, _ in users]
    stream = [{"user_recent": listed("user_recent", r), **{f"s:{i}": encode_suppression(5) for i in gone}}
              for _, _, _, r, gone in users]
    rows = user_rows([f"u{k}" for k in range(len(users))], batch, stream, NOW)

    def twin(old, new, cap):
        best = {}
        for age, entries in ((1, old), (0, new)):
            for item, at, score in entries:
                if item not in best or (-at, age) < best[item][:2]:
                    best[item] = (-at, age, item, score)
        return [(item, -at, score) for at, _, item, score in sorted(best.values(), key=lambda e: e[:3])][:cap]

    for k, (last, liked, consumed, recent, gone) in enumerate(users):
        assert entries_of(rows, "last_items", k) == twin(last, recent, LAST_ITEMS_CAP)
        assert entries_of(rows, "liked_items", k) == twin(liked, [e for e in recent if e[2] in (2, 3, 4, 6)], LAST_ITEMS_CAP)
        done = [e for e in recent if e[2] in (2, 4, 6)] + [(i, NOW, 0.0) for i in gone]
        assert entries_of(rows, "consumed_items", k) == twin(consumed, done, CONSUMED_CAP)
