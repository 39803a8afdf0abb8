"""Cells read where they lie: ids and codes become Python objects when somebody looks at them, a ranked list's 20 of 100.

The same answers, and the same errors, as the readers of schemas.cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from schemas.cells import LIST, CellError, RankedList, _header, parse_list, parse_recs, unpack_ids

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


class ListIds(_Lazy):
    """The ids of a list cell that was found right."""

    __slots__ = ("_cell",)

    def __init__(self, cell: bytes) -> None:
        self._cell, self._made = cell, None

    def __len__(self) -> int:
        return _header(self._cell, LIST)[1]

    def _make(self) -> list[str]:
        return list(read_list(self._cell)[0])


class Weighted(Sequence[tuple[str, float]]):
    """Ids with weights, of which tuples are made when somebody looks.

    Attributes:
      ids: n; weights: (n,) float32; hashes: (n,) hash64 of each.
    """

    __slots__ = ("_made", "hashes", "ids", "weights")

    def __init__(self, ids: PackedIds, weights: npt.NDArray[np.float32], hashes: npt.NDArray[np.uint64]) -> None:
        self.ids, self.weights, self.hashes = ids, weights, hashes
        self._made: list[tuple[str, float]] | None = None

    @property
    def listed(self) -> list[tuple[str, float]]:
        """All of them."""
        if self._made is None:
            self._made = list(zip(self.ids, self.weights.tolist(), strict=True))
        return self._made

    @overload
    def __getitem__(self, at: int) -> tuple[str, float]: ...

    @overload
    def __getitem__(self, at: slice) -> list[tuple[str, float]]: ...

    def __getitem__(self, at: int | slice) -> tuple[str, float] | list[tuple[str, float]]:
        return self.listed[at]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter(self.listed)

    def __len__(self) -> int:
        return len(self.weights)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.listed == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.listed)


class Coded(_Lazy):
    """n names behind one-byte codes: ``names[code]`` for each of ``codes``."""

    __slots__ = ("codes", "names")

    def __init__(self, codes: bytes, names: tuple[str, ...]) -> None:
        self.codes, self.names, self._made = codes, names, None

    def __len__(self) -> int:
        return len(self.codes)

    def _make(self) -> list[str]:
        names = self.names
        return [names[code] for code in self.codes]

    def take(self, places: Sequence[int]) -> list[str]:
        """Some of them."""
        codes, names = self.codes, self.names
        return [names[codes[at]] for at in places]


class Later(_Lazy):
    """n texts that are made when somebody looks.

    Args:
      make: makes all of them; count: n.
    """

    __slots__ = ("_count", "_from")

    def __init__(self, make: Callable[[], list[str]], count: int) -> None:
        self._from, self._count, self._made = make, count, None

    def __len__(self) -> int:
        return self._count

    def _make(self) -> list[str]:
        return self._from()


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
        return unpack_ids(cell, at, count)
    if count > 1 and b"\1" in (ends[1:] < ends[:-1]).tobytes():  # any() takes longer
        raise CellError("the ids of a cell do not fit in it")
    return PackedIds(raw, ends), end


def read_list(cell: bytes) -> tuple[Sequence[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """schemas.cells.decode_list."""
    return parse_list(cell, read_ids)


def read_recs(cell: bytes) -> RankedList:
    """schemas.cells.decode_recs."""
    return parse_recs(cell, read_ids, Coded)
