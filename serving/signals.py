"""What a request wants to know of its user, from one round of reads: Signals.

The same answers as FeatureReader.one, for the few features that a request needs, in some tens of microseconds; numbers that are
only logged are decoded when somebody looks at them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from schemas.cells import CellError, decode_vector
from schemas.features import REGISTRY, SEGMENTS
from schemas.keys import STREAM_JOB, SUPPRESS_DAYS, SUPPRESSED, USER, row_key
from schemas.packed import read_list
from schemas.put_cells import PUTS, Put, decode_puts
from schemas.stream_cells import RECENT_WINDOW, Session, decayed_scores, decode_session, ring_values, session_numbers
from schemas.workspace import DAY_MICROS
from serving.catalogue import USER_GROUP, decode_user
from serving.features import STATUS_SECONDS, StatusCache, together
from serving.merge import BATCH_ROW, Cells, Listed, StreamStatus, is_fresh
from serving.ranking.model import Hidden, Signals, Touched
from serving.stores.aio import AsyncSqliteStore, AsyncStore
from serving.stores.base import ANY, Cell, Family

_WANTED: dict[Family, tuple[str, ...]] = {
    "batch": ("user_stats", "user_affinity", "user_last_items", "user_consumed", PUTS),
    "stream": ("user_panes", "user_day", "user_session", "user_preference", "user_recent", SUPPRESSED + ANY),
    "meta": (USER_GROUP,),
}
_FEATURES = {f.name: f for f in REGISTRY.of("user")}
_STATS = REGISTRY.features_of("user_stats")
_SEGMENT_AT = [f.name for f in _STATS].index("segment")
_RINGS = {group: [f.name for f in REGISTRY.features_of(group)] for group in ("user_panes", "user_day")}
_Read = tuple[Sequence[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]
_RING_WIDTHS = tuple((group, len(names)) for group, names in _RINGS.items())
_NO_ITEMS: Listed = [], np.zeros(0, np.int64), np.zeros(0, np.float32)
_SESSION_NAMES = tuple(session_numbers(Session(0, 0, 0, 0, 0, 0, 0, 0, 0, _NO_ITEMS, [], np.zeros(0, np.int64))))
_NAMES = (*(f.name for f in _STATS), *(name for names in _RINGS.values() for name in names), *_SESSION_NAMES)
_NAMES_DIFFER = len(set(_NAMES)) == len(_NAMES)
_TTLS = np.array([f.ttl for f in _STATS], np.float64)
_NO_STATS, _NO_SESSION = np.full(len(_STATS), np.nan), np.full(len(_SESSION_NAMES), np.nan)
_STREAMED = ("user_panes", "user_day", "user_session", "user_preference", "user_recent")


class SignalReader:
    """Reads signals for one event loop; holds only the status of the streaming job, for a second.

    Args:
      job: name of the streaming job; status_seconds: for how long its status is believed.
    """

    def __init__(self, job: str = STREAM_JOB, status_seconds: float = STATUS_SECONDS) -> None:
        self._status = StatusCache(job, status_seconds)

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
    batch, stream, meta = cells["batch"], cells["stream"], cells["meta"]
    alive = status is not None and status.alive(_FEATURES["recent_items"], now)
    puts = decode_puts(batch[PUTS].value) if PUTS in batch else {}
    held = _Batch(batch, puts, now)
    since = now - SUPPRESS_DAYS * DAY_MICROS
    suppressed = frozenset(group[len(SUPPRESSED):] for group, cell in stream.items()
                           if group.startswith(SUPPRESSED) and cell.timestamp >= since)
    hidden = Hidden(held.listed("consumed_items", "user_consumed", counts_always=True)[0], suppressed)
    in_batch, in_stream = BATCH_ROW["user"] in batch, any(group in stream for group in _STREAMED)
    session = decode_session(stream["user_session"].value) if alive and "user_session" in stream else None
    session = session if session is not None and session.is_open(now) else None
    values = _Values(batch, stream, puts, session, alive, now)
    return Signals(
        known=bool(batch) or in_stream,
        hidden=hidden, suppressed=suppressed,
        session=list(zip(session.items[0], session.items[2].tolist(), strict=True)) if session is not None else (),
        history=Touched(functools.partial(_history, stream.get("user_recent") if alive else None, held, now)),
        preference=_preference(stream.get("user_preference") if alive else None, held, now),
        low_confidence=in_stream and not in_batch,
        segment=SEGMENTS[int(held.segment)] if batch else "new" if in_stream else None,
        attributes=_attributes(meta.get(USER_GROUP)),
        values=values, sources=_Sources(values))


class _Batch:
    """Batch values of a user: the newest of a group's cell and of what was PUT, while it is younger than its ttl."""

    def __init__(self, cells: Mapping[str, Cell], puts: Mapping[str, Put], now: int) -> None:
        self._cells, self._puts, self._now = cells, puts, now

    def _put(self, name: str, cell: Cell | None) -> Put | None:
        put = self._puts.get(name)
        if put is None or not is_fresh(put, _FEATURES[name], self._now):
            return None
        return put if cell is None or not self._is_fresh(name, cell) or put.computed_at >= cell.timestamp else None

    def _is_fresh(self, name: str, cell: Cell) -> bool:
        return self._now - cell.timestamp <= _FEATURES[name].ttl * 1_000_000

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
            found = float(decode_vector(cell.value)[_SEGMENT_AT])
        else:
            found = math.nan
        default = _FEATURES["segment"].default or 0.0
        return found if 0 <= found < len(SEGMENTS) else default


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


