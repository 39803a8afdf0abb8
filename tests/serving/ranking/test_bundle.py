"""A bundle: what was written is what is read, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_world import make_bundle

from models.inference.bundle import Bundle, BundleError
from schemas.keys import hash64


def test_positions_of_known_and_unknown_ids(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "v1", extra=["ünï"])
    ids = bundle.item_ids.to_pylist()
    assert bundle.positions(ids).tolist() == list(range(61))
    assert bundle.positions(["nobody", "i3", "", "i3", "ünï"]).tolist() == [-1, ids.index("i3"), -1, ids.index("i3"),
                                                                           ids.index("ünï")]
    assert bundle.positions([]).tolist() == []
    assert bundle.ids(bundle.positions(["i7", "i2"])) == ["i7", "i2"]
    assert int(bundle.hashes[5]) == hash64(ids[5])


def test_what_an_item_is(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "v1", inactive=["i6"])
    at = int(bundle.positions(["i5"])[0])
    assert json.loads(bundle.metadata(at)) == {
        "title": "big thing red i5", "image": None, "price": 6.0, "category": "c1", "categories": ["c1"],
        "attributes": {"year": "1995"}}
    assert bundle.categories_of(at) == ["c1"] and bundle.category_code["c1"] == int(bundle.category_codes[at])
    near, strengths = bundle.neighbours_of(at)
    assert bundle.ids(near) == ["i9", "i13", "i17"] and strengths.tolist() == [0.5, 0.25, np.float32(0.5 / 3)]
    assert (bundle.impressions[at], bundle.age_days[at], bool(bundle.active[at])) == (50.0, 5.0, True)
    assert not bundle.active[bundle.positions(["i6"])[0]]


def test_unit_vectors(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "v1")
    rows = bundle.units(np.array([0, 59, -1, 20], np.int32))  # the 59th has no vector
    assert np.allclose(np.linalg.norm(rows, axis=1), [1, 0, 0, 1])
    assert np.allclose(rows[3] * np.linalg.norm(bundle.vectors[20]), bundle.vectors[20], atol=1e-6)


def test_popular_lists_of_segments(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "v1", segments={"power": ["i9", "i4"]}, inactive=["i0"])
    assert bundle.ids(bundle.popular("power")[0]) == ["i9", "i4"]
    for segment in (None, "", "dormant"):
        positions, scores = bundle.popular(segment)
        assert bundle.ids(positions)[:3] == ["i1", "i2", "i3"] and (np.diff(scores) <= 0).all()


def test_canaries_and_the_index(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "v1", inactive=["i2"])
    bundle.load_index()
    assert bundle.canary_recall() == 1.0
    assert bundle.positions(["i2"])[0] not in bundle.canary_answers
    assert bundle.index.model_version == "m1"


def test_versions_that_differ_are_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "v1")
    path = tmp_path / "v1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "embedding_version": "m0"}))
    with pytest.raises(BundleError, match="mixes versions: model m1, index m1, embeddings m0"):
        Bundle.open(tmp_path / "v1")


@pytest.mark.parametrize("name", ["manifest.json", "ids.arrow", "table.npy", "metadata.json", "index"])
def test_a_folder_that_lacks_a_part_is_refused(tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path / "v1")
    path = tmp_path / "v1" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(BundleError, match="v1 holds no readable bundle"):
        Bundle.open(tmp_path / "v1")


def test_the_index_outlives_its_model(tmp_path: Path) -> None:
    make_bundle(tmp_path / "v1")
    shutil.rmtree(tmp_path / "v1-index")
    assert Bundle.open(tmp_path / "v1").canary_recall() == 1.0


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "v1")

    def fails(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("models.inference.bundle_write.link_tree", fails)
        with pytest.raises(OSError, match="no room"):
            make_bundle(tmp_path / "v1", items=30)
    assert Bundle.open(tmp_path / "v1").manifest.items == 60
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_same_content_writes_the_same_bytes(tmp_path: Path) -> None:
    make_bundle(tmp_path / "a" / "v1")
    make_bundle(tmp_path / "b" / "v1")
    for path in sorted((tmp_path / "a" / "v1").rglob("*")):
        if path.is_file() and os.path.basename(path) != "weights.npz":
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path
