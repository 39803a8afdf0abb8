"""The contract of an item index, over every implementation; brute force is the oracle."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.inference import index as item_index
from models.inference.index import IndexFormatError, IndexVersionError
from transforms.topk import exact_top_k

KINDS = ("exact", "scann")


def clustered(count: int, dimensions: int, clusters: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(clusters, dimensions))
    return (centres[rng.integers(0, clusters, count)] + 0.4 * rng.normal(size=(count, dimensions))).astype(np.float32)


def ids_of(count: int) -> pa.StringArray:
    return pa.array([f"i{n}" for n in range(count)])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "scann" and importlib.util.find_spec("scann") is None:
        pytest.skip("ScaNN is not installed: pip install 'beamrec[train]'")
    return str(request.param)


@pytest.fixture
def index(kind: str) -> item_index.ItemIndex:
    return item_index.build(ids_of(2000), clustered(2000, 17, 20), "tt-a", kind)  # type: ignore[arg-type]


def test_answers_are_dot_products_best_first(index: item_index.ItemIndex) -> None:
    queries = clustered(50, 17, 20, seed=1)
    positions, scores = index.search(queries, 10, "tt-a")
    assert positions.dtype == np.int32 and scores.dtype == np.float32 and positions.shape == (50, 10)
    dots = np.einsum("nkd,nd->nk", index.vectors[positions], queries)
    np.testing.assert_allclose(scores, dots, rtol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in positions.tolist())


def test_recall_against_brute_force(index: item_index.ItemIndex) -> None:
    queries = clustered(200, 17, 20, seed=1)
    truth = np.argsort(-(queries @ index.vectors.T), axis=1)[:, :100]
    found, _ = index.search(queries, 100, "tt-a")
    assert np.mean([len(set(t) & set(f)) / 100 for t, f in zip(truth.tolist(), found.tolist(), strict=True)]) >= 0.99


def test_refuses_queries_of_another_model(index: item_index.ItemIndex) -> None:
    with pytest.raises(IndexVersionError, match="built from model tt-a"):
        index.search(np.zeros((1, 17), np.float32), 5, "tt-b")


def test_refuses_queries_of_another_dimension(index: item_index.ItemIndex) -> None:
    with pytest.raises(ValueError, match="17 dimensions"):
        index.search(np.zeros((1, 16), np.float32), 5, "tt-a")


def test_asking_for_more_than_there_is_pads_the_rows(kind: str) -> None:
    small = item_index.build(ids_of(30), clustered(30, 4, 3), "tt-a", kind)  # type: ignore[arg-type]
    positions, scores = small.search(clustered(3, 4, 3, seed=2), 50, "tt-a")
    assert positions.shape == (3, 50)
    for row, values in zip(positions, scores, strict=True):
        there = row >= 0
        assert len(set(row[there].tolist())) == there.sum() <= 30
        assert np.isfinite(values[there]).all() and np.isneginf(values[~there]).all()
        assert not there[there.sum() :].any()


def test_no_queries_give_no_rows(index: item_index.ItemIndex) -> None:
    positions, scores = index.search(np.zeros((0, 17), np.float32), 5, "tt-a")
    assert positions.shape == scores.shape == (0, 5)


def test_a_saved_index_answers_the_same(index: item_index.ItemIndex, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index.save(folder)
    index.save(folder)  # replaces what is there
    moved = folder.rename(folder.with_name("moved"))
    again = item_index.load(moved)
    queries = clustered(20, 17, 20, seed=3)
    for one, other in zip(index.search(queries, 20, "tt-a"), again.search(queries, 20, "tt-a"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.item_ids.equals(index.item_ids) and (again.kind, again.model_version) == (index.kind, "tt-a")
    assert [p.name for p in moved.parent.iterdir()] == ["moved"]


def test_two_builds_of_20_000_vectors_answer_the_same() -> None:
    if importlib.util.find_spec("scann") is None:
        pytest.skip("ScaNN is not installed: pip install 'beamrec[train]'")
    vectors, queries = clustered(20_000, 32, 200), clustered(300, 32, 200, seed=1)
    one, other = (item_index.build(ids_of(20_000), vectors, "tt-a", "scann", queries) for _ in range(2))
    for a, b in zip(one.search(queries, 150, "tt-a"), other.search(queries, 150, "tt-a"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.settings == other.settings  # type: ignore[attr-defined]


def test_calibration_reaches_the_recall_on_the_queries_it_is_given(kind: str) -> None:
    vectors = clustered(5000, 16, 50)
    queries = np.random.default_rng(3).normal(size=(300, 16)).astype(np.float32)  # unlike any item: harder to answer
    built = item_index.build(ids_of(5000), vectors, "tt-a", kind, queries)  # type: ignore[arg-type]
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :100]
    found, _ = built.search(queries, 150, "tt-a")
    assert np.mean([len(set(t) & set(f)) / 100 for t, f in zip(truth.tolist(), found.tolist(), strict=True)]) >= 0.99


def test_kind_follows_the_size_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_index, "EXACT_UP_TO", 100)
    assert item_index.build(ids_of(100), clustered(100, 4, 3), "tt-a").kind == "exact"
    assert item_index.build(ids_of(101), clustered(101, 4, 3), "tt-a").kind == "scann"


@pytest.mark.parametrize(("ids", "vectors", "match"), [
    (["a"], np.zeros((2, 3)), "1 ids"),
    ([], np.zeros((0, 3)), "0 ids"),
    (["a", "a"], np.zeros((2, 3)), "repeated"),
    (["a", "b"], np.array([[1.0], [np.nan]]), "finite"),
])
def test_refuses_vectors_that_make_no_index(ids: list[str], vectors: np.ndarray, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        item_index.build(pa.array(ids, pa.string()), vectors, "tt-a")


def test_a_folder_without_a_readable_index_is_said_to_be_one(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(IndexFormatError, match="holds no index"):
        item_index.load(folder)
    item_index.build(ids_of(3), clustered(3, 2, 1), "tt-a").save(folder)
    (folder / "items.arrow").write_bytes(b"broken")
    with pytest.raises(IndexFormatError, match="broken"):
        item_index.load(folder)
    (folder / "manifest.json").write_text(json.dumps({"layout": 99}))
    with pytest.raises(IndexFormatError, match="layout 99"):
        item_index.load(folder)


@pytest.mark.parametrize(("rows", "items", "k"), [(7, 50, 5), (3, 4, 4), (2, 3, 9), (1, 1, 1), (5, 0, 3)])
def test_exact_top_k_is_a_full_sort_with_ties_by_position(rows: int, items: int, k: int) -> None:
    rng = np.random.default_rng(5)
    queries = rng.integers(-2, 3, (rows, 2)).astype(np.float32)  # small integers: many ties
    vectors = rng.integers(-2, 3, (items, 2)).astype(np.float32)
    positions, scores = exact_top_k(queries, vectors, k)
    for row in range(rows):
        dots = (vectors @ queries[row]).tolist()
        order = sorted(range(items), key=lambda i: (-dots[i], i))[:k]
        assert positions[row].tolist() == order + [-1] * (k - len(order))
        assert scores[row, : len(order)].tolist() == [dots[i] for i in order]


@pytest.mark.slow
def test_recall_on_300_000_items_of_64_dimensions(capsys: pytest.CaptureFixture[str]) -> None:
    built = item_index.build(ids_of(300_000), clustered(300_000, 64, 3000), "tt-a")
    queries = clustered(500, 64, 3000, seed=1)
    truth, _ = exact_top_k(queries, built.vectors, 100)
    found, _ = built.search(queries, 100, "tt-a")
    recall = np.mean([len(set(t) & set(f)) / 100 for t, f in zip(truth.tolist(), found.tolist(), strict=True)])
    with capsys.disabled():
        print(f"\n{built.kind} recall@100 on 300,000 x 64: {recall:.4f}")
    assert built.kind == "scann" and recall >= 0.99
