"""What the parts of a request hand to each other: what is asked, the candidates found, what is known of the user, the page.

Nobody changes one that was handed over. They are not ``frozen``: dataclass would set each field by a call, 15 us a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from models.inference.idtable import hashes_of
from schemas.cells import CellError, RankedList

Tier = Literal["list", "expired_list", "previous_list", "on_demand", "segment_popular", "popular", "popular_in_memory",
               "client"]
"""What answered, best first: the user's list of the active version; that list past its expires_at; the user's list of the
version before; a list made at this request; the popular list of the user's segment; of everybody; the one kept in memory.
Beside these: a list that the client holds."""
CLIENT: Literal["client"] = "client"
"""Source and reason of the items of such a list: nobody here knows where they come from."""


@dataclass(slots=True)
class Ask:
    """One request, already validated.

    Attributes:
      user_id: "" for nobody in particular.
      context: names a policy: homepage, item, cart, email.
      item_ids: the item, or those in the cart, that the list is to go with.
      page_size: items of the page.
      exclude: never shown.
      shown: first 4 bytes (little-endian uint32) of hash64 of every item of the pages before: never shown again.
      version: of the pages before, read again while its lists are there; None on the first page.
      request_id: names the answer in logs and in the events that follow from it; also seeds exploration.
    """

    user_id: str
    context: str = "homepage"
    item_ids: tuple[str, ...] = ()
    page_size: int = 20
    exclude: frozenset[str] = frozenset()
    shown: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    version: str | None = None
    request_id: str = ""


@dataclass(slots=True)
class Candidates:
    """A ranked list to start from, of exactly one version.

    Attributes:
      recs: the list; its ``model_version`` is the one answered.
      version: of the publish it belongs to.
      tier: where it was found.
      personal: made for this user.
    """

    recs: RankedList
    version: str
    tier: Tier
    personal: bool


class Hidden(Set[str]):
    """Ids to leave out; ranking looks at their hashes, so that most are never made into strings.

    Args:
      ids: consumed ones, as they lie in a cell; more: others.
    """

    def __init__(self, ids: Sequence[str], more: frozenset[str] = frozenset()) -> None:
        self._packed, self._more = ids, more

    @classmethod
    def _from_iterable(cls, ids: Iterable[str]) -> frozenset[str]:  # type: ignore[override]
        return frozenset(ids)

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Of all; some perhaps twice."""
        found = hashes_of(self._packed)
        return np.concatenate([found, hashes_of(tuple(self._more))]) if self._more else found

    @cached_property
    def _ids(self) -> frozenset[str]:
        return self._more.union(self._packed)

    def __contains__(self, item: object) -> bool:
        return item in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class Touched(Sequence[tuple[str, float]]):
    """Items with weights, read when somebody looks: only lists made at a request do. Empty where a cell is broken."""

    def __init__(self, read: Callable[[], Sequence[tuple[str, float]]]) -> None:
        self._read = read

    @cached_property
    def _items(self) -> Sequence[tuple[str, float]]:
        try:
            return self._read()
        except CellError:
            return []

    @overload
    def __getitem__(self, at: int) -> tuple[str, float]: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[tuple[str, float]]: ...

    def __getitem__(self, at: int | slice) -> tuple[str, float] | Sequence[tuple[str, float]]:
        return self._items[at]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(slots=True)
class Signals:
    """What the store knows of a user now. All empty where features cannot be read: then nothing is re-ranked.

    Attributes:
      known: the store holds something of the user.
      hidden: consumed, purchased and suppressed items.
      session: items of the open session, newest first, with the weight of the last event.
      history: items of the last day (stream), then the last ones of batch; newest first, each once.
      preference: share per category, real time; without a stream that is alive: ``category_affinity_30d``.
      low_confidence: only the stream knows the user.
      segment: name of schemas.features.SEGMENTS.
      attributes: of the sign-up (country, age group, ...), for a user without events.
      values: numbers used, by feature name, with ``sources`` (batch, stream, default) beside: the truth that is logged.
      missing: features could not be read in time.
      history_days: how many days ago each item of ``history`` was touched; may be shorter: the rest counts as now.
      suppressed: those of ``hidden`` that the user was done with just now: never shown, though nothing else were left.
    """

    known: bool = False
    hidden: Set[str] = frozenset()
    session: Sequence[tuple[str, float]] = ()
    history: Sequence[tuple[str, float]] = ()
    preference: Mapping[str, float] = field(default_factory=dict)
    low_confidence: bool = False
    segment: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    missing: bool = False
    history_days: Sequence[float] = ()
    suppressed: frozenset[str] = frozenset()


@dataclass(eq=False, slots=True)
class Packed:
    """A page of k items as bytes, made by serving.ranking.listed: what writes it as JSON needs no more.

    Attributes:
      numbers: (listed.NUMBERS, k) int32, row by row what listed.POSITION and the names beside it say.
      text: ASCII, the k ids one behind the other, from ``split`` on those that explain them.
      known: the bundle has all of the items.
    """

    numbers: npt.NDArray[np.int32]
    text: npt.NDArray[np.uint8]
    split: int
    known: bool


class Rows(Mapping[str, npt.NDArray[np.float32]]):
    """Rows of a table by name: ``names[i]`` is that of ``table[i]``."""

    __slots__ = ("_names", "_table")

    def __init__(self, names: tuple[str, ...], table: npt.NDArray[np.float32]) -> None:
        self._names, self._table = names, table

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        if name not in self._names:
            raise KeyError(name)
        return self._table[self._names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(slots=True)
class Ranked:
    """A page, best first; every sequence has the same length n <= page_size.

    Attributes:
      item_ids, sources, reasons, because: n each; ``because`` is the item that explains, "" for none.
      scores: (n,) float32 after re-ranking.
      features: numbers of each item that the ranking used, by name, (n,) float32 each: logged with the answer.
      more: candidates are left for another page.
      explored: rank (0-based) of the exploration slot, -1 for none.
      table: ``features`` as one (k, n) array, in their order; None where they were not made together.
      packed: the page as bytes; None where it was put together from strings.
    """

    item_ids: Sequence[str]
    scores: npt.NDArray[np.float32]
    sources: Sequence[str]
    reasons: Sequence[str]
    because: Sequence[str]
    features: Mapping[str, npt.NDArray[np.float32]]
    more: bool
    explored: int = -1
    table: npt.NDArray[np.float32] | None = None
    packed: Packed | None = None
