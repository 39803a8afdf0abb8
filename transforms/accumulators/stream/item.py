"""The state of a bucket of items: popularity by minute, and users per pane of the items seen together with each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.features import COOCCURRENCE_CAP, PANE_PARTNERS_CAP
from schemas.stream_cells import DECAY_PANES, MINUTE, PANE, RINGS
from schemas.tables import STREAM_MINUTES
from transforms.accumulators.base import Extract
from transforms.accumulators.events import Events
from transforms.accumulators.frame import LOW, Ints
from transforms.accumulators.kernels import best
from transforms.accumulators.stream import decayed, rings
from transforms.accumulators.stream.base import Cells
from transforms.accumulators.stream.grouping import text_ranks
from transforms.accumulators.stream.kernels import MAX, SUM
from transforms.accumulators.stream.state import Kept, TableState
from transforms.accumulators.stream.table import Table

TRENDING_HALF_LIFE = 10
"""Minutes in which an event's weight for what is trending halves."""
_TRENDING: npt.NDArray[np.int64] = np.rint(
    (1 << 20) * 2.0 ** (-np.arange(RINGS["item_minutes"].size) / TRENDING_HALF_LIFE)).astype(np.int64)


class ItemState(TableState):
    """Items of a bucket. ``add`` counts popularity; ``add_pairs`` what ``UserState.take_pairs`` gave."""

    NAME, ENTITY, LAYOUT = "item_state", "item", 1
    GROUPS = ("item_minutes", "item_cooccurring")
    COLUMNS = ("item_id", "event_type", "occurred_at")
    OPS: ClassVar[dict[str, tuple[int, ...]]] = {"minutes": (SUM, MAX), "pairs": (SUM,)}
    PARTS: ClassVar[dict[str, tuple[str, str | None]]] = {"minutes": ("item", None), "pairs": ("item", "item")}
    NEEDS: ClassVar[dict[str, tuple[str, ...]]] = {"item_minutes": ("minutes",), "item_cooccurring": ("pairs",)}

    def add(self, events: Events) -> None:
        """See StreamAccumulator."""
        if "minutes" not in self.tables:
            return
        item = self.names["item"].codes(events.column("item_id"))
        rows = np.flatnonzero((events.weight > 0) & (item >= 0))
        self.tables["minutes"].add(item[rows], events.time[rows] // MINUTE, np.zeros(len(rows), np.int64),
                                   np.column_stack([events.weight[rows], events.time[rows]]))

    def add_pairs(self, changed: pa.RecordBatch) -> None:
        """Adds changes of pairs (pairs.PAIRS)."""
        if "pairs" not in self.tables or changed.num_rows == 0:
            return
        names = self.names["item"]
        self.tables["pairs"].add(names.codes(changed.column("item_id")), changed.column("pane").to_numpy(),
                                 names.codes(changed.column("other_id")),
                                 changed.column("users").to_numpy().astype(np.int64)[:, None])

    def trending(self, most: int) -> tuple[list[str], npt.NDArray[np.float32], int] | None:
        """What is trending: ids by their event weights of the last hour, which halve in TRENDING_HALF_LIFE minutes, heaviest
        first (ties by hash), at most so many; their weights in the newest minute; the newest event's time. None without."""
        table = self.tables.get("minutes")
        if table is None or not len(table):
            return None
        last = int(table.pane.max())
        rows = np.flatnonzero(table.pane > last - RINGS["item_minutes"].size)
        weight = table.values[rows, 0] * _TRENDING[last - table.pane[rows]]
        totals = np.bincount(table.entity[rows], weight.astype(np.float64))  # whole numbers below 2^53: exact in any order
        codes = np.flatnonzero(totals)
        codes = codes[np.lexsort((self.names["item"].hashes[codes], -totals[codes]))][:most]
        weights = (totals[codes] / _TRENDING[0]).astype(np.float32)
        return self.names["item"].strings(codes).to_pylist(), weights, int(table.values[rows, 1].max())

    def final(self, horizon: int, previous: int) -> dict[str, pa.RecordBatch]:
        """See StreamAccumulator: closed minutes."""
        if "minutes" not in self.tables:
            return {}
        horizon, previous = self.span(horizon, previous)
        table, names = self.tables["minutes"], self.names["item"]
        ends = (table.pane + 1) * MINUTE
        rows = np.flatnonzero((ends > previous) & (ends <= horizon))
        rows = rows[np.lexsort((table.pane[rows], names.hashes[table.entity[rows]]))]
        schema = STREAM_MINUTES.schema
        return {"stream_minutes": pa.RecordBatch.from_arrays(
            [names.strings(table.entity[rows].astype(np.int64)).cast(pa.string()),
             pa.array(table.pane[rows] * MINUTE).cast(schema.field("start").type), pa.array(table.values[rows, 0])],
            schema=schema)}

    def _cells(self, group: str, codes: Ints) -> Cells:
        names = self.names["item"]
        if group in RINGS:
            return rings.ring_cells(group, rings.rings_of(group, self.tables["minutes"], codes, slice(0, 1), 1), names)
        found = self._decayed(codes)
        return decayed.decayed_cells(group, found, found.last * PANE, names, names)

    def _features(self, group: str, codes: Ints, t: int) -> Extract:
        names = self.names["item"]
        if group in RINGS:
            return rings.ring_features(group, rings.rings_of(group, self.tables["minutes"], codes, slice(0, 1), 1), names, t)
        return decayed.decayed_features("recent_cooccurring_items", self._decayed(codes), names, names, t, shares=False)

    def _decayed(self, codes: Ints) -> decayed.DecayedColumns:
        return decayed.decayed_of(self.tables["pairs"], codes, self.names["item"], COOCCURRENCE_CAP, PANE_PARTNERS_CAP)

    def _kept(self, horizon: int) -> dict[str, Kept]:
        """Minutes and panes in a window; of a closed pane only the partners that count, and none that no user holds."""
        kept: dict[str, Kept] = {}
        for name, table in self.tables.items():
            first = horizon // MINUTE - (RINGS["item_minutes"].size - 1) if name == "minutes" else \
                horizon // PANE - (DECAY_PANES - 1)
            rows = np.flatnonzero(table.pane >= first)
            if name == "pairs":
                rows = self._counting(table, rows, horizon)
            kept[name] = rows, table.pane[rows]
        return kept

    def _counting(self, table: Table, rows: Ints, horizon: int) -> Ints:
        entity, pane = table.entity[rows].astype(np.int64), table.pane[rows]
        order = np.lexsort((pane, entity))
        rows, entity, pane = rows[order], entity[order], pane[order]
        if len(rows) == 0:
            return rows
        new = np.flatnonzero(np.concatenate(([True], (entity[1:] != entity[:-1]) | (pane[1:] != pane[:-1]))))
        users = table.values[rows, 0]
        rank = (users << 32) | (LOW - text_ranks(self.names["item"], table.member[rows].astype(np.int64)))
        counts = np.zeros(len(rows), bool)
        counts[best(np.append(new, len(rows)), rank, PANE_PARTNERS_CAP)[1]] = True
        # Pairs of a pane change while one of its events, or of a pane before it, can still come: while it is open.
        return np.sort(rows[counts | ((pane + 1) * PANE > horizon)])
