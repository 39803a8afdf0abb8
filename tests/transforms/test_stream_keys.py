"""Keys of buckets: where Flink puts them."""

import pytest

from transforms.beam.stream.keys import KEY_GROUPS, bucket_keys, key_group


def test_key_groups_are_those_that_flink_gave():
    # Of the keys 0 to 15, a job of two workers was seen to put 10 on the first and 6 on the second.
    assert sum(key_group(key) * 2 // KEY_GROUPS == 0 for key in range(16)) == 10
    assert [key_group(key) for key in range(4)] == [123, 36, 29, 125]


@pytest.mark.parametrize("buckets", [1, 2, 8, 16, 64, 256, 1024])
def test_every_worker_gets_as_many_buckets(buckets):
    keys = bucket_keys(buckets)
    assert len(set(keys)) == buckets
    for workers in (1, 2, 4, 8, 16):
        counts = [0] * workers
        for key in keys:
            counts[key_group(key) * workers // KEY_GROUPS] += 1
        if buckets >= workers:
            assert set(counts) == {buckets // workers}


def test_keys_stay_what_they_are():
    assert bucket_keys(4) == (497, 44, 53, 26)
    assert sum(bucket_keys(16)) == 3878
