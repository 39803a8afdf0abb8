"""One request from asked to ranked: signals and list are read together, the ladder finds candidates, ranking makes the page.

Everything of an answer is of one version: its list, its bundle (titles, neighbours, vectors) and its explanations.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from models.inference.bundle import Bundle
from schemas.cells import CellError
from schemas.keys import hash64
from serving.bundles import Bundles
from serving.ladder import Breakers, Deadlines, Found, Ladder, Make, NothingPublishedError, more_popular
from serving.logs import LOGGER
from serving.ranking.model import Ask, Candidates, Ranked, Signals
from serving.stores.aio import AsyncSqliteStore, AsyncStore
from serving.stores.base import Active, StoreError
from serving.versions import Choice, Versions

_log = logging.getLogger(LOGGER)
_A = TypeVar("_A")
_B = TypeVar("_B")
Rank = Callable[[Ask, Candidates, Signals, Bundle | None], Ranked]
ReadSignals = Callable[[AsyncStore, str, int, float], Awaitable[Signals]]
NO_SIGNALS = Signals(missing=True)
FEATURE_SECONDS = 0.015


@dataclass(frozen=True)
class Answer:
    """What a request is answered with.

    Attributes:
      ranked: the page.
      candidates: what it was made from; ``candidates.version`` is the one of everything here.
      signals: of the user, as used.
      bundle: of that version; None for a version without one.
      seconds: spent, by step: reads, ladder, rank.
    """

    ranked: Ranked
    candidates: Candidates
    signals: Signals
    bundle: Bundle | None
    seconds: Mapping[str, float]


async def together(store_waits: bool, first: Coroutine[Any, Any, _A], second: Coroutine[Any, Any, _B]) -> tuple[_A, _B]:
    """Both results; at the same time where the store waits for a network, else a task each would only cost."""
    if not store_waits:
        return await first, await second
    beside = asyncio.get_running_loop().create_task(second)
    try:
        return await first, await beside
    except BaseException:
        beside.cancel()
        raise


class Recommender:
    """Answers requests of one worker, in its event loop.

    Args:
      store: of features, lists and pointers.
      now: the workspace clock, microseconds since 1970.
      folder: holds the bundles; None: there are none.
      surfaces: that may have lists of their own.
    """

    def __init__(self, store: AsyncStore, now: Callable[[], int], folder: Path | None = None,
                 surfaces: tuple[str, ...] = (), make: Make | None = None, rank: Rank | None = None,
                 read_signals: ReadSignals | None = None) -> None:
        self._store, self._now = store, now
        self._rank, self._read_signals = rank or in_order, read_signals or _no_signals
        self._waits = not isinstance(store, AsyncSqliteStore)
        self.breakers = Breakers.make(_breaker_changed)
        self.bundles = Bundles(folder, _tell)
        self.versions = Versions(store, self.bundles, surfaces, on_change=self._changed)
        self.ladder = Ladder(store, self.bundles, self.breakers, make or _nothing)
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Reads the pointers and loads their bundles; a store that is away does not keep a worker from starting."""
        await self.versions.start()
        await self._settled()

    async def close(self) -> None:
        """Ends what runs in the background; does not close the store."""
        await self.versions.close()
        await self._settled()
        await self.ladder.made.close()
        await self.bundles.close()

    def check(self) -> str:
        """"ready" when the store answers, "degraded" when only memory does; raises NothingPublishedError."""
        choice = self.versions.choose("", "")
        if choice is None:
            raise NothingPublishedError(self.versions.trouble or "nothing is published yet")
        self.ladder.popular(choice, None, False, self._now())
        return "degraded" if self.versions.trouble or self.breakers.lists.state == "open" else "ready"

    async def recommend(self, ask: Ask) -> Answer:
        """One page; raises NothingPublishedError when there is no list at all to answer from."""
        started = perf_counter()
        now, deadlines = self._now(), Deadlines()
        choice = self.versions.choose(ask.context, ask.user_id, ask.version)
        if choice is None:
            raise NothingPublishedError(self.versions.trouble or "nothing is published yet")
        found, signals = await self._read(ask, choice, now, deadlines)
        read = perf_counter()
        candidates = await self.ladder.find(ask, choice, found, signals, now, deadlines)
        bundle = self.bundles.get(candidates.version)
        climbed = perf_counter()
        ranked, candidates = self._page(ask, choice, candidates, signals, bundle, found.lost, now)
        return Answer(ranked, candidates, signals, bundle,
                      {"reads": read - started, "ladder": climbed - read, "rank": perf_counter() - climbed})

    async def _read(self, ask: Ask, choice: Choice, now: int, deadlines: Deadlines) -> tuple[Found, Signals]:
        own = self.ladder.own(ask.user_id, choice.surface, choice.version, deadlines.list)
        return await together(self._waits, own, self.signals(ask.user_id, now))

    async def signals(self, user_id: str, now: int, seconds: float = FEATURE_SECONDS) -> Signals:
        """What is known of a user now; ``missing`` where features cannot be read in time."""
        if not user_id:
            return Signals()
        breaker = self.breakers.features
        if not breaker.allows():
            return NO_SIGNALS
        try:
            found = await self._read_signals(self._store, user_id, now, seconds)
        except StoreError:
            breaker.failed()
            return NO_SIGNALS
        except CellError:  # one bad cell is no reason to do without everybody's
            breaker.ok()
            return NO_SIGNALS
        breaker.ok()
        return found

    def _page(self, ask: Ask, choice: Choice, candidates: Candidates, signals: Signals, bundle: Bundle | None, lost: bool,
              now: int) -> tuple[Ranked, Candidates]:
        """The page, filled with what is popular where the list does not suffice."""
        ranked = self._rank(ask, candidates, signals, bundle)
        if len(ranked.item_ids) >= ask.page_size:
            return ranked, candidates
        if bundle is not None:
            reach = ask.page_size + len(signals.hidden) + len(ask.exclude) + len(ask.shown)
            candidates = replace(candidates, recs=more_popular(bundle, candidates.recs, reach, now))
            ranked = self._rank(ask, candidates, signals, bundle)
        if not ranked.item_ids and not len(ask.shown):  # who consumed all there is still gets an answer
            if bundle is None and candidates.personal:
                with contextlib.suppress(NothingPublishedError):
                    candidates = self.ladder.popular(choice, None, lost, now)
            ranked = self._rank(ask, candidates, signals, bundle)
            if not ranked.item_ids:
                ranked = self._rank(ask, candidates, replace(signals, hidden=frozenset()), bundle)
        return ranked, candidates

    def _changed(self, surface: str, active: Active) -> None:
        _tell("active version", {"surface": surface, "version": active.champion})
        task = asyncio.get_running_loop().create_task(self.ladder.keep_popular(surface, active))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settled(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)


