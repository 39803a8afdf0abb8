"""What a request wants to know of its user, from one round of reads: Signals.

The same answers as FeatureReader.one, for the few features that a request needs: in one compiled pass over the cells where
user_kernel takes them, else cell by cell. Ids stay where they lie until somebody looks at them.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.cells import LAYOUT, CellError, decode_vector
from schemas.features import SEGMENTS
from schemas.keys import STREAM_JOB, SUPPRESS_DAYS, SUPPRESSED, USER, hash64, row_key
from schemas.packed import ListIds, PackedIds, Weighted, read_list
from schemas.put_cells import PUTS, Put, decode_puts
from schemas.stream_cells import (
    DECAY,
    DECAY_PANES,
    RECENT_WINDOW,
    RINGS,
    SESSION_GAP,
    decayed_scores,
    decode_session,
)
from schemas.workspace import DAY_MICROS
from serving.catalogue import USER_GROUP, decode_user
from serving.features import STATUS_SECONDS, StatusCache, together
from serving.merge import BATCH_ROW, Cells, Listed, StreamStatus, is_fresh
from serving.ranking.model import Hidden, Signals, Touched
from serving.signal_values import NUMBERS, RING_NAMES, STATS, USER_FEATURES, AtOnce, Each, Sources, Values
from serving.stores.aio import AsyncSqliteStore, AsyncStore
from serving.stores.base import ANY, Cell, Family
from serving.stores.sqlite_row import RowRead, Wanted
from serving.stores.streamed import stamp_of
from serving.user_kernel import (
    ITEM_SCORES,
    ITEMS,
    LIKED,
    LIKED_END,
    NAMES,
    NAMES_END,
    OPEN,
    PAIRS,
    RANKED,
    STAMP_BYTES,
    read_cells,
)

_WANTED: dict[Family, tuple[str, ...]] = {
    "batch": ("user_stats", "user_affinity", "user_last_items", "user_consumed", PUTS),
    "stream": ("user_panes", "user_day", "user_session", "user_preference", "user_recent", SUPPRESSED + ANY),
    "meta": (USER_GROUP,),
}
_SEGMENT_AT = [f.name for f in STATS].index("segment")
_Read = tuple[Sequence[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]
_NO_ITEMS: Listed = [], np.zeros(0, np.int64), np.zeros(0, np.float32)
_NAMES_DIFFER = len(set(NUMBERS)) == len(NUMBERS)
_NO_SEGMENT = USER_FEATURES["segment"].default or 0.0
_STREAMED = frozenset(("user_panes", "user_day", "user_session", "user_preference", "user_recent"))
_COUNTED = ("user_panes", "user_day", "user_session", "user_preference")
_RECENT_ITEMS = USER_FEATURES["recent_items"]

_ROW = Wanted.of(_WANTED)
_STATS, _CONSUMED, _AFFINITY, _PUTS, _USER = (
    (_ROW.families.index(family), group) for family, group in (
        ("batch", "user_stats"), ("batch", "user_consumed"), ("batch", "user_affinity"), ("batch", PUTS), ("meta", USER_GROUP)))
_BATCH_IN_ROW = frozenset((_ROW.families.index("batch"), group) for group in _WANTED["batch"])
_STREAMED_IN_ROW = frozenset(group.encode() for group in _STREAMED)
_COUNTED_IN_ROW, _SUPPRESSED = [group.encode() for group in _COUNTED], SUPPRESSED.encode()
_NO_CELLS, _NO_STAMP = [b""] * len(_COUNTED), bytes(STAMP_BYTES)
"""Where groups are in a RowRead; what stands for cells that are not there, and before those that have no timestamp."""


@functools.cache
def _plan() -> npt.NDArray[np.int64]:
    """See serving.user_kernel; made at the first reader, when it also compiles: seconds on a new machine, else 50 ms."""
    panes, day = RINGS["user_panes"], RINGS["user_day"]
    if (panes.windows, day.windows) != ((1, panes.size), (day.size,)):
        raise NotImplementedError("user_kernel counts a ring's newest pane and the whole ring")
    events = len(RING_NAMES["user_day"])
    plan = np.array([len(STATS), events, panes.step, panes.size, day.step, day.size, SESSION_GAP, LAYOUT, DECAY_PANES,
                     *(f.ttl for f in STATS), *DECAY], np.int64)
    read_cells(np.frombuffer(b"\0", np.uint8), -1, -1, 0, 0, 0, 0, 0, 0, 0, plan)
    return plan


class SignalReader:
    """Reads signals for one event loop; holds only the status of the streaming job, for a second.

    Args:
      job: name of the streaming job; status_seconds: for how long its status is believed.
    """

    def __init__(self, job: str = STREAM_JOB, status_seconds: float = STATUS_SECONDS) -> None:
        self._status = StatusCache(job, status_seconds)
        _plan()

    async def read(self, store: AsyncStore, user_id: str, now: int, timeout: float | None = None) -> Signals:
        """The signals of a user at ``now`` (microseconds), within ``timeout`` seconds.

        Raises:
          StoreError: the store cannot be read (DeadlineError: not in time).
          CellError: a cell is broken.
        """
        row = row_key(USER, user_id)
        if not self._status.is_old:
            return signals_of(await store.read_row(row, _WANTED, timeout), self._status.status, now)
        cells, status = await together(store, store.read_row(row, _WANTED, timeout), self._status.fetch(store, timeout))
        return signals_of(cells, status, now)

    async def read_with_list(self, store: AsyncSqliteStore, user_id: str, list_row: str, version: str, now: int,
                             timeout: float) -> tuple[Signals | None, Cell | None] | None:
        """``read``, and a list of a version, in one round; signals None where a cell is broken, None for both where the user
        has too many cells for that. Raises StoreError."""
        status = await self._status.fetch(store, timeout) if self._status.is_old else self._status.status
        found = store.read_user(row_key(USER, user_id), _ROW, list_row, version, timeout)
        if found is None:
            return None
        try:
            return signals_of_row(found, status, now), found.listed
        except CellError:
            return None, found.listed


def signals_of(cells: Mapping[Family, Mapping[str, Cell]], status: StreamStatus | None, now: int) -> Signals:
    """Signals from the cells of a user; raises CellError."""
    batch, stream, user = cells["batch"], cells["stream"], cells["meta"].get(USER_GROUP)
    alive = _is_alive(status, now)
    found = None if PUTS in batch or not _NAMES_DIFFER else _read_at_once(batch, stream, alive, now)
    return _signals(found or _read_each(batch, stream, alive, now), functools.partial(_history, cells, alive, now),
                    bool(batch), BATCH_ROW["user"] in batch, not _STREAMED.isdisjoint(stream),
                    user.value if user is not None else None)


def signals_of_row(row: RowRead, status: StreamStatus | None, now: int) -> Signals:
    """signals_of(row.cells(), status, now), of which no more is made than it takes."""
    held, streamed = row.held, row.streamed
    stats, consumed, affinity, user = held.get(_STATS), held.get(_CONSUMED), held.get(_AFFINITY), held.get(_USER)
    alive, found = _is_alive(status, now), None
    if _PUTS not in held and _NAMES_DIFFER:
        since = now - SUPPRESS_DAYS * DAY_MICROS
        suppressed = [str(group[len(SUPPRESSED):], "utf-8") for group in streamed.keys() - _STREAMED_IN_ROW
                      if group.startswith(_SUPPRESSED) and stamp_of(streamed[group]) >= since]
        found = _compiled(stats and stats[2], stats[3] if stats else 0, consumed and consumed[2],
                          [streamed.get(group, b"") for group in _COUNTED_IN_ROW] if alive else _NO_CELLS, suppressed,
                          {"user_affinity": Cell(affinity[2], affinity[3])} if affinity else {}, now)
    if found is None:
        return signals_of(row.cells(), status, now)
    return _signals(found, lambda: _history(row.cells(), alive, now), not _BATCH_IN_ROW.isdisjoint(held), stats is not None,
                    not _STREAMED_IN_ROW.isdisjoint(streamed), user and user[2])


def _is_alive(status: StreamStatus | None, now: int) -> bool:
    return status is not None and status.alive(_RECENT_ITEMS, now)


class _Found(NamedTuple):
    """What the cells of a user say."""

    hidden: Hidden
    suppressed: frozenset[str]
    session: Sequence[tuple[str, float]]
    preference: Mapping[str, float]
    segment: float
    values: Values


def _signals(found: _Found, history: Callable[[], list[tuple[str, float]]], any_batch: bool, has_stats: bool, in_stream: bool,
             user: bytes | None) -> Signals:
    return Signals(
        known=any_batch or in_stream,
        hidden=found.hidden, suppressed=found.suppressed,
        session=found.session,
        history=Touched(history),
        preference=found.preference,
        low_confidence=in_stream and not has_stats,
        segment=SEGMENTS[int(found.segment)] if any_batch else "new" if in_stream else None,
        attributes=_attributes(user) if user is not None else {},
        values=found.values, sources=Sources(found.values))


def _read_each(batch: Cells, stream: Cells, alive: bool, now: int) -> _Found:
    """Cell by cell, whatever is in them; raises CellError."""
    puts = decode_puts(batch[PUTS].value) if PUTS in batch else {}
    held = _Batch(batch, puts, now)
    suppressed = frozenset(_suppressed(stream, now))
    hidden = Hidden(held.listed("consumed_items", "user_consumed", counts_always=True)[0], suppressed)
    session = decode_session(stream["user_session"].value) if alive and "user_session" in stream else None
    session = session if session is not None and session.is_open(now) else None
    return _Found(hidden, suppressed,
                  list(zip(session.items[0], session.items[2].tolist(), strict=True)) if session is not None else (),
                  _preference(stream.get("user_preference") if alive else None, held, now),
                  held.segment if batch else 0.0, Each(batch, stream, puts, session, alive, now))


def _read_at_once(batch: Cells, stream: Cells, alive: bool, now: int) -> _Found | None:
    """The same, compiled; None for cells that are broken or else not for it."""
    stats, consumed = batch.get("user_stats"), batch.get("user_consumed")
    counted = [b"" if cell is None else _NO_STAMP + cell.value for cell in map(stream.get, _COUNTED)] if alive else _NO_CELLS
    return _compiled(None if stats is None else stats.value, 0 if stats is None else stats.timestamp,
                     None if consumed is None else consumed.value, counted, _suppressed(stream, now), batch, now)


def _compiled(stats: bytes | None, stats_at: int, consumed: bytes | None, counted: Sequence[bytes], suppressed: Sequence[str],
              batch: Cells, now: int) -> _Found | None:
    """What the bytes of cells say, ``counted`` those of _COUNTED behind their timestamps; None as _read_at_once."""
    raw = b"".join((stats or b"", consumed or b"", *counted))
    if not raw:
        return None
    right, numbers, hashes, places = read_cells(
        np.frombuffer(raw, np.uint8), -1 if stats is None else len(stats), -1 if consumed is None else len(consumed),
        *map(len, counted), stats_at, now, len(suppressed), _plan())
    if not right:
        return None
    at = places.tolist()
    try:
        for begin, end in ((NAMES, NAMES_END), (LIKED, LIKED_END)):  # not all are used, but a broken cell is a broken cell
            if at[begin]:
                raw[at[begin] : at[end]].decode()
        ends, shares = at[PAIRS : PAIRS + 2 * at[RANKED]], numbers[len(NUMBERS):].tolist()
        preference = {raw[a:b].decode(): share for a, b, share in zip(ends[::2], ends[1::2], shares, strict=False)}
    except UnicodeDecodeError:
        return None
    end = len(hashes) - at[ITEMS]
    for place, item in enumerate(suppressed, end - len(suppressed)):
        hashes[place] = hash64(item)
    done, segment = frozenset(suppressed), numbers.item(_SEGMENT_AT)
    hidden = Hidden(ListIds(consumed) if consumed is not None else (), done)
    hidden.hashes = hashes[:end]
    return _Found(hidden, done, _opened(raw, at, hashes[end:]) if at[OPEN] else (),
                  preference or _preference(None, _Batch(batch, {}, now), now),
                  segment if 0 <= segment < len(SEGMENTS) else _NO_SEGMENT, AtOnce(numbers[: len(NUMBERS)]))


def _suppressed(stream: Cells, now: int) -> list[str]:
    since = now - SUPPRESS_DAYS * DAY_MICROS
    return [group[len(SUPPRESSED):] for group, cell in stream.items()
            if group.startswith(SUPPRESSED) and cell.timestamp >= since]


def _opened(raw: bytes, at: list[int], hashes: npt.NDArray[np.uint64]) -> Weighted:
    """Items of the open session with their weights."""
    count, start = at[ITEMS], at[ITEM_SCORES]
    ends = np.frombuffer(raw, "<u4", count, start + 4 * count)
    base = start + 8 * count
    ids = PackedIds(raw[base : base + int(ends[-1])] if count else b"", ends)
    return Weighted(ids, np.frombuffer(raw, "<f4", count, start), hashes)


class _Batch:
    """Batch values of a user: the newest of a group's cell and of what was PUT, while it is younger than its ttl."""

    def __init__(self, cells: Mapping[str, Cell], puts: Mapping[str, Put], now: int) -> None:
        self._cells, self._puts, self._now = cells, puts, now

    def _put(self, name: str, cell: Cell | None) -> Put | None:
        put = self._puts.get(name)
        if put is None or not is_fresh(put, USER_FEATURES[name], self._now):
            return None
        return put if cell is None or not self._is_fresh(name, cell) or put.computed_at >= cell.timestamp else None

    def _is_fresh(self, name: str, cell: Cell) -> bool:
        return self._now - cell.timestamp <= USER_FEATURES[name].ttl * 1_000_000

    def listed(self, name: str, group: str, counts_always: bool = False) -> _Read:
        """A list feature; with ``counts_always`` whatever its age."""
        cell = self._cells.get(group)
        put = self._put(name, cell) if self._puts else None
        if put is not None and isinstance(put.value, tuple):
            return put.value
        if cell is None or not (counts_always or self._is_fresh(name, cell)):
            return _NO_ITEMS
        return read_list(cell.value)

    @property
    def segment(self) -> float:
        """Code of the segment."""
        cell = self._cells.get(BATCH_ROW["user"])
        put = self._put("segment", cell) if self._puts else None
        if put is not None and not isinstance(put.value, tuple):
            found = put.value
        elif cell is not None and self._is_fresh("segment", cell):
            found = dict(enumerate(decode_vector(cell.value).tolist())).get(_SEGMENT_AT, math.nan)
        else:
            found = math.nan
        return found if 0 <= found < len(SEGMENTS) else _NO_SEGMENT


