"""Cells read where they lie: ids and codes become Python objects when somebody looks at them, a ranked list's 20 of 100.

The same answers, and the same errors, as the readers of schemas.cells.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from schemas.cells import _RECS, HEADER_BYTES, LIST, REASONS, RECS, SOURCES, CellError, RankedList, _header, _unpack_ids

Ends = npt.NDArray[np.uint32]


class _Lazy(Sequence[str]):
    """A sequence that is made into a list when it is walked."""

    __slots__ = ("_made",)
    _made: list[str] | None

    def _make(self) -> list[str]:
        raise NotImplementedError

    @property
    def listed(self) -> list[str]:
        """All of them."""
        if self._made is None:
            self._made = self._make()
        return self._made

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        return self.listed[at]

    def __iter__(self) -> Iterator[str]:
        return iter(self.listed)

    def __contains__(self, value: object) -> bool:
        return value in self.listed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and self.listed == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.listed)


class PackedIds(_Lazy):
    """n ASCII ids that lie one behind the other.

    Attributes:
      raw: their bytes; ends: (n,) where each ends.
    """

    __slots__ = ("ends", "raw")

    def __init__(self, raw: bytes, ends: Ends) -> None:
        self.raw, self.ends, self._made = raw, ends, None

    def __len__(self) -> int:
        return len(self.ends)

    def _make(self) -> list[str]:
        text, start, found = self.raw.decode("ascii"), 0, []
        for end in self.ends.tolist():
            found.append(text[start:end])
            start = end
        return found

    def take(self, places: Sequence[int]) -> list[str]:
        """Some of them."""
        if self._made is not None:
            return [self._made[at] for at in places]
        at, raw = np.asarray(places, np.int64), self.raw
        starts = np.where(at > 0, self.ends[at - 1], 0).tolist() if len(self.ends) else []
        return [str(raw[a:b], "ascii") for a, b in zip(starts, self.ends[at].tolist(), strict=True)]


class Coded(_Lazy):
    """n names behind one-byte codes."""

    __slots__ = ("_codes", "_names")

    def __init__(self, codes: bytes, names: tuple[str, ...]) -> None:
        self._codes, self._names, self._made = codes, names, None

    def __len__(self) -> int:
        return len(self._codes)

    def _make(self) -> list[str]:
        names = self._names
        return [names[code] for code in self._codes]

    def take(self, places: Sequence[int]) -> list[str]:
        """Some of them."""
        codes, names = self._codes, self._names
        return [names[codes[at]] for at in places]


def take(values: Sequence[str], places: Sequence[int]) -> list[str]:
    """values[i] for each of ``places``."""
    return values.take(places) if isinstance(values, PackedIds | Coded) else [values[at] for at in places]


def read_ids(cell: bytes, at: int, count: int) -> tuple[Sequence[str], int]:
    """The ids that begin at a byte, and the byte behind them; raises CellError."""
    base = at + 4 * count
    if len(cell) < base:
        raise CellError(f"the cell ends before the offsets of {count} ids")
    ends = np.frombuffer(cell, "<u4", count, at)
    end = base + int(ends[-1]) if count else base
    raw = cell[base:end]
    if not raw.isascii() or len(cell) < end:
        return _unpack_ids(cell, at, count)
    if count > 1 and (ends[1:] < ends[:-1]).any():
        raise CellError("the ids of a cell do not fit in it")
    return PackedIds(raw, ends), end


def read_list(cell: bytes) -> tuple[Sequence[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """schemas.cells.decode_list."""
    _, count = _header(cell, LIST)
    if len(cell) < HEADER_BYTES + 16 * count:
        raise CellError(f"a list of {count} has at least {HEADER_BYTES + 16 * count} bytes, this cell {len(cell)}")
    ids, end = read_ids(cell, HEADER_BYTES + 12 * count, count)
    if end != len(cell):
        raise CellError(f"{len(cell) - end} bytes after the end of a list")
    return ids, np.frombuffer(cell, "<i8", count, HEADER_BYTES), np.frombuffer(cell, "<f4", count, HEADER_BYTES + 8 * count)


def read_recs(cell: bytes) -> RankedList:
    """schemas.cells.decode_recs."""
    _, count = _header(cell, RECS)
    try:
        generated, expires, size = _RECS.unpack_from(cell, HEADER_BYTES)
        at = HEADER_BYTES + _RECS.size
        version = cell[at : at + size].decode()
        at += size
        scores = np.frombuffer(cell, "<f4", count, at)
    except (struct.error, ValueError) as error:
        raise CellError(f"a broken ranked list: {error}") from error
    sources, reasons = cell[at + 4 * count : at + 5 * count], cell[at + 5 * count : at + 6 * count]
    if len(reasons) < count or (count and (max(sources) >= len(SOURCES) or max(reasons) >= len(REASONS))):
        raise CellError("a broken ranked list: a code that names nothing")
    ids, at = read_ids(cell, at + 6 * count, count)
    because, at = read_ids(cell, at, count)
    if at != len(cell):
        raise CellError(f"{len(cell) - at} bytes after the end of a ranked list")
    return RankedList(ids, scores, Coded(sources, SOURCES), Coded(reasons, REASONS), because, version, generated, expires)
