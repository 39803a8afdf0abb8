"""The train job on a small lake: exported model, determinism, reuse, inference, quality beside the baselines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("tensorflow_transform", reason="needs pip install 'beamrec[train]'")

import apache_beam as beam
import model_world as world
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.util import assert_that

from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features, fitting, train
from beam_pipelines.options import Config
from beam_pipelines.runner import pipeline
from models.registry import ModelNotFoundError, Registry, read_vectors
from models.two_tower.config import TwoTowerConfig
from models.two_tower.export import Scorer
from models.two_tower.inference import UserTowerHandler, user_vectors
from schemas.tables import USER_SNAPSHOTS
from schemas.workspace import DAY_MICROS, Workspace
from transforms.examples import ITEM_SCHEMA, USER_SCHEMA

SMALL = TwoTowerConfig(dim=16, hidden=16, batch_size=64, epochs=6, learning_rate=1e-2)


def trained(folder: Path, reverse: bool = False) -> tuple[Config, train.TrainReport]:
    config = world.make(folder, reverse)
    features.backfill(config, [world.START + d * DAY_MICROS for d in (4, 8, world.DAYS)])
    return config, train.run(config, world.AS_OF, SMALL)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, train.TrainReport]:
    return trained(tmp_path_factory.mktemp("train"))


def test_the_model_folder_is_complete_and_better_than_chance(done):
    config, report = done
    model = Registry(config.workspace.models).get(report.model_version)
    ids, vectors = model.item_vectors()
    assert report.model_version.startswith("tt-2024-10-16-")
    assert len(ids) == report.items == world.TASTES * world.ITEMS_PER_TASTE - 1  # the inactive item has no vector
    assert vectors.shape == (len(ids), 16) and np.isfinite(vectors).all()
    assert set(report.metrics) >= {"two_tower", "popularity", "item_cf"}
    found = {name: report.metrics[name]["recall_20"]["mean"] for name in train.METHODS}
    assert found["two_tower"] > found["popularity"]  # tastes are there to be found
    assert not list(config.workspace.models.glob(".*"))


def test_same_events_in_another_order_give_the_same_version_and_the_same_bits(done, tmp_path):
    config, report = done
    other, again = trained(tmp_path, reverse=True)
    assert again.model_version == report.model_version
    first, second = (c.workspace.models / report.model_version for c in (config, other))
    assert (first / "items.arrow").read_bytes() == (second / "items.arrow").read_bytes()
    for name in ("metrics.json", "manifest.json"):
        assert (first / name).read_text() == (second / name).read_text()


def test_the_hour_of_a_nights_run_is_no_input(tmp_path, monkeypatch):
    prints = set()
    for hour in (1, 2):
        config = world.make(tmp_path / str(hour))
        monkeypatch.setattr(Workspace, "now", lambda self, hour=hour: world.AS_OF + hour * 3_600_000_000)
        features.backfill(config, [world.START + 6 * DAY_MICROS, world.AS_OF])
        lake = Lake.open(config.lake)
        assert lake.read("item_snapshots", ["published_at"], world.AS_OF)["published_at"][0].value == config.workspace.now()
        prints.add(fitting.make_examples(config, lake, tmp_path / f"examples-{hour}", world.AS_OF, world.AS_OF).fingerprint())
    assert len(prints) == 1


def test_training_again_finds_the_model(done):
    config, report = done
    again = train.run(config, world.AS_OF, SMALL)
    assert again.reused and again.model_version == report.model_version
    assert again.metrics == report.metrics


def test_another_setting_or_seed_is_another_version():
    made = {train.model_version(0, inputs, settings, seed) for inputs in ("a", "b") for settings in (SMALL, TwoTowerConfig())
            for seed in (1, 2)}
    assert len(made) == 8


def test_nothing_to_train_on_is_one_clear_line(done, tmp_path):
    with pytest.raises(UserError, match="no positive event"):
        train.run(done[0], world.START, SMALL)
    with pytest.raises(ModelNotFoundError, match="none yet"):
        Registry(tmp_path).get("tt-x")


def snapshot(config: Config) -> pa.RecordBatch:
    rows = Lake.open(config.lake).read("user_snapshots", start=world.AS_OF)
    return rows.sort_by("user_id").combine_chunks().to_batches()[0]


def test_beam_inference_gives_the_vectors_of_the_exported_model(done):
    config, report = done
    model = Registry(config.workspace.models).get(report.model_version)
    rows = snapshot(config)
    assert rows.num_rows == world.USERS
    expected = user_vectors(Scorer(model.saved_model), rows)
    few = user_vectors(Scorer(model.saved_model, chunk_rows=7), rows.select(["user_id", "as_of", "liked_items"]))
    assert len(few) == rows.num_rows

    def equal(found: list[pa.RecordBatch]) -> None:
        assert [b.num_rows for b in sorted(found, key=lambda b: b["user_id"][0].as_py())] == [50, 40]
        merged = pa.Table.from_batches(found).sort_by("user_id").combine_chunks()
        assert merged.drop_columns(["vector"]).equals(pa.Table.from_batches([rows]).sort_by("user_id").combine_chunks())
        got = np.array(merged["vector"].to_pylist(), np.float32)
        assert got == pytest.approx(np.array(expected.to_pylist(), np.float32), abs=1e-5)

    with pipeline(config, "test") as p:
        vectors = p | beam.Create([rows.slice(0, 50), rows.slice(50)]) | RunInference(UserTowerHandler(str(model.saved_model)))
        assert_that(vectors, equal)


def test_vectors_separate_the_tastes(done):
    config, report = done
    model = Registry(config.workspace.models).get(report.model_version)
    ids, items = read_vectors(model.items)
    users = snapshot(config)
    vectors = np.array(user_vectors(Scorer(model.saved_model), users).to_pylist(), np.float32)
    taste_of_item = np.array([int(i[1:]) // world.ITEMS_PER_TASTE for i in ids])
    taste_of_user = np.array([int(u[1:]) % world.TASTES for u in users["user_id"].to_pylist()])
    best = np.argsort(-(vectors @ items.T), 1)[:, :10]
    assert (taste_of_item[best] == taste_of_user[:, None]).mean() > 0.8  # chance is 1 in 3


FRESH = """
import json, sys, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
raw = json.load(sys.stdin)
def call(name):
    signature = loaded.signatures[name]
    wanted = signature.structured_input_signature[1]
    inputs = {k: tf.constant(raw[k], wanted[k].dtype) for k in wanted}
    return {k: v.numpy().tolist() for k, v in signature(**inputs).items()}
