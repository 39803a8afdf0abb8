"""Packed cells of the store: an 8-byte header, then raw little-endian arrays. One cell holds one feature group.

Header: layout version (u8), kind (u8), group id (u16), count (u32). Kinds: a ``vector`` is count float32 (NaN for
null); a ``list`` is count int64 times (microseconds), count float32 scores, count uint32 end offsets, then the UTF-8
ids; a ``recs`` cell is a ranked list (see RankedList). Decoding many vectors of one group is one join (decode_vectors).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

LAYOUT = 1
VECTOR, LIST, RECS = 0, 1, 2
_HEADER = struct.Struct("<BBHI")
_RECS = struct.Struct("<qqH")
HEADER_BYTES = _HEADER.size
_FEW_IDS = 20
"""From so many on a string column makes them in a quarter of the time."""

CELLS = pa.schema([pa.field("row", pa.string()), pa.field("group", pa.string()), pa.field("value", pa.binary()),
                   pa.field("timestamp", pa.int64())])
"""Cells on their way to a store: row key (schemas.keys.row_key), feature group, packed cell, cell timestamp in microseconds
(whole milliseconds)."""

SOURCES = ("two_tower", "item_cf", "popular", "ranker", "trending", "content", "exploration")
REASONS = ("because_you_watched", "similar_taste", "popular", "trending", "new", "discovery", "similar_item", "goes_together")
"""Names behind the one-byte codes of a ranked list: only ever append."""
_SOURCE_CODES, _REASON_CODES = bytes(range(len(SOURCES))), bytes(range(len(REASONS)))
_Ids = TypeVar("_Ids", bound=Sequence[str])


class CellError(ValueError):
    """A cell whose bytes are not what its header says."""


@dataclass(frozen=True)
class RankedList:
    """One user's list of one version, best first; every sequence has the same length n.

    Attributes:
      item_ids: n ids.
      scores: (n,) float32.
      sources: n names of SOURCES.
      reasons: n names of REASONS.
      source_item_ids: n ids that explain the item, "" for none.
      model_version: of the two-tower that made it.
      generated_at, expires_at: microseconds since 1970, UTC.
    """

    item_ids: Sequence[str]
    scores: npt.NDArray[np.float32]
    sources: Sequence[str]
    reasons: Sequence[str]
    source_item_ids: Sequence[str]
    model_version: str
    generated_at: int
    expires_at: int


def _header(cell: bytes, kind: int) -> tuple[int, int]:
    if len(cell) < HEADER_BYTES:
        raise CellError(f"a cell has at least {HEADER_BYTES} bytes, this one {len(cell)}")
    layout, found, group, count = _HEADER.unpack_from(cell)
    if layout != LAYOUT or found != kind:
        raise CellError(f"expected layout {LAYOUT} kind {kind}, found layout {layout} kind {found}")
    return group, count


def encode_vector(group: int, values: npt.NDArray[np.float32]) -> bytes:
    """Packs (n,) float32 values."""
    return _HEADER.pack(LAYOUT, VECTOR, group, len(values)) + np.ascontiguousarray(values, "<f4").tobytes()


def encode_vectors(group: int, matrix: npt.NDArray[np.float32]) -> list[bytes]:
    """Packs each row of an (m, n) matrix."""
    head = _HEADER.pack(LAYOUT, VECTOR, group, matrix.shape[1])
    raw, width = np.ascontiguousarray(matrix, "<f4").tobytes(), 4 * matrix.shape[1]
    return [head + raw[i * width : (i + 1) * width] for i in range(matrix.shape[0])]


def decode_vector(cell: bytes) -> npt.NDArray[np.float32]:
    """The (n,) float32 values of a vector cell; raises CellError."""
    _, count = _header(cell, VECTOR)
    if len(cell) != HEADER_BYTES + 4 * count:
        raise CellError(f"a vector of {count} has {HEADER_BYTES + 4 * count} bytes, this cell {len(cell)}")
    return np.frombuffer(cell, "<f4", count, HEADER_BYTES)


def decode_vectors(cells: Sequence[bytes], width: int) -> npt.NDArray[np.float32]:
    """Vector cells of one group as an (m, width) matrix; raises CellError when a cell has another width."""
    size = HEADER_BYTES + 4 * width
    if any(len(cell) != size for cell in cells):
        raise CellError(f"every cell must have {size} bytes for {width} values")
    raw = np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), size)
    if len(cells) and not (raw[:, :2] == (LAYOUT, VECTOR)).all():
        raise CellError("a cell is not a vector of this layout")
    return np.ascontiguousarray(raw[:, HEADER_BYTES:]).view("<f4").reshape(len(cells), width)


def encode_list(
    group: int, ids: Sequence[str], times: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
) -> bytes:
    """Packs n ids with times (microseconds) and scores."""
    return b"".join((_HEADER.pack(LAYOUT, LIST, group, len(ids)), np.asarray(times, "<i8").tobytes(),
                     np.asarray(scores, "<f4").tobytes(), _pack_ids(ids)))


def decode_list(cell: bytes) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(ids, times (n,), scores (n,)) of a list cell; raises CellError."""
    return parse_list(cell, unpack_ids)


