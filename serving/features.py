"""Features as readers see them (serving.merge): by name for people, or the numbers of many entities as one matrix.

FeatureReader reads a Store, AsyncFeatureReader an AsyncStore with a deadline; both give the same answers and hold only the
streaming job's status, for a second.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Literal, TypeVar

from schemas.features import REGISTRY, Registry
from schemas.keys import ENTITY_KINDS, STATUS, STREAM_JOB, row_key, status_key
from schemas.put_cells import PUTS
from serving.merge import (
    BATCH_ROW,
    SOURCES,
    Cells,
    EntityFeatures,
    FeatureMatrix,
    FeatureValue,
    ListEntry,
    StreamStatus,
    merge_many,
    merge_one,
    plan_of,
    status_of,
)
from serving.stores.aio import AsyncStore
from serving.stores.base import Family, Store

__all__ = ["SOURCES", "AsyncFeatureReader", "Entity", "EntityFeatures", "FeatureMatrix", "FeatureReader", "FeatureValue",
           "ListEntry", "StatusCache", "StreamStatus"]

STATUS_SECONDS = 1.0
Entity = Literal["user", "item"]
_A = TypeVar("_A")
_B = TypeVar("_B")


class StatusCache:
    """The status row of a streaming job, believed for a while."""

    def __init__(self, job: str = STREAM_JOB, seconds: float = STATUS_SECONDS) -> None:
        self.key, self._seconds = status_key(job), seconds
        self._checked = -math.inf
        self.status: StreamStatus | None = None

    @property
    def is_old(self) -> bool:
        """Whether it is to be read anew."""
        return time.monotonic() - self._checked >= self._seconds

    def put(self, cells: Cells) -> StreamStatus | None:
        """Takes what the row holds now."""
        self.status, self._checked = status_of(cells.get(STATUS)), time.monotonic()
        return self.status

    async def fetch(self, store: AsyncStore, timeout: float | None = None) -> StreamStatus | None:
        """The status, read where what is known is old; raises StoreError."""
        if self.is_old:
            self.put((await store.read_row(self.key, {"stream": [STATUS]}, timeout))["stream"])
        return self.status


class FeatureReader:
    """Reads features of a streaming job and of batch.

    Args:
      job: name of the streaming job, as ``beamrec stream --name``.
      status_seconds: for how long its status is believed.
      registry: of the features there are.
    """

    def __init__(self, job: str = STREAM_JOB, status_seconds: float = STATUS_SECONDS, registry: Registry = REGISTRY) -> None:
        self._status, self._registry = StatusCache(job, status_seconds), registry

    def status(self, store: Store) -> StreamStatus | None:
        """The job's status, None where it never ran; raises StoreError."""
        if self._status.is_old:
            self._status.put(store.read_features([self._status.key], "stream", [STATUS])[0])
        return self._status.status

    def one(self, store: Store, entity: Entity, entity_id: str, now: int) -> EntityFeatures:
        """Every feature of one entity at ``now`` (microseconds); raises StoreError, CellError."""
        rows, wanted = [row_key(ENTITY_KINDS[entity], entity_id)], groups_of(self._registry, entity)
        batch, stream = (store.read_features(rows, family, wanted[family])[0] for family in wanted)
        return merge_one(self._registry, entity, batch, stream, self.status(store) if stream else None, now)

    def many(self, store: Store, entity: Entity, ids: Sequence[str], now: int,
             names: Sequence[str] | None = None) -> FeatureMatrix:
        """Numbers of many entities at ``now``, lists left out, with one read per family.

        Args:
          ids: n ids; an unknown one has defaults.
          names: k features of the entity that are numbers (default: all of them).

        Raises:
          KeyError: no such number.
          StoreError, CellError.
        """
        plan = plan_of(self._registry, entity, None if names is None else tuple(names))
        kind = ENTITY_KINDS[entity]
        rows = [row_key(kind, i) for i in ids]
        batch = store.read_features(rows, "batch", _batch_groups(entity, plan.groups_of("batch")))
        streamed = plan.groups_of("stream")
        stream = store.read_features(rows, "stream", streamed) if streamed else [{} for _ in rows]
        return merge_many(self._registry, entity, plan, batch, stream, self.status(store) if any(stream) else None, now)


class AsyncFeatureReader:
    """FeatureReader for one event loop; every call has a deadline, ``timeout`` in seconds, and raises DeadlineError then."""

    def __init__(self, job: str = STREAM_JOB, status_seconds: float = STATUS_SECONDS, registry: Registry = REGISTRY) -> None:
        self._status, self._registry = StatusCache(job, status_seconds), registry

    async def one(self, store: AsyncStore, entity: Entity, entity_id: str, now: int,
                  timeout: float | None = None) -> EntityFeatures:
        """See FeatureReader.one."""
        wanted = groups_of(self._registry, entity)
        cells, status = await together(store, store.read_row(row_key(ENTITY_KINDS[entity], entity_id), wanted, timeout),
                                       self._status.fetch(store, timeout))
        return merge_one(self._registry, entity, cells["batch"], cells["stream"], status, now)

    async def many(self, store: AsyncStore, entity: Entity, ids: Sequence[str], now: int, names: Sequence[str] | None = None,
                   timeout: float | None = None) -> FeatureMatrix:
        """See FeatureReader.many."""
        plan = plan_of(self._registry, entity, None if names is None else tuple(names))
        kind = ENTITY_KINDS[entity]
        rows = [row_key(kind, i) for i in ids]
        batch = store.read_features(rows, "batch", _batch_groups(entity, plan.groups_of("batch")), timeout)
        if not (streamed := plan.groups_of("stream")):
            return merge_many(self._registry, entity, plan, await batch, [{}] * len(rows), None, now)
        stream = together(store, store.read_features(rows, "stream", streamed, timeout), self._status.fetch(store, timeout))
        held, (live, status) = await together(store, batch, stream)
        return merge_many(self._registry, entity, plan, held, live, status, now)


async def together(store: AsyncStore, first: Coroutine[Any, Any, _A], second: Coroutine[Any, Any, _B]) -> tuple[_A, _B]:
    """Both results; at the same time where the store waits for a network, else tasks would only cost."""
    if not store.waits:
        try:
            one = await first
        except BaseException:
            second.close()
            raise
        return one, await second
    return await asyncio.gather(first, second)


def groups_of(registry: Registry, entity: str) -> dict[Family, list[str]]:
    """Every group of an entity by family, and that of what was PUT."""
    named = [g for g in registry.groups if g.entity == entity]
    return {"batch": [*(g.name for g in named if g.source == "batch"), PUTS],
            "stream": [g.name for g in named if g.source == "stream"]}


def _batch_groups(entity: str, groups: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([BATCH_ROW[entity], *groups, PUTS]))