def _tell(event: str, fields: dict[str, str]) -> None:
    level = logging.WARNING if "broken" in event else logging.INFO
    _log.log(level, event, extra={"fields": fields})


def _breaker_changed(name: str, state: str) -> None:
    _log.log(logging.INFO if state == "closed" else logging.WARNING, f"{name} breaker {state}", extra={"fields": {}})


def in_order(ask: Ask, candidates: Candidates, signals: Signals, bundle: Bundle | None = None) -> Ranked:
    """The first page of a list as it is stored, without what is hidden, excluded or was shown before."""
    recs, shown = candidates.recs, set(ask.shown.tolist())
    at = [p for p, i in enumerate(recs.item_ids) if i not in signals.hidden and i not in ask.exclude
          and (not shown or hash64(i) & 0xFFFFFFFF not in shown)]
    page = at[: ask.page_size]
    return Ranked([recs.item_ids[p] for p in page], recs.scores[np.array(page, np.int64)], [recs.sources[p] for p in page],
                  [recs.reasons[p] for p in page], [recs.source_item_ids[p] for p in page], {}, len(at) > len(page))


def _nothing(ask: Ask, signals: Signals, bundle: Bundle, now: int) -> None:
    return None


async def _no_signals(store: AsyncStore, user_id: str, now: int, seconds: float) -> Signals:
    return Signals()