def parse_list(cell: bytes, read_ids: Callable[[bytes, int, int], tuple[_Ids, int]],
               ) -> tuple[_Ids, npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """decode_list with another reader of ids: see unpack_ids."""
    _, count = _header(cell, LIST)
    at = HEADER_BYTES
    if len(cell) < at + 16 * count:
        raise CellError(f"a list of {count} has at least {at + 16 * count} bytes, this cell {len(cell)}")
    ids, end = read_ids(cell, at + 12 * count, count)
    if end != len(cell):
        raise CellError(f"{len(cell) - end} bytes after the end of a list")
    return ids, np.frombuffer(cell, "<i8", count, at), np.frombuffer(cell, "<f4", count, at + 8 * count)


def encode_recs(recs: RankedList) -> bytes:
    """Packs a ranked list."""
    version = recs.model_version.encode()
    return b"".join((
        _HEADER.pack(LAYOUT, RECS, 0, len(recs.item_ids)),
        _RECS.pack(recs.generated_at, recs.expires_at, len(version)), version,
        np.asarray(recs.scores, "<f4").tobytes(),
        bytes(map(SOURCES.index, recs.sources)), bytes(map(REASONS.index, recs.reasons)),
        _pack_ids(recs.item_ids), _pack_ids(recs.source_item_ids),
    ))


def decode_recs(cell: bytes) -> RankedList:
    """A ranked list; raises CellError."""
    return parse_recs(cell, unpack_ids, _named)


def parse_recs(cell: bytes, read_ids: Callable[[bytes, int, int], tuple[Sequence[str], int]],
               named: Callable[[bytes, tuple[str, ...]], Sequence[str]]) -> RankedList:
    """decode_recs with other readers of ids (see unpack_ids) and of names behind codes, of which all are right."""
    _, count = _header(cell, RECS)
    try:
        generated, expires, size = _RECS.unpack_from(cell, HEADER_BYTES)
        at = HEADER_BYTES + _RECS.size
        version = str(cell[at : at + size], "utf-8")
        at += size
        scores = np.frombuffer(cell, "<f4", count, at)
    except (struct.error, ValueError) as error:
        raise CellError(f"a broken ranked list: {error}") from error
    sources, reasons = cell[at + 4 * count : at + 5 * count], cell[at + 5 * count : at + 6 * count]
    if sources.translate(None, _SOURCE_CODES) or reasons.translate(None, _REASON_CODES):
        raise CellError("a broken ranked list: a code that names nothing")
    ids, at = read_ids(cell, at + 6 * count, count)
    because, at = read_ids(cell, at, count)
    if at != len(cell):
        raise CellError(f"{len(cell) - at} bytes after the end of a ranked list")
    return RankedList(ids, scores, named(sources, SOURCES), named(reasons, REASONS), because, version, generated, expires)


def _named(codes: bytes, names: tuple[str, ...]) -> list[str]:
    return [names[code] for code in codes]


def _pack_ids(ids: Sequence[str]) -> bytes:
    raw = [i.encode() for i in ids]
    return np.cumsum([len(r) for r in raw], dtype="<u4").tobytes() + b"".join(raw)


def unpack_ids(cell: bytes, at: int, count: int) -> tuple[list[str], int]:
    """The n ids whose offsets begin at a byte, and the byte behind them; raises CellError."""
    if len(cell) < at + 4 * count:
        raise CellError(f"the cell ends before the offsets of {count} ids")
    base = at + 4 * count
    offsets = np.zeros(count + 1, np.int64)
    offsets[1:] = np.frombuffer(cell, "<u4", count, at)
    end = base + int(offsets[-1])
    if len(cell) < end or (offsets[1:] < offsets[:-1]).any():
        raise CellError("the ids of a cell do not fit in it")
    try:
        if count < _FEW_IDS:
            return [cell[base + a : base + b].decode() for a, b in pairwise(offsets.tolist())], end
        column = pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(cell[base:end]))
        return column.to_pylist(), end
    except UnicodeDecodeError as error:
        raise CellError(f"an id is not UTF-8: {error}") from error
