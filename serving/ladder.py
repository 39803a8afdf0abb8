"""Where a list comes from when something is missing: tiers, best first, each with a deadline. Some tier always answers.

  list              the user's list of the version chosen
  expired_list      that list past its expires_at, where no new one could be made at once; marked stale
  previous_list     the user's list of the version before
  on_demand         made now from the user's history; kept, and written back as a list of that version
  segment_popular   popular among users of the same segment
  popular           popular among everybody
  popular_in_memory the same, because the store could not be read

Every read is guarded by the breaker of its dependency: while that is open the tier is skipped at once.
"""

from __future__ import annotations

import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.inference.bundle import EVERYBODY, Bundle
from schemas.cells import CellError, RankedList, encode_recs
from schemas.keys import list_key
from serving.breaker import Breaker, State
from serving.bundles import Bundles
from serving.made_lists import Budget, ListStore, MadeLists
from serving.pointer import versions_of
from serving.ranking.listed import read_listed, size_of
from serving.ranking.model import Ask, Candidates, Signals, Tier
from serving.ranking.policy import ContextPolicy
from serving.stores.base import Active, Cell, StoreError
from serving.versions import Choice

ANYONE = ""
"""User id under which the recommend job writes the popular list."""
POPULAR_SECONDS = 60
"""A popular list says of itself that it is good for so long."""
KEPT_NEAR = 5_000
"""Lists around items that a worker keeps, of some 3 kB each."""


class NothingPublishedError(RuntimeError):
    """No version was ever published, or none can be read and nothing is in memory."""


class LadderStore(ListStore, Protocol):
    """What the ladder needs of a serving.stores.aio.AsyncStore."""

    async def read_lists(self, rows: Sequence[str], version: str, timeout: float | None = None) -> list[Cell | None]:
        """See Store.read_lists."""
        ...


@dataclass(frozen=True)
class Breakers:
    """One per dependency of a request."""

    lists: Breaker
    features: Breaker
    index: Breaker

    @classmethod
    def make(cls, on_change: Callable[[str, State], None] | None = None) -> Breakers:
        """Closed ones."""
        return cls(*(Breaker(name, on_change=on_change) for name in ("lists", "features", "index")))

    def __iter__(self) -> Iterator[Breaker]:
        return iter((self.lists, self.features, self.index))


@dataclass(slots=True)
class Found:
    """The user's own list: None where there is none; ``lost`` where the store could not say."""

    recs: RankedList | None
    lost: bool


class Make(Protocol):
    """Makes a list at a request, of a user or around the items asked for; None where nothing is known that one could be made
    from. Raises ValueError or OSError where the index is broken."""

    def __call__(self, ask: Ask, signals: Signals, bundle: Bundle, policy: ContextPolicy, now: int) -> RankedList | None:
        """``now`` in microseconds."""
        ...


@dataclass
class Counts:
    """What the ladder could not use, for metrics."""

    unreadable_lists: int = 0
    on_demand_refused: int = 0


