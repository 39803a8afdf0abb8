"""What every accumulator shares: a frame that batches are added to, merged and split by bucket."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.accumulators.events import Events
from transforms.accumulators.frame import Frame, Ids, Ints, Spec


@dataclass(frozen=True)
class Lists:
    """One list per entity: entity e has the values at offsets[e] to offsets[e + 1]."""

    offsets: Ints
    ids: pa.DictionaryArray
    times: Ints
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Extract:
    """Feature columns of some entities: ``columns`` maps a feature to (n,) floats (NaN: null) or to n lists."""

    entities: Ids
    columns: dict[str, npt.NDArray[np.float64] | Lists]


@dataclass(frozen=True)
class Globals:
    """Sums over all items that an item's features need; merged from every bucket before any is extracted.

    Attributes:
      popularity: per window of COUNT_WINDOWS the sum of weights.
      clicks, impressions: in the 30-day window.
      item_hash, item_count: decayed user-days per item (see cooccurrence), hash ascending.
    """

    popularity: tuple[int, ...] = (0, 0, 0)
    clicks: int = 0
    impressions: int = 0
    item_hash: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    item_count: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))


class Accumulator:
    """A mergeable aggregate of many entities at once, as columns: commutative, associative, integers only.

    ``NAME`` is its name in the lake. ``WINDOW`` is how many whole days before as_of count (None: all). ``COLUMNS`` are
    the event columns that ``add`` reads. Days are numbers since 1970; as_of is the day whose midnight it is.
    """

    NAME: ClassVar[str]
    ENTITY: ClassVar[Literal["user", "item"]]
    SPEC: ClassVar[Spec]
    COLUMNS: ClassVar[tuple[str, ...]]
    WINDOW: ClassVar[int | None] = None
    TAKES_OUT: ClassVar[bool] = False
    """A day that leaves the window is taken out by merging it ``negated``; otherwise ``prune`` knows its rows."""

    def __init__(self, frames: Iterable[Frame] = ()) -> None:
        self._frames = list(frames)

    @property
    def frame(self) -> Frame:
        """Everything added so far as one frame."""
        if len(self._frames) != 1:
            self._frames = [self._merge(self._frames)]
        return self._frames[0]

    def _merge(self, frames: list[Frame]) -> Frame:
        return Frame.merge(self.SPEC, frames)

    def rows(self, events: Events) -> Frame:
        """The frame of one batch."""
        raise NotImplementedError

    def add(self, events: Events) -> None:
        """Counts a batch of events."""
        self._frames.append(self.rows(events))

    def merge(self, *others: Self) -> Self:
        """This accumulator, with what the others hold as well."""
        for other in others:
            self._frames.extend(other._frames)
        return self

    def copy(self) -> Self:
        """An accumulator that shares this one's columns and grows on its own."""
        return type(self)([self.frame])

    def prune(self, as_of: int) -> None:
        """Drops rows that cannot matter to any extract at or after ``as_of`` (day number)."""

    def negated(self) -> Self:
        """What takes this accumulator out of one that it was merged into (``prune`` that afterwards)."""
        raise NotImplementedError

    def split(self, buckets: int) -> list[tuple[int, Self]]:
        """(bucket, accumulator of its entities) of every bucket that has rows."""
        return [(b, type(self)([part])) for b, part in self.frame.split(self.SPEC, buckets)]

    def bucket(self, bucket: int, buckets: int) -> Self:
        """The accumulator of one bucket's entities."""
        return type(self)([self.frame.bucket(self.SPEC, bucket, buckets)])

    def to_bytes(self) -> bytes:
        """Packed Arrow state."""
        return self.frame.to_bytes(self.SPEC)

    @classmethod
    def from_bytes(cls, data: bytes | pa.Buffer) -> Self:
        """The accumulator of ``to_bytes``; raises ValueError on anything else."""
        return cls([Frame.from_bytes(cls.SPEC, data)])

    def __len__(self) -> int:
        return len(self.frame)
