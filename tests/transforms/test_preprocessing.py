"""preprocessing_fn: raw rows in, literal columns out, analysed by Beam over Parquet files."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("tensorflow_transform", reason="needs pip install 'beamrec[train]'")

from beam_pipelines.options import Config
from beam_pipelines.runner import pipeline
from models.two_tower.data import read_columns
from models.two_tower.runtime import tf
from transforms import preprocessing
from transforms.beam.analyze import AnalyzeAndTransformExamples
from transforms.examples import EXAMPLE_SCHEMA

NAN = float("nan")


def rows() -> pa.Table:
    """Six examples: item a thrice, b twice, c once; price and history vary, statistics are partly missing."""
    columns: dict[str, list] = {name: [NAN] * 6 for name in EXAMPLE_SCHEMA.names}
    columns |= {
        "user_id": list("uuvvww"), "occurred_at": [10, 20, 30, 40, 50, 60], "event_hash": [1, 2, 3, 4, 5, 6],
        "liked_items": [[], ["a"], ["b", "a"], ["never", "c"], [], []],
        "liked_ages": [[], [0.01], [1.0, 400.0], [0.2, 2.0], [], []],
        "affinity_ids": [["x"], [], [], [], [], []], "affinity_shares": [[0.5], [], [], [], [], []],
        "segment": [0.0, 1.0, 2.0, 3.0, NAN, NAN], "active_days_30d": [0.0, 1.0, 1000.0, NAN, NAN, NAN],
        "item_id": ["a", "b", "a", "c", "b", "a"], "categories": [["x"], ["x", "y"], ["x"], [], ["x", "y"], ["x"]],
        "popularity_share_30d": [0.0, 0.0, 0.01, 0.01, 0.0, 0.01]}
    return pa.table(columns, schema=EXAMPLE_SCHEMA)


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("tft")
    (folder / "out").mkdir()
    table = rows()
    pq.write_table(table.slice(3), folder / "a.parquet")  # files out of order, and two batches in one of them
    pq.write_table(table.slice(0, 3), folder / "b.parquet")
    with pipeline(Config.of(folder), "test") as p:
        paths = p | beam.Create([str(folder / "a.parquet"), str(folder / "b.parquet")])
        _ = paths | AnalyzeAndTransformExamples(str(folder / "graph"), str(folder / "out"), str(folder / "tmp"), batch_rows=2)
    return folder / "graph", sorted(str(f) for f in (folder / "out").glob("*.parquet"))


def test_rows_come_out_in_order_with_literal_values(transformed):
    _, files = transformed
    found = read_columns(files)
    assert len(files) == 4
    assert found["item_id"].tolist() == [0, 1, 0, 2, 1, 0]  # most frequent first
    assert found["liked_items"][:3].tolist() == [[-1, -1], [0, -1], [1, 0]]
    assert found["liked_items"][3, 1] == 2
    assert 3 <= found["liked_items"][3, 0] < 3 + preprocessing.ITEM_OOV  # an unknown id has a hash bucket
    assert found["liked_ages"].tolist() == [[-1, -1], [1, -1], [5, 11], [3, 5], [-1, -1], [-1, -1]]
    assert found["categories"].tolist() == [[0, -1], [0, 1], [0, -1], [-1, -1], [0, 1], [0, -1]]
    assert found["affinity_ids"][0].tolist() == [0]
    assert found["affinity_shares"][:, 0].tolist() == [0.5, 0, 0, 0, 0, 0]
    assert found["segment"].tolist() == [1, 2, 3, 4, 0, 0]  # 0 is missing
    assert found["active_days_30d"].tolist() == [1, 2, 12, 0, 0, 0]
    assert found["popularity_share_30d"].tolist() == pytest.approx([-1, -1, 1, 1, -1, 1])


def test_a_users_columns_alone_can_be_transformed_and_padding_does_not_matter(transformed):
    import tensorflow_transform as tft

    graph, _ = transformed
    layer = tft.TFTransformOutput(str(graph)).transform_features_layer()
    done = layer({"liked_items": tf.sparse.from_dense([["c", "a"], ["b", ""]]), "segment": tf.constant([NAN, 3.0])})
    assert set(done) == {"liked_items", "segment"}
    assert tf.sparse.to_dense(done["liked_items"], -1).numpy().tolist() == [[2, 0], [1, -1]]
    assert done["segment"].numpy().tolist() == [0, 4]


def test_every_bucket_fits_its_embedding_table(transformed):
    _, files = transformed
    found = read_columns(files)
    for name in (*preprocessing.USER_BUCKETS, *preprocessing.ITEM_BUCKETS):
        bounds = {**preprocessing.USER_BOUNDS, **preprocessing.ITEM_BOUNDS}.get(name)
        size = preprocessing.QUANTILES if bounds is None else len(bounds) + 1
        assert found[name].min() >= 0 and found[name].max() < size, name
    assert np.isfinite(found["popularity_share_30d"]).all()
