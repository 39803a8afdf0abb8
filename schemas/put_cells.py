"""The cell of features that were PUT one by one: what they are, what each value knows and how long it counts.

One cell an entity, family ``batch``, group PUTS. The header is that of schemas.cells (kind PUT, group 0); then, of count
entries: int64 times (microseconds), uint32 ttls in seconds (0: that of the feature), uint32 end offsets and the UTF-8 names,
uint32 end offsets and the values. A value is a float32 (NaN for null) or a ``list`` cell.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.cells import HEADER_BYTES, LAYOUT, CellError, _header, _pack_ids, decode_list, encode_list, unpack_ids

PUT = 7
PUTS = "put"
"""Group of the cell."""
_HEADER = struct.Struct("<BBHI")
_FLOAT = struct.Struct("<f")

Listed = tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Put:
    """A value that was PUT.

    Attributes:
      value: a number (NaN: withdrawn), or ids, times and scores.
      computed_at: what it knows, microseconds since 1970.
      ttl: seconds for which it counts; None: the feature's.
    """

    value: float | Listed
    computed_at: int
    ttl: int | None = None


def merge_puts(held: Mapping[str, Put], new: Mapping[str, Put]) -> dict[str, Put]:
    """Of each feature the value that knows more; of two with one time the new one. In the order of their names.

    So any order of any repetition of writes ends the same, as long as no two differ at one time.
    """
    kept = dict(held)
    for name, put in new.items():
        if name not in kept or put.computed_at >= kept[name].computed_at:
            kept[name] = put
    return dict(sorted(kept.items()))


def encode_puts(puts: Mapping[str, Put]) -> bytes:
    """Packs values by feature name."""
    values = [encode_list(0, *p.value) if isinstance(p.value, tuple) else _FLOAT.pack(p.value) for p in puts.values()]
    ends = np.cumsum([len(v) for v in values], dtype="<u4").tobytes()
    return b"".join((_HEADER.pack(LAYOUT, PUT, 0, len(puts)), np.array([p.computed_at for p in puts.values()], "<i8").tobytes(),
                     np.array([p.ttl or 0 for p in puts.values()], "<u4").tobytes(), _pack_ids(list(puts)), ends, *values))


def decode_puts(cell: bytes) -> dict[str, Put]:
    """Values by feature name; raises CellError."""
    _, count = _header(cell, PUT)
    if len(cell) < HEADER_BYTES + 12 * count:
        raise CellError(f"{count} values need more than {len(cell)} bytes")
    times = np.frombuffer(cell, "<i8", count, HEADER_BYTES).tolist()
    ttls = np.frombuffer(cell, "<u4", count, HEADER_BYTES + 8 * count).tolist()
    names, at = unpack_ids(cell, HEADER_BYTES + 12 * count, count)
    if len(cell) < at + 4 * count:
        raise CellError(f"the cell ends before the offsets of {count} values")
    ends = np.frombuffer(cell, "<u4", count, at).tolist()
    start = base = at + 4 * count
    if ends != sorted(ends) or len(cell) != base + (ends[-1] if ends else 0):
        raise CellError("the values of a cell do not fit in it")
    found: dict[str, Put] = {}
    for name, computed_at, ttl, end in zip(names, times, ttls, ends, strict=True):
        raw = cell[start : base + end]
        found[name] = Put(_FLOAT.unpack(raw)[0] if len(raw) == _FLOAT.size else decode_list(raw), computed_at, ttl or None)
        start = base + end
    return found