class Ladder:
    """Finds candidates. One per worker, in its event loop.

    Args:
      bundles: of the versions that are served.
      breakers: ``lists`` guards the store's lists, ``index`` what is made on demand.
      make: makes lists on demand; around: makes what lies around the items asked for.
      budget: of time for both.
    """

    def __init__(self, store: LadderStore, bundles: Bundles, breakers: Breakers, make: Make, around: Make,
                 budget: Budget | None = None) -> None:
        self._store, self._bundles, self._breakers, self._make, self._around = store, bundles, breakers, make, around
        self._budget = budget or Budget()
        self.made = MadeLists(store)
        self._near: OrderedDict[tuple[str, str, tuple[str, ...]], RankedList] = OrderedDict()  # by version, context and items
        self.counts = Counts()
        self._popular: dict[tuple[str, str], RankedList] = {}  # by surface and version, of versions without a bundle
        self._bundled: dict[tuple[str, str], RankedList] = {}  # by version and segment

    async def own(self, user_id: str, surface: str, version: str, seconds: float) -> Found:
        """The user's list of a version."""
        if not user_id:
            return Found(None, self._breakers.lists.state == "open")
        breaker = self._breakers.lists
        if not breaker.allows():
            return Found(None, True)
        try:
            cell = (await self._store.read_lists([list_key(user_id, surface)], version, timeout=seconds))[0]
        except StoreError:
            breaker.failed()
            return Found(None, True)
        breaker.ok()
        return self.found(cell)

    def found(self, cell: Cell | None) -> Found:
        """What was read as a user's list."""
        if cell is None:
            return Found(None, False)
        try:
            return Found(read_listed(cell.value), False)
        except CellError:
            self.counts.unreadable_lists += 1
            return Found(None, False)

    async def find(self, ask: Ask, choice: Choice, found: Found, signals: Signals, policy: ContextPolicy,
                   now: int) -> Candidates:
        """The best candidates there are for a user; raises NothingPublishedError."""
        recs, version = found.recs, choice.version
        if recs is not None and size_of(recs) and recs.expires_at > now:
            return Candidates(recs, version, "list", True)
        if recs is not None and size_of(recs):
            made = self._on_demand(ask, choice, found, signals, policy, now)
            return Candidates(made or recs, version, "on_demand" if made else "expired_list", True)
        if not found.lost and choice.fallback is not None and ask.user_id:
            before = (await self.own(ask.user_id, choice.surface, choice.fallback, policy.deadline("previous_list"))).recs
            if before is not None and size_of(before) and before.expires_at > now:
                return Candidates(before, choice.fallback, "previous_list", True)
        made = self._on_demand(ask, choice, found, signals, policy, now)
        if made is not None:
            return Candidates(made, version, "on_demand", True)
        return self.popular(choice, None if signals.missing else signals.segment, found.lost, now)

    def popular(self, choice: Choice, segment: str | None, lost: bool, now: int) -> Candidates:
        """What is popular in a segment, or with everybody; raises NothingPublishedError when not even that is known."""
        bundle = self._bundles.get(choice.version)
        tier: Tier = "popular_in_memory" if lost else "popular"
        if bundle is None:
            kept = self._popular.get((choice.surface, choice.version))
            if kept is None:
                raise NothingPublishedError("the lists of the version that is published cannot be read")
            return Candidates(kept, choice.version, tier, False)
        if segment is None or segment not in bundle.manifest.segments:
            segment = EVERYBODY
        elif not lost:
            tier = "segment_popular"
        return Candidates(self._listed(bundle, segment, now), choice.version, tier, False)

    def _listed(self, bundle: Bundle, segment: str, now: int) -> RankedList:
        """A popular list of a bundle, made once in a while."""
        recs = self._bundled.get((bundle.version, segment))
        if recs is None or recs.expires_at - now < POPULAR_SECONDS * 500_000:
            if len(self._bundled) >= 64:
                self._bundled.clear()
            recs = self._bundled[bundle.version, segment] = popular_list(bundle, segment, now)
        return recs

    async def keep_popular(self, surface: str, active: Active) -> None:
        """Reads the popular lists of versions that have no bundle, so that they are there when the store is not; forgets those
        that the surface serves no more, but not yet those that requests under way may read."""
        wanted = [(surface, v) for v in versions_of(active)]
        before = [key for key in self._popular if key[0] == surface]
        for key in wanted:
            if key not in self._popular and self._bundles.get(key[1]) is None:
                found = await self._anyone(*key)
                if found is not None:
                    self._popular[key] = found
        for key in before[: -2 * len(wanted) or None]:
            if key not in wanted:
                del self._popular[key]

    async def _anyone(self, surface: str, version: str) -> RankedList | None:
        try:
            cell = (await self._store.read_lists([list_key(ANYONE, surface)], version))[0]
            return read_listed(cell.value) if cell is not None else None
        except (StoreError, CellError):
            return None

    def _on_demand(self, ask: Ask, choice: Choice, found: Found, signals: Signals, policy: ContextPolicy,
                   now: int) -> RankedList | None:
        if not ask.user_id:
            return None
        kept = self.made.get(choice.version, policy.name, ask.user_id, now)
        if kept is not None:
            return kept
        bundle = self._bundles.get(choice.version)
        if bundle is None or signals.missing:
            return None
        recs = self._guarded(self._make, ask, signals, bundle, policy, now)
        if recs is None or not size_of(recs):
            return None
        # a list made for a context that reads another surface's lists expires as its own policy says: the others never see it
        write = policy.name == choice.surface and not found.lost
        self.made.put(choice.version, policy.name, ask.user_id, recs, write)
        return recs

    def around(self, ask: Ask, choice: Choice, signals: Signals, policy: ContextPolicy, now: int) -> Candidates | None:
        """What lies around the items asked for, the same for everybody and kept as long as the policy says; None where nothing
        does, or it cannot be made now."""
        key = choice.version, policy.name, ask.item_ids
        kept = self._near.get(key)
        if kept is not None and kept.generated_at <= now < kept.expires_at:
            self._near.move_to_end(key)
            return Candidates(kept, choice.version, "on_demand", True)
        bundle = self._bundles.get(choice.version)
        recs = self._guarded(self._around, ask, signals, bundle, policy, now) if bundle is not None else None
        if recs is None or not size_of(recs):
            return None
        self._near[key] = recs = read_listed(encode_recs(recs))  # packed: a tenth of the memory, and ranked in one call
        self._near.move_to_end(key)
        if len(self._near) > KEPT_NEAR:
            self._near.popitem(last=False)
        return Candidates(recs, choice.version, "on_demand", True)

    def _guarded(self, make: Make, ask: Ask, signals: Signals, bundle: Bundle, policy: ContextPolicy,
                 now: int) -> RankedList | None:
        """A list made now, guarded by the index's breaker and the budget; None where that cannot be."""
        if not self._budget.allows():
            self.counts.on_demand_refused += 1
            return None
        if not self._breakers.index.allows():
            return None
        started, read = time.perf_counter(), _pages_read()
        try:
            recs = make(ask, signals, bundle, policy, now)
        except (OSError, ValueError, RuntimeError, MemoryError):  # the index is broken; lists made ahead are not
            self._breakers.index.failed()
            return None
        took = time.perf_counter() - started
        self._budget.spent(took)
        if took > policy.deadline("on_demand") and _pages_read() > read:  # what one ask computes is no fault of the index
            self._breakers.index.failed()
        else:
            self._breakers.index.ok()
        return recs


