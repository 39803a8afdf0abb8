"""Arrow IPC as the coder of RecordBatches: what crosses a shuffle is the rows themselves, never a slice's whole parent."""

from __future__ import annotations

import pyarrow as pa
from apache_beam import coders

from transforms.beam.stream.wire import pack, unpack


class RecordBatchCoder(coders.Coder):  # type: ignore[misc]
    """RecordBatches as Arrow IPC streams."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """See Coder."""
        return pack(value)

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """See Coder."""
        return unpack(encoded)

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """See Coder: without encoding it."""
        return int(value.get_total_buffer_size())

    def is_deterministic(self) -> bool:
        """See Coder."""
        return False

    def to_type_hint(self) -> type:
        """See Coder."""
        return pa.RecordBatch  # type: ignore[no-any-return]


def register() -> None:
    """Makes it the coder of pa.RecordBatch in pipelines built from now on."""
    coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
