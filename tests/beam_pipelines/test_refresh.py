"""Lists made again for active users, over a real store, bundle and lake, with vectors that the tests can work out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recommend_world import AS_OF, LiteralTower, write_world

from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.jobs import index, publish, recommend, refresh
from beam_pipelines.options import Config
from models.registry import Registry
from schemas.cells import RankedList, decode_recs, encode_list
from schemas.features import group
from schemas.keys import USER, list_key, row_key, suppressed_group
from schemas.stream_cells import encode_suppression
from serving.stores import open_store
from serving.stores.base import Active, Cell, FeatureWrite
from serving.versions import version_for
from transforms.beam import recommend as wired
from transforms.candidates import Blend
from transforms.gate import Thresholds

HOUR = 3600
USERS = {"ann": (["i1", "i2"], ["i1", "i2", "i3"]), "bob": (["i4"], ["i4"]), "cat": (["i5"], [])}
SETTINGS = recommend.RecommendSettings(blend=Blend(list_length=5))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config.of(tmp_path / "w", quiet=True)
    config.workspace.freeze_after(AS_OF - 1)
    vectors = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    write_world(config, USERS, vectors, {f"i{n}": 100.0 - n for n in range(12)}, {"i1": {"i7": 0.9}, "i4": {"i5": 0.5}},
                inactive=["i0"])
    index.run(config)
    return config


def tower(config: Config) -> LiteralTower:
    return LiteralTower(str(Registry(config.workspace.models).newest().items))


def published(config: Config, settings: recommend.RecommendSettings = SETTINGS) -> str:
    version = recommend.run(config, AS_OF, settings=settings, handler=tower(config)).version
    publish.run(config, version, thresholds=Thresholds(coverage=0))
    return version


def touched(config: Config, user: str, items: list[str], ago_s: int = 60, suppressed: list[str] | None = None,
            weight: float = 1.0) -> None:
    """What the stream writes of a user's newest events."""
    at = AS_OF - ago_s * 1_000_000
    times = at - np.arange(len(items)) * 1_000_000
    cell = encode_list(group("user_recent").id, items, times, np.full(len(items), weight, np.float32))
    writes = [FeatureWrite(row_key(USER, user), "stream", "user_recent", Cell(cell, at))]
    writes += [FeatureWrite(row_key(USER, user), "stream", suppressed_group(i), Cell(encode_suppression(at), at))
               for i in suppressed or []]
    store = open_store(config.store)
    store.write_features(writes)
    store.close()


def lists_of(config: Config, version: str) -> dict[str, RankedList]:
    store = open_store(config.store)
    found = {row: decode_recs(cell.value) for row, cell in store.scan_lists(version)}
    store.close()
    return found


def moved(config: Config, seconds: int) -> None:
    """Lets the frozen clock go on, as a list made in the same millisecond as the one before is the same cell."""
    path = config.workspace.root / "clock.json"
    clock = json.loads(path.read_text())
    path.write_text(json.dumps({**clock, "frozen_at": clock["frozen_at"] + seconds * 1_000_000}))


def test_only_active_users_get_new_lists_and_they_know_the_hour(config: Config) -> None:
    version = published(config)
    before = lists_of(config, version)
    moved(config, 10)
    touched(config, "ann", ["i8"])
    touched(config, "bob", ["i9"], ago_s=2 * HOUR)
    touched(config, "new", ["i4"], suppressed=["i6"])
    report = refresh.run(config, HOUR, handler=tower(config))
    assert report.users == {version: 2}
    after = lists_of(config, version)
    assert set(after) - set(before) == {list_key("new", "homepage")}, "who came today has a list now"
    ann, new = after[list_key("ann", "homepage")], after[list_key("new", "homepage")]
    for user in ("bob", "cat"):
        assert after[list_key(user, "homepage")].generated_at == before[list_key(user, "homepage")].generated_at
    assert ann.generated_at == report.generated_at > before[list_key("ann", "homepage")].generated_at
    assert ann.model_version == "tt-1" and ann.expires_at == report.expires_at
    assert "i6" not in new.item_ids and len(new.item_ids) == 5
    assert new.item_ids[0] == "i4" or new.source_item_ids[0] == "i4" or "i5" in new.item_ids


def test_what_was_clicked_or_bought_in_the_hour_is_gone_from_the_new_list(config: Config) -> None:
    version = published(config)
    moved(config, 10)
    gone = lists_of(config, version)[list_key("cat", "homepage")].item_ids[:2]
    touched(config, "cat", [gone[0]], weight=2.0, suppressed=[gone[1]])
    refresh.run(config, HOUR, handler=tower(config))
    assert not set(gone) & set(lists_of(config, version)[list_key("cat", "homepage")].item_ids)


def test_the_same_refresh_twice_writes_the_same_rows(config: Config) -> None:
    version = published(config)
    moved(config, 10)
    touched(config, "ann", ["i8"])
    touched(config, "cat", ["i2"])
    store = open_store(config.store)
    refresh.run(config, HOUR, handler=tower(config))
    first = list(store.scan_lists(version))
    refresh.run(config, HOUR, handler=tower(config))
    assert list(store.scan_lists(version)) == first
    store.close()


def test_users_of_the_challenger_get_lists_of_the_challenger(config: Config) -> None:
    champion = published(config)
    challenger = recommend.run(config, AS_OF, settings=recommend.RecommendSettings(blend=Blend(list_length=4)),
                               handler=tower(config)).version
    publish.run(config, challenger, thresholds=Thresholds(coverage=0), canary=50)
    active = Active(champion, challenger, 50)
    users = [f"user {n}" for n in range(20)]
    moved(config, 10)
    for user in users:
        touched(config, user, ["i4"])
    report = refresh.run(config, HOUR, handler=tower(config))
    assert sum(report.users.values()) == 20 and min(report.users.values()) > 3
    for version, length in ((champion, 5), (challenger, 4)):
        made = lists_of(config, version)
        mine = {u for u in users if list_key(u, "homepage") in made}
        assert mine == {u for u in users if version_for(active, u) == version}
        assert all(len(made[list_key(u, "homepage")].item_ids) == length for u in mine), "made as its version was"


def test_nobody_active_changes_nothing(config: Config) -> None:
    version = published(config)
    before = lists_of(config, version)
    assert refresh.run(config, HOUR, handler=tower(config)).users == {}
    assert str(lists_of(config, version)) == str(before)


def test_what_is_missing_is_said(config: Config) -> None:
    with pytest.raises(UserError, match="nothing is published on homepage"):
        refresh.run(config, HOUR)
    version = published(config)
    touched(config, "ann", ["i8"])
    (config.workspace.bundles / version / "manifest.json").unlink()
    with pytest.raises(UserError, match="its bundle cannot be read"):
        refresh.run(config, HOUR, handler=tower(config))


def test_lists_that_are_not_fit_are_not_written(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    version = published(config)
    before = lists_of(config, version)
    moved(config, 10)
    touched(config, "ann", ["i8"])
    def of_another_model(user_ids, lists, catalogue, stamp):  # type: ignore[no-untyped-def]
        return packed(user_ids, lists, catalogue, wired.Stamp(stamp.surface, "other", stamp.generated_at, stamp.expires_at))

    packed = wired.pack
    monkeypatch.setattr(wired, "pack", of_another_model)
    with pytest.raises(KeptPrevious, match="1 lists were not fit"):
        refresh.run(config, HOUR, handler=tower(config))
    assert str(lists_of(config, version)) == str(before)
