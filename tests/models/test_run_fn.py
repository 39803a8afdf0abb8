"""run_fn as TFX calls it: a number of steps, files to evaluate on, an export in the folder asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_transform", reason="needs pip install 'beamrec[train]'")

import apache_beam as beam
import model_world as world
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features, fitting
from beam_pipelines.runner import pipeline
from models.inference.user_vector import UserTower
from models.two_tower import weights
from models.two_tower.config import TwoTowerConfig
from models.two_tower.export import Scorer
from models.two_tower.trainer import LocalFnArgs, run_fn
from schemas.workspace import DAY_MICROS
from transforms.beam.analyze import AnalyzeAndTransformExamples
from transforms.examples import USER_SCHEMA, USER_STATS, item_rows

SETTINGS = TwoTowerConfig(dim=8, hidden=8, batch_size=64, learning_rate=1e-2)


@dataclass(frozen=True)
class Prepared:
    """Transformed examples, their graph, and raw item columns to ask the export about."""

    files: list[str]
    graph: str
    items: Any

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return SETTINGS.epoch_steps(sum(pq.read_metadata(f).num_rows for f in self.files))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("run_fn")
    config = world.make(folder / "w")
    features.backfill(config, [world.START + 6 * DAY_MICROS])
    examples = fitting.make_examples(config, Lake.open(config.lake), folder / "examples", world.AS_OF, world.AS_OF)
    (folder / "transformed").mkdir()
    with pipeline(config, "transform") as p:
        _ = p | beam.Create(examples.first, reshuffle=False) | AnalyzeAndTransformExamples(
            str(folder / "graph"), str(folder / "transformed"), str(folder / "tft"))
    catalogue = pq.read_table(examples.catalogue)
    items = item_rows(catalogue, fitting.newest_only(pq.read_table(examples.item_snapshots), world.AS_OF), catalogue["item_id"],
                      np.full(catalogue.num_rows, world.AS_OF))
    return Prepared(sorted(str(f) for f in (folder / "transformed").glob("*.parquet")), str(folder / "graph"), items)


def run(prepared: Prepared, folder: Path, epochs: int, max_steps: int = 4_000,
        **args: Any) -> tuple[dict[str, list[float]], np.ndarray]:
    """The history, and the item vectors of the export."""
    custom = {"config": replace(SETTINGS, epochs=epochs, max_steps=max_steps), "seed": 3}
    history = run_fn(LocalFnArgs(prepared.files, prepared.graph, str(folder), custom_config=custom, **args))
    return history, Scorer(folder).item_vectors(prepared.items)


def test_train_steps_end_the_training_where_epochs_would(prepared: Prepared, tmp_path: Path) -> None:
    by_epochs, wanted = run(prepared, tmp_path / "a", epochs=2)
    by_steps, found = run(prepared, tmp_path / "b", epochs=9, train_steps=2 * prepared.steps)
    assert by_steps == by_epochs and np.array_equal(found, wanted)
    fewer, part = run(prepared, tmp_path / "c", epochs=9, train_steps=2 * prepared.steps - 3)
    assert len(fewer["loss"]) == 2 and fewer["loss"][0] == by_epochs["loss"][0] and not np.array_equal(part, wanted)


def test_many_examples_are_passed_over_less_often_but_once_at_least(prepared: Prepared, tmp_path: Path) -> None:
    once, wanted = run(prepared, tmp_path / "a", epochs=1)
    capped, found = run(prepared, tmp_path / "b", epochs=5, max_steps=2)
    assert capped == once and np.array_equal(found, wanted)
    by_default = TwoTowerConfig()
    assert by_default.steps(50_000) == 8 * 97  # 97 whole batches of 512
    assert by_default.steps(1_000_000) == 4_000
    assert by_default.steps(25_000_000) == 25_000_000 // 512
    assert (by_default.steps(10), by_default.steps(1)) == (8, 8)


def test_eval_files_are_measured_after_each_epoch_and_teach_nothing(prepared: Prepared, tmp_path: Path) -> None:
    alone, wanted = run(prepared, tmp_path / "a", epochs=3)
    told: list[tuple[int, float]] = []
    measured, found = run(prepared, tmp_path / "b", epochs=3, eval_files=prepared.files[:1])
    assert np.array_equal(found, wanted) and measured["loss"] == alone["loss"] and "eval_loss" not in alone
    assert len(measured["eval_loss"]) == 3 and measured["eval_loss"][-1] < measured["eval_loss"][0]
    history = run_fn(LocalFnArgs(prepared.files, prepared.graph, str(tmp_path / "c"), custom_config={
        "config": replace(SETTINGS, epochs=2), "seed": 3, "on_epoch": lambda *epoch: told.append(epoch)}))
    assert told == list(enumerate(history["loss"]))


def test_no_examples_are_one_clear_error(prepared: Prepared, tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(prepared.files[0]).slice(0, 0), empty)
    with pytest.raises(ValueError, match="no training examples"):
        run_fn(LocalFnArgs([str(empty)], prepared.graph, str(tmp_path / "model")))
    assert not (tmp_path / "model").exists()


def test_the_user_tower_in_numpy_gives_the_exports_vectors(prepared: Prepared, tmp_path: Path) -> None:
    run(prepared, tmp_path / "model", epochs=2)
    weights.write_tower(tmp_path / "model", tmp_path / "tower")
    tower = UserTower.open(tmp_path / "tower")
    items = pa.concat_arrays([pa.array([f"i{k}" for k in range(45)]), pa.array(["never seen", "ünï", ""])])
    categories = pa.array(["taste0", "taste1", "taste2", "unknown taste"])
    rows = [weights.rows_of(tmp_path / "tower", name, ids, len(table)) for name, ids, table in
            (("items", items, tower.items), ("categories", categories, tower.categories))]
    read = weights.read_tower(tmp_path / "model", items, categories)  # asks the model itself, hash buckets included
    assert np.array_equal(rows[0], read.item_rows) and np.array_equal(rows[1], read.category_rows)
    tower = replace(tower, item_rows=rows[0], category_rows=rows[1])

    rng = np.random.default_rng(5)
    users, mine = [], []
    for _ in range(60):
        liked = rng.integers(0, len(items), rng.integers(0, 30))
        ages = rng.exponential(20, len(liked)).astype(np.float32)
        tastes = rng.permutation(len(categories))[: rng.integers(0, 5)]
        shares = rng.random(len(tastes)).astype(np.float32)
        stats = {name: float("nan") if rng.random() < 0.2 else float(rng.integers(0, 40)) for name in USER_STATS}
        users.append({"liked_items": items.take(pa.array(liked)).to_pylist(), "liked_ages": ages.tolist(),
                      "affinity_ids": categories.take(pa.array(tastes)).to_pylist(),
                      "affinity_shares": shares.tolist(), **stats})
        mine.append(tower.vector(liked.astype(np.int32), ages, tastes.astype(np.int32), shares, stats))
    theirs = Scorer(tmp_path / "model").user_vectors(pa.Table.from_pylist(users, schema=USER_SCHEMA))
    assert np.abs(np.array(mine) - theirs).max() < 1e-5


def test_bucket_bounds_are_found_to_the_last_bit() -> None:
    bounds = np.array([-3.5, 0.0, 1e-20, 0.1, 0.1, 7e30], np.float32)
    found = weights.bucket_bounds(lambda values: np.searchsorted(bounds, values, side="right"), 9)
    assert found.tolist() == bounds.tolist()
