"""The compiled hash of strings where they lie equals the xxhash library's."""

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.records.hashes import MAX_BYTES, hash_one, hash_packed, hashes

TEXTS = st.lists(st.binary(max_size=300), min_size=1, max_size=20)


@settings(max_examples=300)
@given(TEXTS)
def test_hashes_at_places_are_those_of_the_library(texts):
    size = np.array([len(t) for t in texts], np.int32)
    begin = np.cumsum(size, dtype=np.int64) - size
    found = hashes(np.frombuffer(b"".join(texts) + bytes(16), np.uint8), begin, size)
    assert found.tolist() == [xxhash.xxh3_64_intdigest(t) if 1 <= len(t) <= MAX_BYTES else 0 for t in texts]


@settings(max_examples=300)
@given(TEXTS)
def test_of_packed_strings_too_while_all_are_short(texts):
    data, ends = np.frombuffer(b"".join(texts), np.uint8), np.cumsum([len(t) for t in texts]).astype(np.uint32)
    out = np.zeros(len(texts), np.uint64)
    assert hash_packed(data, ends, out) == all(len(t) <= MAX_BYTES for t in texts)
    short = [t for t in texts if len(t) <= MAX_BYTES]
    if len(short) == len(texts):
        assert out.tolist() == [xxhash.xxh3_64_intdigest(t) for t in texts]


def test_every_length_at_any_address():
    data = np.random.default_rng(3).integers(0, 256, 3 * MAX_BYTES, dtype=np.uint8)
    for size in range(MAX_BYTES + 1):
        for at in (0, 1, 7, 2 * MAX_BYTES - size):
            assert hash_one(data, at, size) == xxhash.xxh3_64_intdigest(data[at : at + size].tobytes())


def test_ends_that_are_none_are_refused():
    data = np.zeros(10, np.uint8)
    for ends in ([4, 3], [4, 11]):
        assert not hash_packed(data, np.array(ends, np.uint32), np.zeros(2, np.uint64))
