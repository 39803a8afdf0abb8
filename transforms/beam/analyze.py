"""tf.Transform over Arrow RecordBatches: analyses training examples, transforms them, writes what it learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from tensorflow_transform.tf_metadata import dataset_metadata
from tfx_bsl.tfxio import tensor_adapter, tensor_representation_util

from transforms.examples import ITEM_SCHEMA, ORDER, USER_SCHEMA
from transforms.preprocessing import preprocessing_fn, raw_feature_spec
from transforms.tf_runtime import tft_beam

RAW_SCHEMA = pa.schema([*USER_SCHEMA, *ITEM_SCHEMA])


def _as_list(kind: pa.DataType) -> pa.DataType:
    return kind if pa.types.is_list(kind) else pa.list_(kind)


TENSOR_SCHEMA = pa.schema([(f.name, _as_list(f.type)) for f in RAW_SCHEMA])
"""RAW_SCHEMA as tf.Transform wants it: every scalar a list of one."""
_INPUT_SCHEMA = pa.schema([*TENSOR_SCHEMA, *((name, pa.list_(pa.int64())) for name in ORDER)])


def to_tensor_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Example columns as lists, for tf.Transform; ORDER passes through it untouched."""
    columns = []
    for field in _INPUT_SCHEMA:
        column = batch.column(field.name)
        if not pa.types.is_list(column.type):
            column = pa.ListArray.from_arrays(pa.array(np.arange(len(column) + 1, dtype=np.int32)), column)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=_INPUT_SCHEMA)


def tensor_adapter_config() -> tensor_adapter.TensorAdapterConfig:
    """How tf.Transform reads what ``to_tensor_batch`` makes."""
    schema = dataset_metadata.DatasetMetadata.from_feature_spec(raw_feature_spec()).schema
    return tensor_adapter.TensorAdapterConfig(
        _INPUT_SCHEMA, tensor_representation_util.InferTensorRepresentationsFromMixedSchema(schema))


@dataclass(eq=False)  # Beam sets the label, and hashes by identity
class AnalyzeAndTransformExamples(beam.PTransform):
    """Paths of example files (Parquet of EXAMPLE_SCHEMA) -> paths of transformed files (Parquet), one per batch.

    A transformed file has the columns of preprocessing_fn and ORDER; its name is the hash of its rows' ORDER, so that a
    repeated bundle writes the same file again.

    Attributes:
      graph_path: folder that receives the transform graph (tft.TFTransformOutput reads it).
      output_folder: existing folder that receives the transformed files.
      temporary: a folder for tf.Transform's own files.
      batch_rows: rows per RecordBatch.
    """

    graph_path: str
    output_folder: str
    temporary: str
    batch_rows: int = 32_768

    def expand(self, paths: beam.PCollection) -> beam.PCollection:
        with tft_beam.Context(temp_dir=self.temporary, passthrough_keys=set(ORDER)):
            batches = paths | "ReadExampleColumns" >> beam.ParDo(_ReadRaw(self.batch_rows))
            (transformed, _), graph = (
                (batches, tensor_adapter_config())
                | "AnalyzeAndTransform" >> tft_beam.AnalyzeAndTransformDataset(preprocessing_fn, output_record_batches=True))
            _ = graph | "WriteTransformGraph" >> tft_beam.WriteTransformFn(self.graph_path)
            return transformed | "WriteTransformedColumns" >> beam.ParDo(_WriteColumns(self.output_folder))


class _ReadRaw(beam.DoFn):
    """Reads inside the DoFn: batches made by beam.Create would be pickled one by one with their parents."""

    def __init__(self, batch_rows: int) -> None:
        self._batch_rows = batch_rows

    def process(self, path: str) -> Iterator[pa.RecordBatch]:
        for batch in pq.ParquetFile(path).iter_batches(self._batch_rows, columns=[*RAW_SCHEMA.names, *ORDER]):
            yield to_tensor_batch(batch)


class _WriteColumns(beam.DoFn):
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: tuple[pa.RecordBatch, dict[str, Any]]) -> Iterator[str]:
        batch, passed = element
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name in ORDER:
            columns[name] = columns.get(name, passed.get(name))
        digest = xxhash.xxh3_64()
        for name in ORDER:
            digest.update(columns[name].flatten().to_numpy().tobytes())
        path = str(Path(self._folder) / f"{digest.hexdigest()}.parquet")
        pq.write_table(pa.table(columns), path, compression="lz4")
        yield path
