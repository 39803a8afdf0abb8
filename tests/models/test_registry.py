"""Model versions are complete or absent, and vectors come back to the bit."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from models.registry import ModelNotFoundError, Registry, read_vectors, write_vectors


def test_a_version_appears_only_when_it_is_whole(tmp_path):
    registry = Registry(tmp_path / "models")
    with pytest.raises(RuntimeError, match="killed"), registry.writing("tt-1") as model:
        (model.root / "manifest.json").write_text("{}")
        assert registry.versions() == [] and not registry.has("tt-1")
        raise RuntimeError("killed")
    assert registry.versions() == []
    with pytest.raises(ValueError, match="without manifest"), registry.writing("tt-1"):
        pass
    (tmp_path / "models" / ".tt-1.writing").mkdir()  # left behind by a kill
    (tmp_path / "models" / ".tt-1.writing" / "stale").write_text("")
    with registry.writing("tt-1") as model:
        (model.root / "manifest.json").write_text('{"as_of": 1}')
    assert registry.versions() == ["tt-1"]
    assert registry.get("tt-1").manifest() == {"as_of": 1}
    assert not (registry.get("tt-1").root / "stale").exists()


def test_the_newest_version_is_that_of_the_latest_day_and_of_one_day_the_last_written(tmp_path):
    registry = Registry(tmp_path)
    with pytest.raises(ModelNotFoundError, match="beamrec train"):
        registry.newest()
    for order, (version, as_of) in enumerate({"tt-b-march": 3, "tt-z-february": 2, "tt-a-march": 3}.items()):
        with registry.writing(version) as model:
            (model.root / "manifest.json").write_text(json.dumps({"as_of": as_of}))
        os.utime(tmp_path / version / "manifest.json", ns=(order, order))
    assert registry.versions() == ["tt-z-february", "tt-b-march", "tt-a-march"]
    assert registry.newest().version == "tt-a-march"
    with pytest.raises(ModelNotFoundError, match="tt-z-february"):
        registry.get("tt-2024-01-01-00000000")


def test_vectors_come_back_to_the_bit(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    write_vectors(tmp_path / "items.arrow", list("abcdé"), vectors)
    ids, found = read_vectors(tmp_path / "items.arrow")
    assert ids == list("abcdé") and np.array_equal(found, vectors) and found.dtype == np.float32
