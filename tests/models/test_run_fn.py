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
import pyarrow.parquet as pq

from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features, fitting
from beam_pipelines.runner import pipeline
from models.two_tower.config import TwoTowerConfig
from models.two_tower.export import Scorer
from models.two_tower.trainer import LocalFnArgs, run_fn
from schemas.workspace import DAY_MICROS
from transforms.beam.analyze import AnalyzeAndTransformExamples
from transforms.examples import item_rows

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
