"""The feature registry and the workspace clock."""

import pytest

from schemas import features
from schemas.event_types import CODES, EVENT_TYPES
from schemas.tables import ITEM_SNAPSHOTS, USER_SNAPSHOTS
from schemas.workspace import DAY_MICROS, Workspace, write_atomically


def test_names_and_group_ids_are_unique_and_groups_exist():
    assert len({(f.entity, f.name) for f in features.FEATURES}) == len(features.FEATURES)
    assert len({g.id for g in features.GROUPS}) == len(features.GROUPS)
    for feature in features.FEATURES:
        group = features.group(feature.group)
        assert (group.entity, group.source) == (feature.entity, feature.source)
        assert group.layout == "session" or (group.layout in ("list", "decayed")) == (feature.dtype == "list")


def test_a_list_group_holds_exactly_one_feature():
    for group in features.GROUPS:
        held = features.features_of(group.name)
        assert held and (group.layout in ("vector", "ring", "session") or len(held) == 1)


def test_stored_positions_never_move():
    assert [f.name for f in features.features_of("item_stats")] == [
        "popularity_1d", "popularity_7d", "popularity_30d", "popularity_share_1d", "popularity_share_7d",
        "popularity_share_30d", "ctr_smoothed_30d", "impressions_total", "dwell_mean_30d", "age_days"]
    assert [f.name for f in features.features_of("user_stats")][:8] == [
        "dwell_mean_7d", "distinct_items_30d", "active_days_30d", "price_mean_30d", "price_min_30d", "price_max_30d",
        "recency_days", "segment"]
    assert features.features_of("user_stats")[8].name == "count_impression_1d"
    assert list(CODES) == ["impression", "view", "click", "skip", "save", "cart", "purchase", "return", "rating", "signup"]


def test_snapshot_tables_hold_every_feature():
    for table, entity in ((USER_SNAPSHOTS, "user"), (ITEM_SNAPSHOTS, "item")):
        assert table.schema.names[:3] == ["as_of", "published_at", f"{entity}_id"]
        assert table.schema.names[3:] == [f.name for f in features.FEATURES if f.entity == entity and f.source == "batch"]


def test_only_positive_types_have_a_threshold():
    assert all(t.positive for t in EVENT_TYPES if t.min_value is not None)
    assert {t.name for t in EVENT_TYPES if t.consumes} == {"click", "cart", "purchase", "rating"}


def test_an_unknown_group_names_the_known_ones():
    with pytest.raises(KeyError, match="item_stats"):
        features.group("nothing")


def test_the_clock_freezes_at_the_next_midnight_and_never_goes_back(tmp_path):
    space = Workspace(tmp_path)
    assert not space.is_frozen and space.now() > 1_600_000_000_000_000
    assert space.freeze_after(5 * DAY_MICROS + 1) == 6 * DAY_MICROS
    assert space.freeze_after(2 * DAY_MICROS) == 6 * DAY_MICROS
    assert space.freeze_after(6 * DAY_MICROS) == 7 * DAY_MICROS
    assert space.is_frozen and space.now() == 7 * DAY_MICROS


def test_an_atomic_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_atomically(path, b"a long first content")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
