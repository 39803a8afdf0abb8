"""What a request wants to know of its user, from one round of reads: Signals.

The same answers as FeatureReader.one, for the few features that a request needs: in one compiled pass over the cells where
user_kernel takes them, else cell by cell. Ids stay where they lie until somebody looks at them.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
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
_NO_CELLS = [None] * len(_COUNTED)


@functools.cache
def _plan() -> npt.NDArray[np.int64]:
    """See serving.user_kernel; made at the first reader, when it also compiles: seconds on a new machine, else 50 ms."""
    panes, day = RINGS["user_panes"], RINGS["user_day"]
    if (panes.windows, day.windows) != ((1, panes.size), (day.size,)):
        raise NotImplementedError("user_kernel counts a ring's newest pane and the whole ring")
    events = len(RING_NAMES["user_day"])
    plan = np.array([len(STATS), events, panes.step, panes.size, day.step, day.size, SESSION_GAP, LAYOUT, DECAY_PANES,
                     *(f.ttl for f in STATS), *DECAY], np.int64)
    read_cells(np.frombuffer(b"\0", np.uint8), -1, -1, -1, -1, -1, -1, 0, 0, 0, plan)
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
        status = await self._status.fetch(store, timeout)
        found = store.read_user(row_key(USER, user_id), _WANTED, list_row, version, timeout)
        if found is None:
            return None
        try:
            return signals_of(found[0], status, now), found[1]
        except CellError:
            return None, found[1]


def signals_of(cells: Mapping[Family, Mapping[str, Cell]], status: StreamStatus | None, now: int) -> Signals:
    """Signals from the cells of a user; raises CellError."""
    batch, stream = cells["batch"], cells["stream"]
    alive = status is not None and status.alive(USER_FEATURES["recent_items"], now)
    found = None if PUTS in batch or not _NAMES_DIFFER else _read_at_once(batch, stream, alive, now)
    return _signals(cells, found or _read_each(batch, stream, alive, now), alive, now)


class _Found(NamedTuple):
    """What the cells of a user say."""

    hidden: Hidden
    suppressed: frozenset[str]
    session: Sequence[tuple[str, float]]
    preference: Mapping[str, float]
    segment: float
    values: Values
    held: _Batch


def _signals(cells: Mapping[Family, Mapping[str, Cell]], found: _Found, alive: bool, now: int) -> Signals:
    batch, stream, meta = cells["batch"], cells["stream"], cells["meta"]
    in_batch, in_stream = BATCH_ROW["user"] in batch, not _STREAMED.isdisjoint(stream)
    user = meta.get(USER_GROUP)
    return Signals(
        known=bool(batch) or in_stream,
        hidden=found.hidden, suppressed=found.suppressed,
        session=found.session,
        history=Touched(functools.partial(_history, stream.get("user_recent") if alive else None, found.held, now)),
        preference=found.preference,
        low_confidence=in_stream and not in_batch,
        segment=SEGMENTS[int(found.segment)] if batch else "new" if in_stream else None,
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
                  held.segment if batch else 0.0, Each(batch, stream, puts, session, alive, now), held)


def _read_at_once(batch: Cells, stream: Cells, alive: bool, now: int) -> _Found | None:
    """The same, compiled; None for cells that are broken or else not for it."""
    stats, consumed = batch.get("user_stats"), batch.get("user_consumed")
    held = [stats, consumed, *([stream.get(group) for group in _COUNTED] if alive else _NO_CELLS)]
    raw = b"".join([cell.value for cell in held if cell is not None])
    if not raw:
        return None
    suppressed = _suppressed(stream, now)
    right, numbers, hashes, places, shares = read_cells(
        np.frombuffer(raw, np.uint8), *[-1 if cell is None else len(cell.value) for cell in held],
        0 if stats is None else stats.timestamp, now, len(suppressed), _plan())
    if not right:
        return None
    at = places.tolist()
    of_batch = _Batch(batch, {}, now)
    try:
        if at[NAMES]:  # they are not used, but a broken cell is a broken cell
            raw[at[NAMES] : at[NAMES_END]].decode()
        preference = (_liked(raw, at, shares) if at[LIKED] else None) or _preference(None, of_batch, now)
    except UnicodeDecodeError:
        return None
    end = len(hashes) - at[ITEMS]
    if suppressed:
        hashes[end - len(suppressed) : end] = [hash64(item) for item in suppressed]
    done = frozenset(suppressed)
    hidden = Hidden(ListIds(consumed.value) if consumed is not None else (), done)
    hidden.hashes = hashes[:end]
    segment = float(numbers[_SEGMENT_AT])
    return _Found(hidden, done, _opened(raw, at, hashes[end:]) if at[OPEN] else (), preference,
                  segment if 0 <= segment < len(SEGMENTS) else _NO_SEGMENT, AtOnce(numbers), of_batch)


def _suppressed(stream: Cells, now: int) -> list[str]:
    since = now - SUPPRESS_DAYS * DAY_MICROS
    return [group[len(SUPPRESSED):] for group, cell in stream.items()
            if group.startswith(SUPPRESSED) and cell.timestamp >= since]


def _liked(raw: bytes, at: list[int], shares: npt.NDArray[np.float32]) -> dict[str, float]:
    """Shares by name."""
    low, text, end = at[LIKED], raw[at[LIKED] : at[LIKED_END]].decode(), PAIRS + 2 * at[RANKED]
    places = zip(at[PAIRS:end:2], at[PAIRS + 1 : end : 2], strict=True)
    if len(text) == at[LIKED_END] - low:
        names = [text[a - low : b - low] for a, b in places]
    else:
        names = [str(raw[a:b], "utf-8") for a, b in places]
    return dict(zip(names, shares.tolist(), strict=False))


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


def _history(recent: Cell | None, held: _Batch, now: int) -> list[tuple[str, float]]:
    """Items of both lists, newest first, each with its newest entry; of entries of one time the stream's."""
    ids, times, scores = held.listed("last_items", "user_last_items")
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


def _attributes(cell: Cell) -> dict[str, str]:
    """What the user said at sign-up: country and attributes; nothing where it cannot be read."""
    user = decode_user(cell.value)
    if user is None:
        return {}
    known = {name: value for name, value in (user.attributes or {}).items() if value is not None}
    return {"country": user.country, **known} if user.country is not None else known
