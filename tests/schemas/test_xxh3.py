"""The array hashes equal the xxhash library, length by length."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from schemas import keys
from schemas.xxh3 import MAX_BYTES, fixed_strings, hash64_strings, import_event_ids, xxh3_64, xxh3_128_hex


@pytest.mark.parametrize("length", range(MAX_BYTES + 1))
def test_every_length_equals_the_library(length: int) -> None:
    strings = np.random.default_rng(length).integers(0, 256, (50, length), dtype=np.uint8)
    rows = [row.tobytes() for row in strings]
    assert xxh3_64(strings).tolist() == [xxhash.xxh3_64_intdigest(row) for row in rows]
    assert [row.tobytes().decode() for row in xxh3_128_hex(strings)] == [xxhash.xxh3_128_hexdigest(row) for row in rows]


def test_longer_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 128 bytes"):
        xxh3_64(np.zeros((1, 129), np.uint8))


@given(st.lists(st.none() | st.text(max_size=150), max_size=60), st.integers(0, 3))
def test_a_column_hashes_value_by_value(values: list[str | None], skip: int) -> None:
    column = pa.array(values, pa.string())[skip:]  # a slice: offsets do not start at 0
    assert hash64_strings(column).tolist() == [keys.hash64(v or "") for v in values[skip:]]


def test_a_large_column_takes_the_array_path() -> None:
    values = [f"user-{i % 977}-{'x' * (i % 40)}" for i in range(5_000)]
    assert hash64_strings(pa.array(values)).tolist() == [keys.hash64(v) for v in values]


@given(st.text(max_size=140), st.lists(st.integers(0, 10**12), max_size=30))
def test_import_ids_equal_the_single_form(source: str, rows: list[int]) -> None:
    ids = fixed_strings(import_event_ids(source, np.array(rows, np.int64)))
    assert ids.to_pylist() == [keys.import_event_id(source, row) for row in rows]