def _attributes(cell: Cell | None) -> dict[str, str]:
    """What the user said at sign-up: country and attributes; nothing where it cannot be read."""
    user = decode_user(cell.value) if cell is not None else None
    if user is None:
        return {}
    known = {name: value for name, value in (user.attributes or {}).items() if value is not None}
    return {"country": user.country, **known} if user.country is not None else known


class _Values(Mapping[str, float]):
    """Numbers of a user that are no defaults, by feature name: decoded when the first is asked for."""

    def __init__(self, batch: Cells, stream: Cells, puts: Mapping[str, Put], session: Session | None, alive: bool,
                 now: int) -> None:
        self._batch, self._stream, self._puts, self._session = batch, stream, puts, session
        self._alive, self._now = alive, now

    @cached_property
    def found(self) -> dict[str, tuple[float, str]]:
        """(value, source) by name; those of a broken cell are left out: they are only logged."""
        found: dict[str, tuple[float, str]] = {}
        with contextlib.suppress(CellError):
            self._add_batch(found)
        with contextlib.suppress(CellError):
            self._add_stream(found)
        return found

    def _add_batch(self, found: dict[str, tuple[float, str]]) -> None:
        stats, since = self._batch.get("user_stats"), math.inf
        if stats is not None:
            age = (self._now - stats.timestamp) / 1e6
            values = zip(_STATS, decode_vector(stats.value).tolist(), strict=False)
            found.update((f.name, (value, "batch")) for f, value in values if value == value and age <= f.ttl)
            since = stats.timestamp
        for name, put in self._puts.items():
            feature = _FEATURES.get(name)
            if feature is None or isinstance(put.value, tuple) or not is_fresh(put, feature, self._now):
                continue
            if name not in found or put.computed_at >= since:
                found[name] = put.value, "batch"

    def _add_stream(self, found: dict[str, tuple[float, str]]) -> None:
        if self._alive:
            for group, names in _RINGS.items():
                if (cell := self._stream.get(group)) is not None:
                    sums = ring_values(group, cell.value, self._now)
                    found.update((name, (float(value), "stream")) for name, value in zip(names, sums, strict=False))
            if self._session is not None:
                found.update((name, (value, "stream")) for name, value in session_numbers(self._session).items()
                             if value == value)

    def columns(self) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
        """Names and values, in the order of iteration, without a step per feature where nothing was PUT."""
        stats, parts = self._batch.get("user_stats"), list[npt.NDArray[np.float64]]()
        if self._puts or not _NAMES_DIFFER:
            return _listed(self)
        try:
            if stats is not None:
                vector = decode_vector(stats.value)
                if len(vector) != len(_STATS):
                    return _listed(self)
                parts.append(np.where((self._now - stats.timestamp) / 1e6 <= _TTLS, vector, np.nan))
            else:
                parts.append(_NO_STATS)
            for group, width in _RING_WIDTHS:
                cell = self._stream.get(group) if self._alive else None
                sums = ring_values(group, cell.value, self._now) if cell is not None else [math.nan] * width
                if len(sums) != width:
                    return _listed(self)
                parts.append(np.array(sums, np.float64))
        except CellError:
            return _listed(self)
        session = self._session if self._alive else None
        parts.append(np.array(list(session_numbers(session).values())) if session is not None else _NO_SESSION)
        values = np.concatenate(parts)
        there = values == values
        return _names_where(there.tobytes()), values[there].astype(np.float32)

    def __getitem__(self, name: str) -> float:
        return self.found[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


def columns_of(values: Mapping[str, float]) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Names and (k,) values of Signals.values."""
    return values.columns() if isinstance(values, _Values) else _listed(values)


def _listed(values: Mapping[str, float]) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    return tuple(values), np.array([values[name] for name in values], np.float32)


@functools.lru_cache(1024)
def _names_where(there: bytes) -> tuple[str, ...]:
    return tuple(name for name, at in zip(_NAMES, there, strict=True) if at)


class _Sources(Mapping[str, str]):
    """Where the numbers of _Values are from."""

    def __init__(self, values: _Values) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values.found[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values.found)

    def __len__(self) -> int:
        return len(self._values.found)
