"""The read path: one page of the ranked list that a user is to see now.

The user's own list of the active version; without one the popular list of that version; without a readable store the
popular list kept in memory. Consumed, suppressed and excluded items never appear.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

import msgspec

from schemas.cells import CellError, RankedList, decode_list, decode_recs
from schemas.keys import SUPPRESSED, USER, list_key, row_key
from schemas.workspace import DAY_MICROS
from serving.catalogue import Catalogue, CatalogueItem, title_of
from serving.responses import Explanation, Metadata, RankedItem, Recommendations, ServedFrom, reason_sentence, rfc3339
from serving.stores.base import ANY, Active, Store, StoreError
from serving.versions import Pointers, version_for

HOMEPAGE = "homepage"
"""The surface whose lists answer for a surface without lists of its own."""
ANYONE = ""
"""User id under which the recommend job writes the popular list."""
CONSUMED = "user_consumed"
SUPPRESS_DAYS = 7
"""A suppression older than this hides nothing: the batch features have had the event for days by then."""
REOPEN_SECONDS = 1.0
MAX_CURSOR = 512


class NothingPublishedError(RuntimeError):
    """No version was ever published, or none can be read and nothing is in memory."""


class CursorError(ValueError):
    """A cursor that this API did not hand out."""


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where the next page starts: a position in one list of one version, so that a flip never mixes two lists."""

    version: str
    surface: str
    personal: bool
    offset: int
    served: int

    def encode(self) -> str:
        """URL-safe text; opaque to clients."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """The cursor of a text; raises CursorError."""
        try:
            if len(text) > MAX_CURSOR:
                raise CursorError("the cursor is too long")
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            cursor = msgspec.json.decode(raw, type=cls)
        except (binascii.Error, UnicodeError, ValueError, msgspec.DecodeError) as error:
            raise CursorError("not a cursor of this API; leave it out to start at the first page") from error
        if cursor.offset < 0 or cursor.served < 0:
            raise CursorError("not a cursor of this API; leave it out to start at the first page")
        return cursor


@dataclass(frozen=True)
class Request:
    """What a client asks for; already validated."""

    user_id: str
    surface: str = HOMEPAGE
    page_size: int = 20
    cursor: Cursor | None = None
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Source:
    """A list and where it was found."""

    recs: RankedList
    version: str
    surface: str
    personal: bool


@dataclass(frozen=True)
class _Popular:
    source: _Source
    items: dict[str, CatalogueItem]


class ListReader:
    """Reads pages of ranked lists. One per process: it holds the store, the pointers, titles and the last popular lists.

    Args:
      open_store: opens the store; called again, at most once a second, after the store failed.
      now: the workspace clock, microseconds since 1970.
      on_state: told "store unreadable", "store readable" and "active version" events, for logs.
    """

    def __init__(self, open_store: Callable[[], Store], now: Callable[[], int],
                 on_state: Callable[[str, dict[str, str]], None] | None = None) -> None:
        self._open, self._now, self._on_state = open_store, now, on_state
        self._store: Store | None = None
        self._failed_at: float | None = None
        self._failure = ""
        self._popular: dict[str, _Popular] = {}
        self._catalogue = Catalogue()
        self._pointers = Pointers(on_change=self._keep_popular)

    def recommend(self, request: Request, request_id: str) -> Recommendations:
        """One page; raises NothingPublishedError when there is no list at all to answer from."""
        try:
            store = self._connected()
            answer = self._from_store(store, request, request_id)
            if answer is None:  # the pointer may be a second old, and its version dropped since
                self._pointers.forget()
                answer = self._from_store(store, request, request_id)
        except (StoreError, CellError) as error:
            self._fail(error)
            return self._from_memory(request, request_id)
        self._recover()
        return answer or self._from_memory(request, request_id)

    def check(self) -> str:
        """"ready" when the store answers, "degraded" when only memory does; raises NothingPublishedError."""
        try:
            active = self._pointers.get(self._connected(), HOMEPAGE)
        except (StoreError, CellError) as error:
            self._fail(error)
            if self._popular:
                return "degraded"
            raise NothingPublishedError("the store cannot be read") from error
        self._recover()
        if active is None and not self._popular:
            raise NothingPublishedError("nothing is published yet")
        return "ready"

    def close(self) -> None:
        """Closes the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _connected(self) -> Store:
        if self._store is None:
            if self._failed_at is not None and time.monotonic() - self._failed_at < REOPEN_SECONDS:
                raise StoreError(self._failure)
            self._store = self._open()
        return self._store

    def _fail(self, error: Exception) -> None:
        if isinstance(error, CellError):  # one bad cell is no reason to reopen the store
            self._tell("unreadable cell", {"detail": str(error)})
            return
        if not self._failure:
            self._tell("store unreadable", {"detail": str(error)})
        if self._store is not None or self._failed_at is None or time.monotonic() - self._failed_at >= REOPEN_SECONDS:
            self._failed_at = time.monotonic()
        self._failure = str(error) or "the store cannot be read"
        self.close()
        self._pointers.forget()

    def _recover(self) -> None:
        if self._failure:
            self._failure, self._failed_at = "", None
            self._tell("store readable", {})

    def _tell(self, event: str, fields: dict[str, str]) -> None:
        if self._on_state is not None:
            self._on_state(event, fields)

    def _keep_popular(self, surface: str, active: Active) -> None:
        """Loads the popular list of a version that has just become active, so that it is there when the store is not."""
        store = self._connected()
        cell = store.read_lists([list_key(ANYONE, surface)], active.champion)[0]
        self._tell("active version", {"surface": surface, "version": active.champion})
        if cell is not None:
            try:
                recs = decode_recs(cell.value)
            except CellError as error:  # costs the fallback its refresh, not the users their lists
                self._tell("unreadable cell", {"detail": str(error)})
                return
            items = self._catalogue.items(store, [*recs.item_ids, *recs.source_item_ids])
            self._popular[surface] = _Popular(_Source(recs, active.champion, surface, False), items)

    def _from_store(self, store: Store, request: Request, request_id: str) -> Recommendations | None:
        suppressed = request.exclude | self._suppressed(store, request.user_id)
        hidden = suppressed | self._consumed(store, request.user_id)
        page: _Page | None = None
        for source in self._sources(store, request):
            page = _page(source, request, hidden)
            if page.positions:
                break
        else:
            if page is None:
                return None
            source = page.source  # who consumed all that is popular still gets an answer
            page = _page(source, request, suppressed)
            page = page if page.positions else _page(source, request, request.exclude)
        recs = page.source.recs
        ids = [i for p in page.positions for i in (recs.item_ids[p], recs.source_item_ids[p]) if i]
        expired = recs.expires_at <= self._now()
        tier: ServedFrom = ("expired_list" if expired else "list") if page.source.personal else "popular"
        return _answer(page, self._catalogue.items(store, ids), request_id, tier)

    def _from_memory(self, request: Request, request_id: str) -> Recommendations:
        popular = self._popular.get(request.surface) or self._popular.get(HOMEPAGE)
        if popular is None:
            raise NothingPublishedError("the store cannot be read" if self._failure else "nothing is published yet")
        page = _page(popular.source, request, request.exclude)
        return _answer(page, popular.items, request_id, "popular_in_memory")

    def _sources(self, store: Store, request: Request) -> Iterator[_Source]:
        """The lists that may answer, best first: own list of the surface, of the homepage, then the popular ones.

        The list that a cursor came from goes first. Each is read only when it is asked for.
        """
        cursor = request.cursor
        surfaces = list(dict.fromkeys((request.surface, HOMEPAGE)))
        kinds = [(surface, personal) for personal in (True, False) for surface in surfaces]
        if cursor is not None:
            kinds.sort(key=lambda kind: kind != (cursor.surface, cursor.personal))
        for surface, personal in kinds:
            active = self._pointers.get(store, surface)
            if active is None:
                continue
            version = version_for(active, request.user_id)
            if cursor is not None and cursor.surface == surface and cursor.version in (
                    active.champion, active.challenger, active.previous):
                version = cursor.version  # later pages of a list that was flipped away since its first page
            cell = store.read_lists([list_key(request.user_id if personal else ANYONE, surface)], version)[0]
            if cell is None:
                continue
            try:
                yield _Source(decode_recs(cell.value), version, surface, personal)
            except CellError as error:
                self._tell("unreadable cell", {"detail": str(error)})

    def _suppressed(self, store: Store, user_id: str) -> Set[str]:
        """What the user was done with just now, also while neither stream nor batch features know it yet."""
        cells = store.read_features([row_key(USER, user_id)], "stream", [SUPPRESSED + ANY])[0]
        since = self._now() - SUPPRESS_DAYS * DAY_MICROS
        return {group[len(SUPPRESSED):] for group, cell in cells.items() if cell.timestamp >= since}

    @staticmethod
    def _consumed(store: Store, user_id: str) -> Set[str]:
        cells = store.read_features([row_key(USER, user_id)], "batch", [CONSUMED])[0]
        return set(decode_list(cells[CONSUMED].value)[0]) if CONSUMED in cells else frozenset()


