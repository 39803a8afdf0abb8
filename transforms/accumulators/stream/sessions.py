"""Sessions: maximal runs of a user's events (of any type) in which no two neighbours are 30 minutes apart or more.

A gap is longer than a pane, so no pane holds events of two sessions: a session is a run of the user's panes, and its
contents are the sums of theirs. So nothing is re-keyed when a late event bridges two sessions: they are read as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit

from schemas.event_types import NAMES as EVENT_NAMES
from schemas.features import SESSION_CATEGORIES_CAP, SESSION_ITEMS_CAP
from schemas.features import group as group_of
from schemas.stream_cells import MICRO, PANE, SECOND, SESSION, SESSION_FIELDS, SESSION_GAP
from schemas.tables import STREAM_SESSIONS
from transforms.accumulators.base import Extract, Lists
from transforms.accumulators.frame import Ints
from transforms.accumulators.stream import packing
from transforms.accumulators.stream.base import Cells
from transforms.accumulators.stream.heaviest import heaviest
from transforms.accumulators.stream.lists import ItemLists, newest_items
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.panes import FIRST, LAST, MERGES, dwell_and_price
from transforms.accumulators.stream.rings import whole_milliseconds
from transforms.accumulators.stream.table import Table


@dataclass(frozen=True)
class Sessions:
    """Sessions in order of user and time: whose (n,) positions among the users asked, values (n, k) as those of a pane."""

    owner: Ints
    values: Ints

    @property
    def start(self) -> Ints:
        """(n,) time of the first event."""
        return self.values[:, FIRST]

    @property
    def end(self) -> Ints:
        """(n,) time of the last event."""
        return self.values[:, LAST]

    def where(self, keep: Ints) -> Sessions:
        """Some of them."""
        return Sessions(self.owner[keep], self.values[keep])


def sessions_of(panes: Table, codes: Ints) -> Sessions:
    """All sessions of some users that the table of panes holds."""
    bounds, rows = panes.rows_of(codes)
    values = panes.values[rows]
    if len(rows) == 0:
        return Sessions(rows, values)
    begins = _begins(bounds, np.ascontiguousarray(values[:, FIRST]), np.ascontiguousarray(values[:, LAST]), SESSION_GAP)
    merged = np.empty((len(begins), values.shape[1]), np.int64)
    for merge, columns in MERGES:
        merged[:, columns] = merge.reduceat(values[:, columns], begins, axis=0)
    return Sessions(np.searchsorted(bounds, begins, side="right") - 1, merged)


@njit(cache=True, nogil=True)
def _begins(bounds: Ints, first: Ints, last: Ints, gap: int) -> Ints:
    out = np.empty(len(first), np.int64)
    count = 0
    for u in range(len(bounds) - 1):
        until = np.int64(0)
        for i in range(bounds[u], bounds[u + 1]):
            if i == bounds[u] or first[i] - until >= gap:
                out[count] = i
                count += 1
                until = last[i]
            until = max(until, last[i])
    return out[:count]


def last_of(sessions: Sessions) -> Sessions:
    """The last session of each user that has one."""
    return sessions.where(np.flatnonzero(np.diff(sessions.owner, append=-1) != 0))


@dataclass(frozen=True)
class OpenSessions:
    """The last session of n users, with its items and categories (codes and weights, heaviest first)."""

    codes: Ints
    sessions: Sessions
    items: ItemLists
    category_bounds: Ints
    categories: Ints
    weights: Ints


def open_sessions(panes: Table, items: Table, categories: Table, names: Names, codes: Ints) -> OpenSessions:
    """The last sessions of some users; ``names`` are those of the categories."""
    last = last_of(sessions_of(panes, codes))
    codes = codes[last.owner]
    n, since = len(codes), last.start // PANE
    bounds, rows = items.rows_of(codes, since)
    listed = newest_items(items, np.repeat(np.arange(n), np.diff(bounds)), rows, n, SESSION_ITEMS_CAP)
    bounds, rows = categories.rows_of(codes, since)
    span = int(categories.pane[rows].max() - since.min()) + 1 if len(rows) else 1
    bounds, members, _, at, _, weight = heaviest(bounds, rows, categories.rows, categories.values, np.ones(span, np.int64),
                                                 SESSION_CATEGORIES_CAP, len(rows), *names.utf8())
    weights = np.zeros(len(members), np.int64)
    np.add.at(weights, at, weight)
    return OpenSessions(codes, last, listed, bounds, members, weights)


def session_cells(found: OpenSessions, users: Names, items: Names, categories: Names) -> Cells:
    """Packed sessions."""
    numbers = np.zeros(len(found.codes), np.dtype([("numbers", "<i8", len(SESSION_FIELDS)), ("categories", "<u4")]))
    numbers["numbers"] = np.column_stack([found.sessions.start, found.sessions.end, _events(found.sessions),
                                          dwell_and_price(found.sessions.values)])
    numbers["categories"] = np.diff(found.category_bounds)
    values = packing.weave([
        packing.header(SESSION, group_of("user_session").id, np.diff(found.items.bounds)), packing.fixed(numbers),
        *found.items.sections(items), packing.column(found.category_bounds, found.weights.astype("<i8")),
        *packing.strings(found.category_bounds, categories, found.categories)])
    return Cells("user_session", users.ids(found.codes), values, whole_milliseconds(found.sessions.end))


def session_features(found: OpenSessions, users: Names, items: Names, categories: Names, t: int) -> Extract:
    """Features of the sessions that are open at t; of the others NaN and empty lists."""
    sessions = found.sessions
    is_open = (sessions.start <= t) & (t < sessions.end + SESSION_GAP)
    numbers = dwell_and_price(sessions.values)
    dwell, priced = numbers[:, 0], is_open & (numbers[:, 3] > 0)
    total = np.maximum(1, _sums(found.weights, found.category_bounds))
    owner = np.repeat(np.arange(len(found.codes)), np.diff(found.category_bounds))
    keep = is_open[owner]
    bounds = np.concatenate(([0], np.cumsum(keep)))[found.category_bounds]
    share = (found.weights / total[owner]).astype(np.float32)[keep]
    return Extract(users.ids(found.codes), {
        "session_length_s": np.where(is_open, (sessions.end - sessions.start) / SECOND, np.nan),
        "session_events": np.where(is_open, _events(sessions), np.nan),
        "session_dwell_ms": np.where(is_open, dwell, np.nan),
        "session_price_min": np.where(priced, numbers[:, 4] / MICRO, np.nan),
        "session_price_max": np.where(priced, numbers[:, 5] / MICRO, np.nan),
        "session_price_mean": np.where(priced, numbers[:, 2] / np.maximum(1, numbers[:, 3]) / MICRO, np.nan),
        "session_items": found.items.where(np.repeat(is_open, np.diff(found.items.bounds)), items),
        "session_categories": Lists(bounds, categories.named(found.categories[keep]), np.zeros(len(share), np.int64), share),
    })


def _events(sessions: Sessions) -> Ints:
    return sessions.values[:, : len(EVENT_NAMES)].sum(axis=1)


def _sums(values: Ints, bounds: Ints) -> Ints:
    total = np.concatenate(([0], np.cumsum(values)))
    return total[bounds[1:]] - total[bounds[:-1]]


def final_sessions(panes: Table, users: Names, horizon: int, previous: int) -> pa.RecordBatch:
    """Rows of stream_sessions whose end became certain in (previous, horizon], in order of the user's hash and time."""
    closing = panes.values[:, LAST] + SESSION_GAP
    codes = users.by_hash(np.unique(panes.entity[(closing > previous) & (closing <= horizon)]).astype(np.int64))
    sessions = sessions_of(panes, codes)
    sessions = sessions.where(np.flatnonzero((sessions.end + SESSION_GAP > previous) & (sessions.end + SESSION_GAP <= horizon)))
    schema = STREAM_SESSIONS.schema
    numbers = dwell_and_price(sessions.values)
    unpriced = numbers[:, 3] == 0
    columns = [users.strings(codes[sessions.owner]).cast(pa.string()),
               *(pa.array(c).cast(schema.field("start").type) for c in (sessions.start, sessions.end)),
               pa.array(_events(sessions)), *(pa.array(sessions.values[:, i]) for i in range(len(EVENT_NAMES))),
               *(pa.array(numbers[:, i], mask=unpriced if i > 3 else None) for i in range(6))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
