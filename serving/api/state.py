"""What a worker's routes share: made by create_app, opened in the running loop, closed after the last answer."""

from __future__ import annotations

import logging
from functools import partial

from schemas.workspace import Workspace
from serving import read
from serving.api.auth import Guard
from serving.collector.app import Collector
from serving.collector.settings import CollectorSettings
from serving.features import FeatureReader
from serving.logs import LOGGER, Mask
from serving.settings import Clock, Settings
from serving.stores import open_store

_log = logging.getLogger(LOGGER)


class State:
    """One worker.

    Attributes:
      settings, workspace: of this server.
      clock: microseconds since 1970 by the workspace's clock.
      guard: who may do what: ``guard.needs(role)`` is a FastAPI dependency that gives the Caller.
      mask: what stands in a log for a user id.
      reader: lists from the store.
      features: reads features by name.
      collector: takes events, items and users; None without an event log.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.workspace)
        self.clock = Clock(self.workspace)
        self.guard = Guard(settings)
        self.mask = Mask(settings.mask)
        self.reader = read.ListReader(partial(open_store, settings.store, create=False), self.clock, _tell)
        self.features = FeatureReader()
        self.collector: Collector | None = None

    async def open(self) -> None:
        """Opens stores and logs in the running loop; raises LogError."""
        settings = self.settings
        if settings.log is not None:
            self.collector = Collector(CollectorSettings(settings.log, settings.store, settings.partitions))
            self.collector.open()
        try:
            _log.info("worker started", extra={"fields": {"state": self.reader.check()}})  # also loads the popular lists
        except read.NothingPublishedError as reason:
            _log.warning("worker started without recommendations", extra={"fields": {"detail": str(reason)}})

    async def close(self) -> None:
        """Makes durable what was accepted, then releases everything."""
        if self.collector is not None:
            await self.collector.flush()
            self.collector.close()
        self.reader.close()
        _log.info("worker stopped")


def _tell(event: str, fields: dict[str, str]) -> None:
    level = logging.WARNING if event.startswith("unreadable") or event.endswith("unreadable") else logging.INFO
    _log.log(level, event, extra={"fields": fields})
