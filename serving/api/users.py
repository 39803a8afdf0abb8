"""What the page shows of a user beyond the public API: whom one could look at, a profile, the lists of each version.

For people, a few requests a second: the store is read in threads of their own, never in the loop that answers the rest.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath

from schemas.cells import CellError, RankedList, decode_recs
from schemas.features import STREAM_TTL
from schemas.keys import list_key
from serving.api.auth import Caller
from serving.api.openapi import responses
from serving.api.problems import unavailable
from serving.api.state import State
from serving.catalogue import Catalogue, CatalogueItem, title_of
from serving.features import FeatureReader, FeatureValue
from serving.profile import HistoryItem, read_user
from serving.responses import reason_sentence, rfc3339
from serving.stores import StoreUriError, open_store
from serving.stores.base import Active, Store, StoreError
from serving.versions import version_for
from transforms.ingest import END_OF_TIME

ANYONE = ""
HOMEPAGE = "homepage"
SAMPLE, LOOKED_AT = 8, 64
"""Users offered, and rows of the active version that are looked at for them: the first ones, never a scan."""
_ID = r"^[^\x00-\x1f\x7f]+$"
_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode

UserId = Annotated[str, InPath(min_length=1, max_length=256, pattern=_ID)]
Surface = Annotated[str, Query(min_length=1, max_length=32, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Limit = Annotated[int, Query(ge=1, le=100)]


class SampleUser(msgspec.Struct, frozen=True):
    """A user one could look at; ``segment`` null: no history is known."""

    user_id: str
    segment: str | None
    last_title: str | None


class SampleUsers(msgspec.Struct, frozen=True):
    """Some users of the active version, of different segments where there are."""

    users: list[SampleUser]


class StreamPulse(msgspec.Struct, frozen=True):
    """The streaming job: seconds since it was heard of, its watermark, and whether its values are used."""

    alive: bool
    age_s: float
    watermark: str | None


class Profile(msgspec.Struct, frozen=True):
    """What is known of a user: recent items (newest first), every feature with its source and age in seconds."""

    user_id: str
    known: bool
    low_confidence: bool
    segment: str | None
    history: list[HistoryItem]
    features: dict[str, FeatureValue]
    stream: StreamPulse | None


class ListedItem(msgspec.Struct, frozen=True):
    """An item of a stored list, as it was before anything of the request changed its place."""

    item_id: str
    rank: int
    score: float
    rec_source: str
    reason: str
    metadata: CatalogueItem


class StoredList(msgspec.Struct, frozen=True):
    """A list of one version; not ``personal``: the popular list, for the user has none of that version."""

    role: str
    version: str
    model_version: str
    generated_at: str
    expires_at: str
    personal: bool
    items: list[ListedItem]


class StoredLists(msgspec.Struct, frozen=True):
    """Lists of champion, challenger and previous version; ``reads``: whose the user gets; percent of the challenger."""

    context: str
    reads: str | None
    percent: float
    lists: list[StoredList]


SCHEMAS = (SampleUsers, SampleUser, Profile, StreamPulse, HistoryItem, FeatureValue, StoredLists, StoredList, ListedItem,
           CatalogueItem)


class People:
    """Reads users for people. Each method takes one thread for a few milliseconds and raises StoreError, CellError.

    Args:
      store: opens it; called again after it failed.
      now: microseconds since 1970 by the workspace's clock.
      job: name of the streaming job.
    """

    def __init__(self, store: Callable[[], Store], now: Callable[[], int], job: str) -> None:
        self._open, self._now = store, now
        self._store: Store | None = None
        self._catalogue, self._features = Catalogue(), FeatureReader(job)
        self._sample: tuple[str, SampleUsers] | None = None

    def sample(self) -> SampleUsers:
        """Some users; looked for once for each version."""
        store = self._connected()
        active = store.active(HOMEPAGE)
        if active is None:
            return SampleUsers([])
        if self._sample is None or self._sample[0] != active.champion:
            self._sample = active.champion, self._find(store, active.champion)
        return self._sample[1]

    def profile(self, user_id: str) -> Profile:
        """What is known of a user."""
        store, now = self._connected(), self._now()
        found = read_user(store, self._catalogue, user_id, now, self._features)
        status = self._features.status(store)
        pulse = None
        if status is not None:
            age = status.age_s(now)
            mark = status.watermark if status.watermark is not None and status.watermark < END_OF_TIME else None  # it has ended
            pulse = StreamPulse(age <= STREAM_TTL, age, None if mark is None else rfc3339(mark))
        return Profile(user_id, found.known, found.low_confidence, _segment(found.features), found.history, found.features,
                       pulse)

    def lists(self, user_id: str, surface: str, limit: int) -> StoredLists:
        """The stored lists of each version that is served, or was before."""
        store = self._connected()
        active = store.active(surface)
        if active is None and surface != HOMEPAGE:
            surface, active = HOMEPAGE, store.active(HOMEPAGE)
        if active is None:
            return StoredLists(surface, None, 0, [])
        roles = {"champion": active.champion, "challenger": active.challenger, "previous": active.previous}
        found = [self._list(store, role, version, user_id, surface, limit) for role, version in roles.items() if version]
        return StoredLists(surface, _reads(active, user_id), active.percent, [each for each in found if each is not None])

    def close(self) -> None:
        """Releases the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _connected(self) -> Store:
        if self._store is None:
            self._store = self._open()
        return self._store

    def _find(self, store: Store, version: str) -> SampleUsers:
        rows = store.scan_lists(version)
        ids = [user for row, _ in itertools.islice(rows, LOOKED_AT) if (user := _user_of(row))]
        if not ids:
            return SampleUsers([])
        now = self._now()
        known: list[SampleUser] = []
        for user_id in ids[: LOOKED_AT // 2]:
            found = read_user(store, self._catalogue, user_id, now, self._features)
            known.append(SampleUser(user_id, _segment(found.features), found.history[0].title if found.history else None))
        seen: Counter[str | None] = Counter()
        turns: list[int] = []
        for each in known:
            seen[each.segment] += 1
            turns.append(seen[each.segment])
        first = sorted(range(len(known)), key=turns.__getitem__)  # of each segment one, then of each another
        return SampleUsers([known[place] for place in first[:SAMPLE]])

    def _list(self, store: Store, role: str, version: str, user_id: str, surface: str, limit: int) -> StoredList | None:
        own, popular = store.read_lists([list_key(user_id, surface), list_key(ANYONE, surface)], version)
        cell = own or popular
        if cell is None:
            return None
        recs = decode_recs(cell.value)
        shown = range(min(limit, len(recs.item_ids)))
        wanted = [i for p in shown for i in (recs.item_ids[p], recs.source_item_ids[p]) if i]
        items = self._catalogue.items(store, wanted)
        return StoredList(role, version, recs.model_version, rfc3339(recs.generated_at), rfc3339(recs.expires_at),
                          own is not None, [_listed(recs, p, items) for p in shown])


def _listed(recs: RankedList, place: int, items: dict[str, CatalogueItem]) -> ListedItem:
    item_id, because = recs.item_ids[place], recs.source_item_ids[place]
    reason = reason_sentence(recs.reasons[place], (title_of(items, because) or because) if because else None)
    return ListedItem(item_id, place + 1, float(f"{recs.scores[place]:.7g}"), recs.sources[place], reason,
                      items.get(item_id, CatalogueItem()))


def _segment(features: dict[str, FeatureValue]) -> str | None:
    found = features.get("segment")
    return found.label if found is not None and found.source != "default" else None


def _reads(active: Active, user_id: str) -> str:
    return "challenger" if active.challenger and version_for(active, user_id) == active.challenger else "champion"


def _user_of(row: str) -> str:
    """The user of a row of ``recommendations``, "" for the popular list."""
    return row.partition("#")[2].rpartition("#")[0]


def router(state: State) -> APIRouter:
    """The routes of users."""
    threads = ThreadPoolExecutor(2, "beamrec-people")
    people = People(lambda: open_store(state.settings.store, create=False), state.clock, state.settings.stream_job)

    async def close() -> None:
        threads.shutdown()
        people.close()

    routes = APIRouter(tags=["users"], on_shutdown=[close])
    reader = state.guard.needs("read")

    async def read(work: Callable[[], _T]) -> Response:
        try:
            return Response(_encode(await asyncio.get_running_loop().run_in_executor(threads, work)),
                            media_type="application/json", headers={"Cache-Control": "private, no-store"})
        except (StoreError, StoreUriError, CellError) as error:
            people.close()
            raise unavailable("the store cannot be read now") from error

    @routes.get("/v1/users/sample", summary="Some users of the active version",
                responses=responses(SampleUsers, 401, 403, 429, 503))
    async def sample(_: Caller = reader) -> Response:
        return await read(people.sample)

    @routes.get("/v1/users/{user_id:path}/profile", summary="What is known of a user",
                responses=responses(Profile, 401, 403, 422, 429, 503))
    async def profile(user_id: UserId, _: Caller = reader) -> Response:
        return await read(lambda: people.profile(user_id))

    @routes.get("/v1/users/{user_id:path}/lists", summary="A user's stored list of each version, to compare",
                responses=responses(StoredLists, 401, 403, 422, 429, 503))
    async def lists(user_id: UserId, context: Surface = HOMEPAGE, limit: Limit = 20,
                    _: Caller = reader) -> Response:
        return await read(lambda: people.lists(user_id, context, limit))

    return routes
