"""Many lists packed at once are the bytes of each packed alone."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cells import REASONS, SOURCES, RankedList, encode_recs
from transforms.packing import encode_lists


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(0, 6), width=st.integers(0, 7),
       ids=st.lists(st.text(max_size=5), min_size=1, max_size=9, unique=True), sliced=st.booleans())
def test_encode_lists_is_encode_recs_row_by_row(seed: int, rows: int, width: int, ids: list[str], sliced: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (rows, width)
    catalogue = pa.array(["before", *ids], pa.string()).slice(1) if sliced else pa.array(ids, pa.string())
    counts = rng.integers(0, width + 1, rows).astype(np.int32)
    positions, because = rng.integers(0, len(ids), shape, np.int32), rng.integers(-1, len(ids), shape, np.int32)
    scores = rng.random(shape).astype(np.float32)
    sources = rng.integers(0, len(SOURCES), shape, np.uint8)
    reasons = rng.integers(0, len(REASONS), shape, np.uint8)
    positions[np.arange(width) >= counts[:, None]] = -1
    packed = encode_lists(catalogue, counts, positions, scores, sources, reasons, because, "modèle", 7, 9)
    assert packed.to_pylist() == [
        encode_recs(RankedList(
            [ids[p] for p in positions[r, :n]], scores[r, :n], [SOURCES[c] for c in sources[r, :n]],
            [REASONS[c] for c in reasons[r, :n]], ["" if p < 0 else ids[p] for p in because[r, :n]], "modèle", 7, 9))
        for r, n in enumerate(counts.tolist())]
