"""What a worker's routes share: made by create_app, opened in the running loop, closed after the last answer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.workspace import Workspace
from serving.api.auth import Guard
from serving.api.metrics import ServeCounters
from serving.api.peers import Peers
from serving.api.titles import Titles
from serving.api.worker import worker_lines
from serving.collector.app import Collector
from serving.collector.settings import CollectorSettings, beside
from serving.follow import Follower, grown
from serving.ladder import Breakers, NothingPublishedError
from serving.logs import LOGGER, Mask
from serving.ranking.overlay import ItemUpsert
from serving.ranking.policy import load
from serving.recommender import Recommender
from serving.settings import Clock, Settings
from serving.stores.aio import AsyncStore, open_async
from serving.trending import Trending, Trends
from serving.truth import Truth

if TYPE_CHECKING:
    from serving.api.recommendations import Lists

_log = logging.getLogger(LOGGER)


class State:
    """One worker. What needs the running loop is there from ``open`` on: routes use it, router functions do not.

    Attributes:
      settings, workspace: of this server.
      clock: microseconds since 1970 by the workspace's clock.
      guard: who may do what: ``guard.needs(role)`` is a FastAPI dependency that gives the Caller.
      mask: what stands in a log for a user id.
      counters: for /metrics.
      peers: the counts of all workers.
      lists: answers with lists.
      store: of features, lists and versions.
      recommender: makes lists; it holds the bundles, versions and breakers.
      titles: metadata of items that no bundle holds.
      trends: keeps what is trending in the recommender.
      collector: takes events, items and users; None without an event log.
      truth: logs what was served; None without an event log.
      follower: brings items and users as they are PUT into the store and the overlay; None without an event log.
    """

    lists: Lists
    store: AsyncStore
    recommender: Recommender
    titles: Titles
    trends: Trends

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.workspace)
        self.clock = Clock(self.workspace)
        self.guard = Guard(settings)
        self.mask = Mask(settings.mask)
        self.counters = ServeCounters()
        self.peers = Peers(settings.run if settings.workers > 1 else None, partial(worker_lines, self))
        self.collector: Collector | None = None
        self.truth: Truth | None = None
        self.follower: Follower | None = None
        self._freshening = threading.Lock()

    @property
    def breakers(self) -> Breakers:
        """One per dependency of a request."""
        return self.recommender.breakers

    async def open(self) -> None:
        """Opens stores and logs in the running loop; raises LogError."""
        settings = self.settings
        self.store = open_async(settings.store)
        self.titles = Titles(self.store)
        folder = settings.bundles or self.workspace.bundles
        self.recommender = Recommender(self.store, self.clock, folder, load(settings.policies), settings.stream_job)
        if settings.log is not None:
            if settings.events:
                self.collector = Collector(CollectorSettings(settings.log, settings.store, settings.partitions))
                self.collector.open()
            self.truth = Truth(beside(settings.log, "served", max(settings.partitions, settings.workers)), self.counters.truth)
            self.truth.start()
            self.follower = Follower(settings.log, settings.store, self._locks(), self._add_items)
            self.follower.start()
        self.trends = Trends(self.store, self.clock, self._set_trending, settings.stream_job)
        await self.recommender.open()
        self.trends.start()
        self.peers.start()
        self.guard.start()
        try:
            _log.info("worker started", extra={"fields": {"state": self.recommender.check()}})
        except NothingPublishedError as reason:
            _log.warning("worker started without recommendations", extra={"fields": {"detail": str(reason)}})

    def _locks(self) -> list[Path]:
        """Where one worker becomes the one that writes: in the workspace or, if that can only be read, among this server's."""
        return [folder / "follow.lock" for folder in (self.workspace.root, self.settings.run) if folder is not None]

    def _add_items(self, upserts: Sequence[ItemUpsert]) -> None:
        """Shows new items, and hides removed ones, from now on; called in the follower's thread."""
        with self._freshening:
            fresh = self.recommender.fresh
            self.recommender.fresh = replace(fresh, overlay=grown(fresh.overlay, upserts))

    def _set_trending(self, trending: Trending) -> None:
        if not self._freshening.acquire(blocking=False):
            return  # the overlay is growing, for which the loop does not wait: it is told again soon
        try:
            self.recommender.fresh = replace(self.recommender.fresh, trending=trending)
        finally:
            self._freshening.release()

    async def close(self) -> None:
        """Makes durable what was accepted, then releases everything."""
        if self.collector is not None:
            await self.collector.flush()
            self.collector.close()
        if self.follower is not None:
            await asyncio.to_thread(self.follower.close)
        if self.truth is not None:
            await self.truth.close()
        self.guard.close()
        await self.peers.close()
        await self.trends.close()
        await self.recommender.close()
        await self.store.close()
        _log.info("worker stopped")
