"""What every stream accumulator shares: a bucket of entities that events are added to, and what is read from it.

A state is one bucket of one kind of entity: ``UserState`` or ``ItemState``. Inside it are tables of integer rows under
(entity, pane, member) keys, whose values are summed, or keep a minimum, a maximum or the newest: so adding and merging are
commutative and associative, and any order, split or repetition of merges gives the same cells. Feature groups (GROUPS) are
read from those tables together, as batch groups are from accumulators.

Times are microseconds since 1970. A ``horizon`` is a time before which no event can come any more (the watermark less the
allowed lateness). Values are right for t from the entity's newest event on; for an earlier t at pane resolution only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.accumulators.base import Extract
from transforms.accumulators.events import Events
from transforms.accumulators.frame import Ids, Ints

Hashes = npt.NDArray[np.uint64]
FAR = 1 << 61
"""Horizons are cut to plus or minus this many microseconds, so that arithmetic on them cannot overflow."""


def clip(horizon: int) -> int:
    """A horizon that arithmetic can be done on: Beam's ends of time become FAR ones."""
    return max(-FAR, min(FAR, int(horizon)))


@dataclass(frozen=True)
class Cells:
    """Packed cells of one feature group, one per entity in ascending order of its hash.

    Attributes:
      group: name in schemas.features.
      entities: n ids.
      packed: n packed cells (schemas.stream_cells), large_binary.
      timestamps: (n,) newest occurred_at in each, cut to whole milliseconds: the cell timestamp of the store.
    """

    group: str
    entities: Ids
    packed: pa.LargeBinaryArray
    timestamps: Ints

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def values(self) -> list[bytes]:
        """The packed cells, each as bytes."""
        values: list[bytes] = self.packed.to_pylist()
        return values


class StreamAccumulator:
    """A mergeable aggregate of a bucket of entities with a time axis; mutable, not safe to use from two threads at once.

    ``COLUMNS`` are the event columns that ``add`` reads. ``GROUPS`` are the feature groups it packs; a state made with
    ``groups`` (of GROUPS and EXTRAS) keeps and packs only those.
    """

    NAME: ClassVar[str]
    ENTITY: ClassVar[Literal["user", "item"]]
    COLUMNS: ClassVar[tuple[str, ...]]
    GROUPS: ClassVar[tuple[str, ...]]
    LAYOUT: ClassVar[int]
    """Version of ``to_bytes``: a state of another one is refused."""
    EXTRAS: ClassVar[tuple[str, ...]] = ()
    """What it can keep besides its groups."""

    def __init__(self, groups: Iterable[str] | None = None) -> None:
        known = (*self.GROUPS, *self.EXTRAS)
        wanted = set(known if groups is None else groups)
        if unknown := wanted - set(known):
            raise ValueError(f"{self.NAME} has no group {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        self.groups = tuple(g for g in self.GROUPS if g in wanted)
        self.extras = tuple(g for g in self.EXTRAS if g in wanted)

    def __len__(self) -> int:
        """Rows of state."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Memory that the state takes."""
        raise NotImplementedError

    def add(self, events: Events) -> None:
        """Counts events; each must be added once over all states that are merged (de-duplicate first)."""
        raise NotImplementedError

    def merge(self, *others: Self) -> Self:
        """This state, with what the others hold as well (they stay as they are)."""
        raise NotImplementedError

    def select(self, hashes: Hashes) -> Self:
        """A state of only these entities (ascending hashes; unknown ones are left out)."""
        raise NotImplementedError

    def entities(self) -> Ids:
        """The entities that have rows."""
        raise NotImplementedError

    @property
    def is_full(self) -> bool:
        """Whether the next ``prune`` drops rows."""
        raise NotImplementedError

    def prune(self, horizon: int) -> None:
        """Allows rows to be dropped that no extract or cell at or after the horizon needs; cheap, call it at every pane end.

        Call ``final`` for the same horizon before. An entity's newest cell may need rows that the horizon has passed: where
        it is still to be made and ``is_full``, make it first.
        """
        raise NotImplementedError

    def final(self, horizon: int, previous: int) -> dict[str, pa.RecordBatch]:
        """Rows that became unchangeable in (previous, horizon], by the name of their table in schemas.tables.

        Called with ascending horizons, each row comes once and none is missed.
        """
        raise NotImplementedError

    def cells(self, only: Hashes | None = None, groups: Collection[str] | None = None) -> list[Cells]:
        """The full cells of every entity, or of ``only`` these (ascending hashes), one Cells per group (or of ``groups``) that
        has any."""
        raise NotImplementedError

    def extract(self, t: int) -> list[Extract]:
        """Feature columns as of t, one Extract per group, with the entities that have a cell of it."""
        raise NotImplementedError

    def to_bytes(self, ordered: bool = True) -> bytes:
        """Packed state. If ``ordered``, equal states give equal bytes, without what ``prune`` allowed to be dropped; if not, it
        is packed as it lies, in a tenth of the time."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes, groups: Iterable[str] | None = None) -> Self:
        """The state of ``to_bytes``; raises StateError on another layout or on damaged bytes."""
        raise NotImplementedError


class StateError(ValueError):
    """Bytes that are no state of this layout."""
