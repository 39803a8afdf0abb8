"""Hashes, buckets and row keys. Every mode and every process must agree on these, for ever."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from schemas.xxh3 import hash64_strings

USER, ITEM = "u", "i"
ENTITY_KINDS = {"user": USER, "item": ITEM}
SUPPRESSED = "s:"
"""Begins the group name of a suppression cell (family stream, row of the user); the item's id follows."""
SUPPRESS_DAYS = 7
"""A suppression older than this hides nothing: the batch features have had the event for days by then."""
TRENDING = "t:"
"""Begins the group name of a cell with what is trending (family stream, row trending_key); a bucket of items follows."""
STATUS = "status"
"""Group of the status row of a job."""
STREAM_JOB = "stream"
"""Name of the streaming job whose values readers take, where no other is given."""


def hash64(entity_id: str) -> int:
    """XXH3-64, seed 0, of the UTF-8 id."""
    return xxhash.xxh3_64_intdigest(entity_id.encode())


def hash64_column(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """hash64 of an Arrow string (or dictionary of string) column, shape (n,); nulls hash as "".

    Each distinct value is hashed once, so a column of few distinct ids costs about one dictionary encoding.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    hashes = np.append(hash64_strings(encoded.dictionary), np.uint64(hash64("")))
    codes = encoded.indices.fill_null(len(hashes) - 1).to_numpy(zero_copy_only=False)
    return hashes[codes]


def bucket_of(hashes: npt.NDArray[np.uint64], buckets: int) -> npt.NDArray[np.int32]:
    """The high bits of each hash: bucket counts nest. ``buckets`` is a power of two.

    Raises:
      ValueError: buckets is not a power of two between 1 and 65536.
    """
    if buckets < 1 or buckets > 65536 or buckets & (buckets - 1):
        raise ValueError(f"buckets must be a power of two between 1 and 65536, not {buckets}")
    bits = buckets.bit_length() - 1
    if bits == 0:
        return np.zeros(len(hashes), np.int32)
    return (hashes >> np.uint64(64 - bits)).astype(np.int32)


def row_key(kind: str, entity_id: str) -> str:
    """``<2 hex digits of the hash>#<u|i>#<id>``: keys spread evenly over tablets."""
    return f"{hash64(entity_id) >> 56:02x}#{kind}#{entity_id}"


def list_key(user_id: str, surface: str) -> str:
    """Row key of a user's recommendation list on a surface."""
    return f"{hash64(user_id) >> 56:02x}#{user_id}#{surface}"


def suppressed_group(item_id: str) -> str:
    """Group name of the cell that hides an item from a user."""
    return SUPPRESSED + item_id


def status_key(job: str = STREAM_JOB) -> str:
    """Row key of a streaming job's status (family stream, group STATUS)."""
    return f"status#stream#{job}"


def trending_key(job: str = STREAM_JOB) -> str:
    """Row key of what is trending by a streaming job (family stream, a list cell for each bucket of items)."""
    return f"trending#stream#{job}"


def import_event_id(source: str, row: int) -> str:
    """The id of an imported event: XXH3-128 of source and row, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(f"{source}\x00{row}".encode())
