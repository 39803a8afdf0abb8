"""Decayed lists: categories that a user prefers, items seen together with an item. Weights per pane, decayed when read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.features import group as group_of
from schemas.stream_cells import DECAY, DECAY_ONE, DECAY_PANES, DECAYED, PANE
from transforms.accumulators.base import Extract, Lists
from transforms.accumulators.frame import Ints
from transforms.accumulators.stream import packing
from transforms.accumulators.stream.base import Cells
from transforms.accumulators.stream.grouping import bounds_of, text_ranks
from transforms.accumulators.stream.heaviest import heaviest
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.table import Table

_LAST = np.dtype([("last", "<i8"), ("entries", "<u4")])


@dataclass(frozen=True)
class DecayedColumns:
    """Weights of n entities that have rows.

    Attributes:
      codes, last: (n,) entity, and its newest pane.
      bounds, members: ids of each entity (n + 1,), best at ``last`` first.
      entry_bounds: (n + 1,); of each entry its id's position in ``members`` (``at``), its pane and its weight.
    """

    codes: Ints
    last: Ints
    bounds: Ints
    members: Ints
    entry_bounds: Ints
    at: Ints
    pane: Ints
    weight: Ints


def decayed_of(table: Table, codes: Ints, names: Names, cap: int, pane_cap: int | None = None) -> DecayedColumns:
    """Weights of some entities in the 48 panes up to the newest of each.

    Args:
      table: value column 0 is the weight; ``names`` are those of its members.
      cap: at most so many ids of an entity: those that weigh most at its newest pane, ties by id.
      pane_cap: of one pane only the so many heaviest ids of an entity count, ties by id.
    """
    bounds, rows = table.rows_of(codes)
    has = np.diff(bounds) > 0
    codes, bounds = codes[has], np.concatenate(([0], bounds[1:][has]))
    last = table.pane[rows[bounds[1:] - 1]]
    found = heaviest(bounds, rows, table.rows, table.values, DECAY, cap, pane_cap or len(table), *names.utf8())
    return DecayedColumns(codes, last, *found)


def decayed_cells(group: str, found: DecayedColumns, newest: Ints, names: Names, members: Names) -> Cells:
    """Packed lists; ``newest`` (n,) are their timestamps."""
    owner = np.repeat(np.arange(len(found.codes)), np.diff(found.entry_bounds))
    last = np.empty(len(found.codes), _LAST)
    last["last"], last["entries"] = found.last, np.diff(found.entry_bounds)
    values = packing.weave([
        packing.header(DECAYED, group_of(group).id, np.diff(found.bounds)), packing.fixed(last),
        *packing.strings(found.bounds, members, found.members),
        packing.column(found.entry_bounds, (found.at - found.bounds[owner]).astype("<u2")),
        packing.column(found.entry_bounds, (found.last[owner] - found.pane).astype(np.uint8)),
        packing.column(found.entry_bounds, found.weight.astype("<i4"))])
    return Cells(group, names.ids(found.codes), values, newest)


def decayed_features(feature: str, found: DecayedColumns, names: Names, members: Names, t: int, shares: bool) -> Extract:
    """The list feature as of t: shares of an entity's total, or plain scores."""
    age = t // PANE - found.pane
    inside = (age >= 0) & (age < DECAY_PANES)
    score = np.zeros(len(found.members), np.int64)
    np.add.at(score, found.at[inside], DECAY[age[inside]] * found.weight[inside])
    owner = np.repeat(np.arange(len(found.codes)), np.diff(found.bounds))
    order = np.lexsort((text_ranks(members, found.members), -score, owner))
    order = order[score[order] > 0]
    bounds = bounds_of(owner[order], len(found.codes))
    values: npt.NDArray[np.float64] = score[order] / DECAY_ONE
    if shares:
        total = np.zeros(len(found.codes), np.int64)
        np.add.at(total, owner[order], score[order])
        values = score[order] / total[owner[order]]
    return Extract(names.ids(found.codes), {feature: Lists(bounds, members.named(found.members[order]),
                                                           np.zeros(len(order), np.int64), values.astype(np.float32))})