def _pages_read() -> int:
    """Pages that this thread waited for a disk for."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def popular_list(bundle: Bundle, segment: str, now: int) -> RankedList:
    """The popular list of a segment as a ranked list."""
    positions, scores = bundle.popular(segment)
    n = len(positions)
    return RankedList(bundle.ids(positions), np.asarray(scores, np.float32), ["popular"] * n, ["popular"] * n, [""] * n,
                      bundle.manifest.model_version, min(now, bundle.manifest.as_of), now + POPULAR_SECONDS * 1_000_000)


def more_popular(bundle: Bundle, recs: RankedList, count: int) -> RankedList:
    """A list and, behind it, the ``count`` most popular active items that it does not hold."""
    there = set(recs.item_ids)
    positions = bundle.by_popularity[: count + len(there)]
    more = [i for i in bundle.ids(positions) if i not in there][:count]
    n, least = len(more), float(np.min(recs.scores)) if len(recs.scores) else 0.0
    scores = np.concatenate([recs.scores, least - 1e-3 * np.arange(1, n + 1, dtype=np.float32)]).astype(np.float32)
    return RankedList([*recs.item_ids, *more], scores, [*recs.sources, *["popular"] * n], [*recs.reasons, *["popular"] * n],
                      [*recs.source_item_ids, *[""] * n], recs.model_version, recs.generated_at, recs.expires_at)
