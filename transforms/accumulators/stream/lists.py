"""Lists of distinct items, newest first: of a session, and of the last day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.cells import LIST
from schemas.features import RECENT_ITEMS_CAP
from schemas.features import group as group_of
from schemas.stream_cells import RECENT_WINDOW
from transforms.accumulators.base import Extract, Lists
from transforms.accumulators.frame import Ints
from transforms.accumulators.kernels import last_rows, newest
from transforms.accumulators.stream import packing
from transforms.accumulators.stream.base import Cells
from transforms.accumulators.stream.grouping import bounds_of, groups_of
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.rings import whole_milliseconds
from transforms.accumulators.stream.table import Table

ITEM_TIME, ITEM_TIE, ITEM_WEIGHT = 0, 1, 2
"""Value columns of the tables of items: those of the last event of weight > 0."""


@dataclass(frozen=True)
class ItemLists:
    """Lists of n owners: bounds (n + 1,), item codes, times and weights, newest first."""

    bounds: Ints
    items: Ints
    times: Ints
    weights: npt.NDArray[np.float32]

    def sections(self, names: Names) -> list[packing.Section]:
        """The body of a list cell."""
        return [packing.column(self.bounds, self.times.astype("<i8")), packing.column(self.bounds, self.weights.astype("<f4")),
                *packing.strings(self.bounds, names, self.items)]

    def where(self, keep: npt.NDArray[np.bool_], names: Names) -> Lists:
        """The entries kept, as a feature column."""
        bounds = np.concatenate(([0], np.cumsum(keep)))[self.bounds]
        return Lists(bounds, names.named(self.items[keep]), self.times[keep], self.weights[keep])


def newest_items(table: Table, owner: Ints, rows: Ints, n: int, cap: int) -> ItemLists:
    """The newest distinct items of n owners among some rows, at most ``cap`` of each."""
    order, starts, whose = groups_of(owner, table.member[rows].astype(np.int64))
    rows = rows[order]
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
    values = table.values
    last = last_rows(group, np.ascontiguousarray(values[rows, ITEM_TIME]),
                     np.ascontiguousarray(values[rows, ITEM_TIE]).view(np.uint64), len(starts))
    rows = rows[last]
    time, tie = np.ascontiguousarray(values[rows, ITEM_TIME]), np.ascontiguousarray(values[rows, ITEM_TIE])
    bounds, chosen = newest(bounds_of(whose, n), time, tie.view(np.uint64), cap)
    return ItemLists(bounds, table.member[rows[chosen]].astype(np.int64), time[chosen],
                     values[rows[chosen], ITEM_WEIGHT].astype(np.float32))


def recent_of(table: Table, codes: Ints) -> tuple[Ints, ItemLists]:
    """Users that have recent items, and those of each: newer than a day before the newest."""
    bounds, rows = table.rows_of(codes)
    has = np.diff(bounds) > 0
    codes, bounds = codes[has], np.concatenate(([0], bounds[1:][has]))
    if len(codes) == 0:
        return codes, ItemLists(bounds, codes, codes, np.empty(0, np.float32))
    owner = np.repeat(np.arange(len(codes)), np.diff(bounds))
    time = table.values[rows, ITEM_TIME]
    inside = time > (np.maximum.reduceat(time, bounds[:-1]) - RECENT_WINDOW)[owner]
    return codes, newest_items(table, owner[inside], rows[inside], len(codes), RECENT_ITEMS_CAP)


def recent_cells(codes: Ints, lists: ItemLists, users: Names, items: Names) -> Cells:
    """Packed lists of recent items."""
    head = packing.header(LIST, group_of("user_recent").id, np.diff(lists.bounds))
    return Cells("user_recent", users.ids(codes), packing.weave([head, *lists.sections(items)]),
                 whole_milliseconds(lists.times[lists.bounds[:-1]]))


def recent_features(codes: Ints, lists: ItemLists, users: Names, items: Names, t: int) -> Extract:
    """recent_items as of t."""
    inside = (lists.times <= t) & (lists.times > t - RECENT_WINDOW)
    return Extract(users.ids(codes), {"recent_items": lists.where(inside, items)})