@dataclass(frozen=True)
class _Page:
    source: _Source
    positions: list[int]
    next_offset: int | None
    served: int


def _page(source: _Source, request: Request, hidden: Set[str]) -> _Page:
    """The next ``page_size`` positions of a list whose items are not hidden."""
    cursor = request.cursor
    continues = cursor is not None and (cursor.surface, cursor.personal) == (source.surface, source.personal)
    offset, served = (cursor.offset, cursor.served) if cursor is not None and continues else (0, 0)
    ids = source.recs.item_ids
    positions: list[int] = []
    for position in range(offset, len(ids)):
        if ids[position] in hidden:
            continue
        if len(positions) == request.page_size:
            return _Page(source, positions, position, served)
        positions.append(position)
    return _Page(source, positions, None, served)


def _answer(page: _Page, items: dict[str, CatalogueItem], request_id: str, tier: ServedFrom) -> Recommendations:
    source, recs = page.source, page.source.recs
    ranked = []
    for rank, p in enumerate(page.positions, page.served + 1):
        item_id, because, kind = recs.item_ids[p], recs.source_item_ids[p], recs.reasons[p]
        sentence = reason_sentence(kind, (title_of(items, because) or because) if because else None)
        ranked.append(RankedItem(item_id, rank, float(f"{recs.scores[p]:.7g}"), recs.sources[p],
                                 Explanation(kind, sentence, because or None), Metadata(title_of(items, item_id))))
    cursor = None
    if page.next_offset is not None:
        cursor = Cursor(source.version, source.surface, source.personal, page.next_offset, page.served + len(ranked)).encode()
    return Recommendations(request_id, ranked, recs.model_version, rfc3339(recs.generated_at), rfc3339(recs.expires_at),
                           tier, cursor)
