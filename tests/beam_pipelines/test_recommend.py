"""The recommend, index and publish jobs over a real lake and store, with vectors that the tests can work out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recommend_world import AS_OF, LiteralTower, write_world

from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import index, pointers, publish, recommend
from beam_pipelines.options import Config
from models.registry import Registry
from schemas.cells import RankedList, decode_recs, encode_recs
from schemas.keys import ITEM, list_key, row_key
from schemas.workspace import DAY_MICROS
from serving.stores import Store, open_store
from serving.stores.base import Active, Cell, ListWrite
from transforms.candidates import Blend
from transforms.gate import Thresholds

USERS = {"ann": (["i1", "i2"], ["i1", "i2", "i3"]), "bob": (["i4"], ["i4"]), "new": ([], [])}
SETTINGS = recommend.RecommendSettings(blend=Blend(list_length=5))


def vectors(count: int = 12) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config.of(tmp_path / "w", quiet=True)
    config.workspace.freeze_after(AS_OF - 1)
    write_world(config, USERS, vectors(), {f"i{n}": 100.0 - n for n in range(12)}, {"i1": {"i7": 0.9}, "i4": {"i5": 0.5}},
                inactive=["i0"])
    index.run(config)
    return config


def make(config: Config, settings: recommend.RecommendSettings = SETTINGS, as_of: int = AS_OF) -> recommend.RecommendReport:
    tower = LiteralTower(str(Registry(config.workspace.models).newest().items))
    return recommend.run(config, as_of, settings=settings, handler=tower)


def lists_of(config: Config, version: str) -> dict[str, RankedList]:
    store = open_store(config.store)
    return {row: decode_recs(cell.value) for row, cell in store.scan_lists(version)}


def cells_of(store: Store) -> dict[str, list[Any]]:
    return {v: list(store.scan_lists(v)) for v in store.versions()} | {"meta": list(store.scan_features("meta", "item"))}


def test_every_user_gets_a_list_without_what_they_consumed(config: Config) -> None:
    report = make(config)
    assert (report.users, report.without_vector, report.items, report.recall) == (3, 1, 11, 1.0)
    lists = lists_of(config, report.version)
    assert set(lists) == {list_key(u, "homepage") for u in ("ann", "bob", "new", "")}
    for user, (_, consumed) in USERS.items():
        found = lists[list_key(user, "homepage")]
        assert len(found.item_ids) == 5 and not set(found.item_ids) & {*consumed, "i0"}
        assert (found.model_version, found.generated_at, found.expires_at) == ("tt-1", AS_OF, AS_OF + 7 * DAY_MICROS)
    ann = lists[list_key("ann", "homepage")]
    assert ("i7", "because_you_watched", "i1") in zip(ann.item_ids, ann.reasons, ann.source_item_ids, strict=True)
    for user in ("new", ""):
        assert list(lists[list_key(user, "homepage")].item_ids) == ["i1", "i2", "i3", "i4", "i5"]
        assert set(lists[list_key(user, "homepage")].reasons) == {"popular"}


def test_dormant_users_get_no_list_ahead(config: Config) -> None:
    lake = Lake.open(config.lake)
    rows = lake.read("user_snapshots", None, AS_OF, AS_OF + DAY_MICROS)
    days = {"ann": 30.0, "bob": 30.5, "new": None}
    at = rows.schema.get_field_index("recency_days")
    rows = rows.set_column(at, "recency_days", pa.array([days[u] for u in rows["user_id"].to_pylist()], pa.float32()))
    lake.replace_days("user_snapshots", {AS_OF: [lake.write_file("user_snapshots", rows, AS_OF)]})
    everybody = make(config, replace(SETTINGS, active_days=0.0))
    report = make(config, replace(SETTINGS, active_days=30.0))
    assert make(config).version == everybody.version  # the clock stands still
    assert everybody.dormant == 0 and (report.users, report.dormant) == (2, 1) and report.version != everybody.version
    assert set(lists_of(config, report.version)) == {list_key(u, "homepage") for u in ("ann", "new", "")}
    publish.run(config, report.version)
    config.workspace.run_clock()
    assert make(config).version == report.version  # the default


def test_the_two_tower_alone_ranks_by_dot_product(config: Config) -> None:
    report = make(config, replace(SETTINGS, blend=Blend(list_length=5, item_cf=0.0, popularity=0.0)))
    matrix = vectors()
    dots = {f"i{n}": float(matrix[n] @ matrix[4]) for n in range(1, 12) if n != 4}
    bob = lists_of(config, report.version)[list_key("bob", "homepage")]
    assert list(bob.item_ids) == sorted(dots, key=dots.__getitem__, reverse=True)[:5]


def test_titles_are_written_beside_the_lists(config: Config) -> None:
    report = make(config)
    store = open_store(config.store)
    cell = store.read_features([row_key(ITEM, "i3")], "meta", ["item"])[0]["item"]
    assert report.catalogue_changed == 12
    assert json.loads(cell.value) == {"title": "Title i3", "categories": ["c"], "price": None, "image": None,
                                      "attributes": {"year": "1999"}}


def test_a_complete_version_is_not_written_again(config: Config) -> None:
    first, again = make(config), make(config)
    assert again == replace(first, reused=True)


def test_the_version_follows_from_content_alone(config: Config, tmp_path: Path) -> None:
    version = make(config).version
    assert version.startswith("19970519T000000-")
    assert make(config, replace(SETTINGS, ttl_days=1.0)).version != version
    other = Config.of(tmp_path / "elsewhere", quiet=True)
    other.workspace.freeze_after(AS_OF - 1)
    write_world(other, USERS, vectors(), {f"i{n}": 100.0 - n for n in range(12)}, {"i1": {"i7": 0.9}, "i4": {"i5": 0.5}},
                inactive=["i0"])
    index.run(other)
    assert make(other).version == version
    write_world(other, USERS, vectors(), {f"i{n}": 100.0 - n for n in range(12)}, {"i1": {"i7": 0.9}}, inactive=["i0"])
    index.run(other)
    assert make(other).version != version


def test_when_a_snapshot_was_published_and_how_it_is_stored_decide_no_version(config: Config) -> None:
    version = make(config).version
    lake = Lake.open(config.lake)
    held = lake.read("user_snapshots")
    at = held.schema.get_field_index("published_at")
    later = held.set_column(at, held.schema.field(at), pa.array([AS_OF + 5] * len(held)).cast(held.schema.field(at).type))
    path = lake.new_path("user_snapshots", AS_OF)
    with pq.ParquetWriter(path, later.schema, compression="lz4") as writer:
        writer.write_table(later, row_group_size=2)
        writer.add_key_value_metadata({"beamrec.inputs": "of other paths"})
    lake.replace_days("user_snapshots", {AS_OF: [path]})
    assert make(config).version == version
    lake.replace_days("user_snapshots", {AS_OF: [lake.write_file("user_snapshots", later.slice(1), AS_OF)]})
    assert make(config).version != version


def test_a_recall_measured_otherwise_decides_no_version(config: Config) -> None:
    def scann(recall: float, share: float) -> Any:
        return SimpleNamespace(kind="scann", settings={"leaves": 9, "search_share": share, "recall": recall})

    lake, model = Lake.open(config.lake), Registry(config.workspace.models).newest()
    snapshot = lake.read("item_snapshots", ("as_of", "item_id", "popularity_30d", "cooccurring_items"))

    def version(index: Any) -> str:
        return recommend.version_of(recommend._manifest(AS_OF, model, index, SETTINGS, ["users"], snapshot, lake.read("items")))

    assert version(scann(0.991, 0.02)) == version(scann(0.992, 0.02)) != version(scann(0.991, 0.03))


def test_a_run_killed_before_its_manifest_gives_the_same_rows(config: Config) -> None:
    report = make(config)
    before = cells_of(open_store(config.store))
    (config.workspace.lists / f"{report.version}.json").unlink()
    again = make(config)
    assert (again.version, again.reused) == (report.version, False)
    assert cells_of(open_store(config.store)) == before
    assert not list(config.workspace.scratch.glob("recommend-*"))


@pytest.mark.parametrize(("change", "message"), [
    ({"as_of": AS_OF + DAY_MICROS}, "no user features as of 1997-05-20: run 'beamrec features"),
    ({"model_version": "tt-9"}, "no model 'tt-9'; known: tt-1"),
])
def test_missing_inputs_are_said_in_one_line(config: Config, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recommend.run(config, **{"as_of": AS_OF, **change})


def test_a_model_without_an_index_is_refused(config: Config) -> None:
    folder = Registry(config.workspace.models).newest().index
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="run 'beamrec index' first"):
        make(config)


def test_publish_makes_it_active_once(config: Config) -> None:
    report = make(config)
    first, again = publish.run(config, report.version), publish.run(config, report.version)
    assert (first.version, first.previous, first.changed) == (report.version, None, True)
    assert first.stats is not None and (first.stats.lists, first.stats.entries) == (4, 20)
    assert again.changed is False
    assert open_store(config.store).active("homepage") == Active(report.version)


def test_rollback_returns_to_the_version_before_and_not_back(config: Config) -> None:
    old = make(config).version
    new = make(config, replace(SETTINGS, ttl_days=1.0)).version
    publish.run(config, old)
    assert publish.run(config, new).previous == old
    assert pointers.rollback(config).version == old
    assert open_store(config.store).active("homepage") == Active(old)
    with pytest.raises(UserError, match="nothing to roll back to"):
        pointers.rollback(config)
    assert publish.run(config, new).previous == old


def test_rollback_before_any_publish_is_refused(config: Config) -> None:
    with pytest.raises(UserError, match="nothing is published on homepage yet"):
        pointers.rollback(config)


def test_publish_of_an_unknown_or_incomplete_version_is_refused(config: Config) -> None:
    version = make(config).version
    with pytest.raises(UserError, match=f"complete versions: {version}"):
        publish.run(config, "19970101T000000-00000000")
    with pytest.raises(UserError, match="surface homepage, not cart"):
        publish.run(config, version, surface="cart")


def _replaced(found: RankedList, **change: Any) -> bytes:
    return encode_recs(replace(found, **change))


@pytest.mark.parametrize(("change", "reason"), [
    ({"scores": np.array([1, 2, 1, 1, 1], np.float32)}, "1 lists have a score above"),
    ({"scores": np.array([np.nan] * 5, np.float32)}, "1 lists have a score that is not finite"),
    ({"model_version": "tt-2"}, "1 lists come from another model than tt-1"),
    ({"item_ids": [], "scores": np.zeros(0, np.float32), "sources": [], "reasons": [], "source_item_ids": []},
     "1 lists are empty"),
    (None, "1 lists cannot be read"),
])
def test_the_gate_keeps_what_was_served(config: Config, change: dict[str, Any] | None, reason: str) -> None:
    old = make(config).version
    publish.run(config, old)
    new = make(config, replace(SETTINGS, ttl_days=1.0)).version
    store, row = open_store(config.store), list_key("ann", "homepage")
    value = b"x" if change is None else _replaced(lists_of(config, new)[row], **change)
    store.write_lists([ListWrite(row, new, Cell(value, AS_OF))])
    with pytest.raises(KeptPrevious, match=f"still serving {old}.*{reason}"):
        publish.run(config, new)
    assert store.active("homepage") == Active(old)


def test_missing_lists_and_thin_coverage_fail_the_gate(config: Config) -> None:
    version = make(config, replace(SETTINGS, blend=Blend(list_length=2))).version
    store = open_store(config.store)
    with pytest.raises(KeptPrevious, match=r"of the items they could, wanted 95.00%"):  # two of four lists are the same
        publish.run(config, version, thresholds=Thresholds(coverage=0.95))
    path = config.workspace.lists / f"{version}.json"
    document = json.loads(path.read_text())
    document["report"] |= {"users": 9, "recall": 0.5}
    path.write_text(json.dumps(document))
    with pytest.raises(KeptPrevious, match=r"40.0% of 10 users have a list.*retrieval found 50.0%"):
        publish.run(config, version)
    assert store.active("homepage") is None


def test_old_versions_expire_but_not_what_a_rollback_needs(config: Config) -> None:
    made = []
    for day in range(5):
        as_of = AS_OF + day * DAY_MICROS
        config.workspace.freeze_after(as_of - 1)
        write_world(config, USERS, vectors(), {f"i{n}": 100.0 for n in range(12)}, {}, as_of=as_of)
        index.run(config)
        made.append(make(config, as_of=as_of).version)
        report = publish.run(config, made[-1], keep=3)
        assert report.expired == ((made[-4],) if day >= 3 else ())
    assert open_store(config.store).versions() == made[-3:]
    pointers.rollback(config)
    assert publish.run(config, made[-1], keep=1).expired == (made[-3],)
    assert open_store(config.store).versions() == made[-2:]