def _history(cells: Mapping[Family, Mapping[str, Cell]], alive: bool, now: int) -> list[tuple[str, float]]:
    """Items of both lists, newest first, each with its newest entry; of entries of one time the stream's."""
    batch, recent = cells["batch"], cells["stream"].get("user_recent") if alive else None
    puts = decode_puts(batch[PUTS].value) if PUTS in batch else {}
    ids, times, scores = _Batch(batch, puts, now).listed("last_items", "user_last_items")
    if recent is None:
        return list(zip(ids, scores.tolist(), strict=True))
    lately: Sequence[str]
    lately, when, weights = read_list(recent.value)
    if len(when) and not now - RECENT_WINDOW < int(when.min()) <= int(when.max()) <= now:
        inside = np.flatnonzero((when > now - RECENT_WINDOW) & (when <= now))
        lately, when, weights = [lately[i] for i in inside.tolist()], when[inside], weights[inside]
    entries = list(zip(when.tolist(), lately, weights.tolist(), strict=True))
    entries += zip(times.tolist(), ids, scores.tolist(), strict=True)
    entries.sort(key=_time_of, reverse=True)  # two runs, each in order
    oldest_first = {item: weight for _, item, weight in reversed(entries)}
    return [(item, oldest_first[item]) for item in dict.fromkeys(map(_item_of, entries))]


_time_of, _item_of = operator.itemgetter(0), operator.itemgetter(1)


def _preference(cell: Cell | None, held: _Batch, now: int) -> dict[str, float]:
    """Share per category, highest first: of the last hours; where there is none, of 30 days."""
    if cell is not None:
        names, scores = decayed_scores(cell.value, now)
        if names:
            return dict(zip(names, (scores / max(1, int(scores.sum()))).astype(np.float32).tolist(), strict=True))
    kept, _, shares = held.listed("category_affinity_30d", "user_affinity")
    return dict(zip(kept, shares.tolist(), strict=True))


def _attributes(cell: bytes) -> dict[str, str]:
    """What the user said at sign-up: country and attributes; nothing where it cannot be read."""
    user = decode_user(cell)
    if user is None:
        return {}
    known = {name: value for name, value in (user.attributes or {}).items() if value is not None}
    return {"country": user.country, **known} if user.country is not None else known
