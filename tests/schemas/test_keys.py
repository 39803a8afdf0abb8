"""Keys: known answers (they are stored for ever), nesting of buckets, null ids."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from schemas import keys


def test_known_answers():
    assert keys.hash64("") == 0x2D06800538D394C2  # XXH3-64 of nothing, seed 0
    assert keys.row_key("u", "196") == f"{xxhash.xxh3_64_intdigest(b'196') >> 56:02x}#u#196"
    assert keys.list_key("196", "homepage").endswith("#196#homepage")
    assert len(keys.import_event_id("u.data", 1)) == 32
    assert keys.import_event_id("a", 11) != keys.import_event_id("a1", 1)


@given(st.lists(st.one_of(st.none(), st.text()), max_size=50), st.integers(1, 3))
def test_a_column_hashes_like_its_values(values, chunks):
    pieces = [values[i::chunks] for i in range(chunks)]
    column = pa.chunked_array([pa.array(p, pa.string()) for p in pieces], pa.string())
    expected = [keys.hash64(v or "") for p in pieces for v in p]
    assert keys.hash64_column(column).tolist() == expected
    flat = pa.array([v for p in pieces for v in p], pa.string())
    assert keys.hash64_column(flat.dictionary_encode()).tolist() == expected


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_buckets_nest_and_follow_the_row_key_prefix(values):
    hashes = np.array(values, np.uint64)
    fine, coarse = keys.bucket_of(hashes, 64), keys.bucket_of(hashes, 8)
    assert (fine // 8 == coarse).all()
    assert (keys.bucket_of(hashes, 256) == (hashes >> np.uint64(56)).astype(np.int32)).all()
    assert (keys.bucket_of(hashes, 1) == 0).all()


@pytest.mark.parametrize("buckets", [0, 3, 12, -8, 131072])
def test_other_bucket_counts_are_refused(buckets):
    with pytest.raises(ValueError, match="power of two"):
        keys.bucket_of(np.array([1], np.uint64), buckets)