print(json.dumps({n: call(n) for n in ("serving_default", "item_vectors", "transform_features")}))
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in ("models", "transforms", "tensorflow_transform"))))
"""


def test_the_export_works_in_a_fresh_process_from_raw_features_alone(done, tmp_path):
    config, report = done
    model = Registry(config.workspace.models).get(report.model_version)
    users = {"liked_items": [["i1", "i2"], [], ["never seen"]], "liked_ages": [[0.5, 2.0], [], [1.0]],
             "affinity_ids": [["taste0"], [], []], "affinity_shares": [[1.0], [], []]}
    items = {"item_id": ["i1", "brand new", "i44"], "categories": [["taste0"], [], ["taste2", "taste1"]]}
    raw: dict[str, list] = {}
    nothing = float("nan")
    for schema, given in ((USER_SCHEMA, users), (ITEM_SCHEMA, items)):
        columns = {f.name: given.get(f.name, [nothing] * 3) for f in schema}
        for name, values in columns.items():
            if isinstance(values[0], list):
                raw[name] = [v for one in values for v in one]
                if name not in ("liked_ages", "affinity_shares"):
                    raw[f"{name}_splits"] = np.cumsum([0, *map(len, values)]).tolist()
            else:
                raw[name] = values
        given |= columns
    made = subprocess.run([sys.executable, "-c", FRESH, str(model.saved_model)], input=json.dumps(raw), cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr[-2000:]
    answer, modules = (json.loads(line) for line in made.stdout.splitlines())
    assert modules == []  # the graph carries everything
    scorer = Scorer(model.saved_model)
    expected = scorer.user_vectors(pa.table(users, schema=USER_SCHEMA))
    assert np.array(answer["serving_default"]["user_vector"]) == pytest.approx(expected, abs=1e-5)
    expected = scorer.item_vectors(pa.table(items, schema=ITEM_SCHEMA))
    assert np.array(answer["item_vectors"]["item_vector"]) == pytest.approx(expected, abs=1e-5)
    assert np.array(answer["item_vectors"]["item_vector"]).shape == (3, 16)
    assert answer["transform_features"]["liked_items"][1] == [-1, -1]
    known = {f.name for f in USER_SNAPSHOTS.schema}
    assert {f.name for f in USER_SCHEMA} - {"liked_ages", "affinity_ids", "affinity_shares"} <= known
