"""The state of a bucket of users: panes, days, categories and items, and the feature groups read from them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa

from schemas.features import PREFERENCE_CAP, RECENT_ITEMS_CAP
from schemas.stream_cells import DECAY_PANES, PANE, RECENT_WINDOW, RINGS, SESSION_GAP
from schemas.workspace import DAY_MICROS
from transforms.accumulators.base import Extract
from transforms.accumulators.events import Events
from transforms.accumulators.frame import Ints
from transforms.accumulators.kernels import explode
from transforms.accumulators.stream import decayed, lists, pairs, panes, rings, sessions
from transforms.accumulators.stream.base import Cells
from transforms.accumulators.stream.kernels import CARRY, MAX, SUM, TIE, TIME
from transforms.accumulators.stream.state import Kept, TableState
from transforms.accumulators.stream.table import Table

_UNKNOWN = pa.array(["unknown"], pa.large_string())
_LAST_ITEM = (TIME, TIE, CARRY)
_NEVER = np.int64(1 << 60)


class UserState(TableState):
    """Users of a bucket. With the extra ``pairs`` it keeps what co-occurrence needs: ``take_pairs`` after each ``add``."""

    NAME, ENTITY, LAYOUT = "user_state", "user", 1
    GROUPS = ("user_panes", "user_day", "user_session", "user_preference", "user_recent")
    EXTRAS = ("pairs",)
    COLUMNS = ("user_id", "item_id", "event_type", "occurred_at", "event_hash", "dwell_ms", "price", "categories")
    OPS: ClassVar[dict[str, tuple[int, ...]]] = {
        "panes": panes.PANE_OPS, "days": (*(SUM,) * panes.TYPES, MAX), "categories": (SUM, MAX), "items": _LAST_ITEM,
        "recent": _LAST_ITEM}
    PARTS: ClassVar[dict[str, tuple[str, str | None]]] = {
        "panes": ("user", None), "days": ("user", None), "categories": ("user", "category"), "items": ("user", "item"),
        "recent": ("user", "item")}
    NEEDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "user_panes": ("panes",), "user_day": ("days",), "user_session": ("panes", "categories", "items"),
        "user_preference": ("categories",), "user_recent": ("recent",), "pairs": ("items",)}

    def add(self, events: Events) -> None:
        """See StreamAccumulator."""
        user, pane = self.names["user"].codes(events.column("user_id")), events.time // PANE
        none = np.zeros(len(events), np.int64)
        if "panes" in self.tables:
            self.tables["panes"].add(user, pane, none, panes.pane_values(events), events.type)
        if "days" in self.tables:
            self.tables["days"].add(user, events.day, none, events.time[:, None], events.type)
        if "categories" in self.tables:
            self._add_categories(events, user, pane)
        if "items" in self.tables or "recent" in self.tables:
            item = self.names["item"].codes(events.column("item_id"))
            rows = np.flatnonzero((events.weight > 0) & (item >= 0))
            values = np.column_stack([events.time[rows], events.tie[rows], events.weight[rows]])
            if "items" in self.tables:
                self.tables["items"].add(user[rows], pane[rows], item[rows], values)
            if "recent" in self.tables:
                self.tables["recent"].add(user[rows], none[rows], item[rows], values)

    def _add_categories(self, events: Events, user: Ints, pane: Ints) -> None:
        names, column = self.names["category"], events.column("categories")
        bare = int(names.codes(_UNKNOWN)[0])
        counts = (events.weight > 0) & events.column("item_id").is_valid().to_numpy(zero_copy_only=False)
        row, code = explode(counts, column.offsets.to_numpy(), names.codes(column.values), bare)
        self.tables["categories"].add(user[row], pane[row], code, np.column_stack([events.weight[row], events.time[row]]))

    def take_pairs(self) -> pa.RecordBatch:
        """Changes of pairs since the last call, as pairs.PAIRS; the caller must send them on with this state or lose both."""
        found = pairs.changes(self.tables["items"], self._marks["items"], self.names["item"])
        self.settle()
        return found

    def settle(self) -> None:
        """Takes the pairs so far as sent: after events were added again that had been added before."""
        self._marks["items"] = len(self.tables["items"])

    def final(self, horizon: int, previous: int) -> dict[str, pa.RecordBatch]:
        """See StreamAccumulator: closed panes and sessions."""
        if "panes" not in self.tables:
            return {}
        table, users = self.tables["panes"], self.names["user"]
        horizon, previous = self.span(horizon, previous)
        return {"stream_panes": panes.final_panes(table, users, horizon, previous),
                "stream_sessions": sessions.final_sessions(table, users, horizon, previous)}

    def _cells(self, group: str, codes: Ints) -> Cells:
        users = self.names["user"]
        if group == "user_panes":
            return rings.ring_cells(group, self._ring(group, codes), users)
        if group == "user_day":
            return rings.ring_cells(group, self._ring(group, codes), users)
        if group == "user_session":
            return sessions.session_cells(self._sessions(codes), users, self.names["item"], self.names["category"])
        if group == "user_recent":
            return lists.recent_cells(*lists.recent_of(self.tables["recent"], codes), users, self.names["item"])
        table = self.tables["categories"]
        found = decayed.decayed_of(table, codes, self.names["category"], PREFERENCE_CAP)
        bounds, rows = table.rows_of(found.codes)
        newest = np.maximum.reduceat(table.values[rows, 1], bounds[:-1]) if len(rows) else rows
        return decayed.decayed_cells(group, found, rings.whole_milliseconds(newest), users, self.names["category"])

    def _features(self, group: str, codes: Ints, t: int) -> Extract:
        users = self.names["user"]
        if group in RINGS:
            return rings.ring_features(group, self._ring(group, codes), users, t)
        if group == "user_session":
            return sessions.session_features(self._sessions(codes), users, self.names["item"], self.names["category"], t)
        if group == "user_recent":
            return lists.recent_features(*lists.recent_of(self.tables["recent"], codes), users, self.names["item"], t)
        found = decayed.decayed_of(self.tables["categories"], codes, self.names["category"], PREFERENCE_CAP)
        return decayed.decayed_features("category_preference", found, users, self.names["category"], t, shares=True)

    def _ring(self, group: str, codes: Ints) -> rings.RingColumns:
        if group == "user_day":
            return rings.rings_of(group, self.tables["days"], codes, slice(0, panes.TYPES), panes.TYPES)
        return rings.rings_of(group, self.tables["panes"], codes, slice(0, panes.TYPES), panes.LAST)

    def _sessions(self, codes: Ints) -> sessions.OpenSessions:
        return sessions.open_sessions(self.tables["panes"], self.tables["items"], self.tables["categories"],
                                      self.names["category"], codes)

    def _kept(self, horizon: int) -> dict[str, Kept]:
        """Panes in a window, panes of sessions that may still change (the oldest of those as one), the newest items."""
        pane = horizon // PANE
        since, folded = self._open_since(horizon), pane - (DECAY_PANES - 1)
        with_sessions = "user_session" in self.groups
        window = {"panes": pane - (RINGS["user_panes"].size - 1), "categories": folded, "items": pane - pairs.REACH}
        kept: dict[str, Kept] = {}
        for name, table in self.tables.items():
            if name in window:
                of_session = since[table.entity] if name == "panes" or with_sessions else np.full(len(table), _NEVER)
                rows = np.flatnonzero(table.pane >= np.minimum(of_session, window[name]))
                old = (table.pane[rows] < folded) & (of_session[rows] < folded)
                kept[name] = rows, np.where(old, of_session[rows], table.pane[rows])
            elif name == "days":
                rows = np.flatnonzero(table.pane >= horizon // DAY_MICROS)
                kept[name] = rows, table.pane[rows]
            else:
                rows = _newest_rows(table, horizon)
                kept[name] = rows, table.pane[rows]
        return kept

    def _open_since(self, horizon: int) -> Ints:
        """By user code the pane in which the first session begins that may still change; _NEVER for none."""
        since = np.full(len(self.names["user"]), _NEVER)
        if "panes" in self.tables:
            codes = np.unique(self.tables["panes"].entity).astype(np.int64)
            found = sessions.sessions_of(self.tables["panes"], codes)
            alive = found.end + SESSION_GAP > horizon
            np.minimum.at(since, codes[found.owner[alive]], found.start[alive] // PANE)
        return since


def _newest_rows(table: Table, horizon: int) -> Ints:
    codes = np.unique(table.entity).astype(np.int64)
    bounds, rows = table.rows_of(codes)
    inside = table.values[rows, lists.ITEM_TIME] > horizon - RECENT_WINDOW
    bounds, rows = np.concatenate(([0], np.cumsum(inside)))[bounds], rows[inside]
    time, tie = (np.ascontiguousarray(table.values[rows, c]) for c in (lists.ITEM_TIME, lists.ITEM_TIE))
    return np.sort(rows[lists.newest(bounds, time, tie.view(np.uint64), RECENT_ITEMS_CAP)[1]])
