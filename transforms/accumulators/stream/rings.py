"""Rings: the last panes of counts of each entity, as cells and as feature values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.features import features_of
from schemas.features import group as group_of
from schemas.stream_cells import RING, RINGS, window_sums
from transforms.accumulators.base import Extract
from transforms.accumulators.frame import Ints
from transforms.accumulators.stream import packing
from transforms.accumulators.stream.base import Cells
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.table import Table


@dataclass(frozen=True)
class RingColumns:
    """Rings of n entities that have rows: codes (n,), first panes (n,), counts (n, size, width), newest time of each (n,)."""

    codes: Ints
    first: Ints
    counts: npt.NDArray[np.int32]
    newest: Ints


def rings_of(group: str, table: Table, codes: Ints, columns: slice, newest: int) -> RingColumns:
    """The rings of some entities, each ending with its newest pane.

    Args:
      table: its panes are those of the group.
      codes: distinct entities.
      columns: value columns that are the counts; newest: the value column with the newest time of a row.
    """
    size = RINGS[group].size
    bounds, rows = table.rows_of(codes)
    has = np.diff(bounds) > 0
    last = np.zeros(len(codes), np.int64)
    last[has] = table.pane[rows[bounds[1:][has] - 1]]
    owner = np.repeat(np.arange(len(codes)), np.diff(bounds))
    at = table.pane[rows] - (last[owner] - (size - 1))
    rank = (np.cumsum(has) - 1)[owner]
    inside = at >= 0
    values = table.values
    counts = np.zeros((int(has.sum()), size, values[:0, columns].shape[1]), np.int32)
    counts[rank[inside], at[inside]] = values[rows[inside], columns]
    times = np.zeros(len(counts), np.int64)
    if len(rows):
        times = np.maximum.reduceat(values[rows, newest], bounds[:-1][has])
    return RingColumns(codes[has], last[has] - (size - 1), counts, times)


def ring_cells(group: str, rings: RingColumns, names: Names) -> Cells:
    """Packed rings."""
    n, size, width = rings.counts.shape
    values = packing.weave([packing.header(RING, group_of(group).id, np.full(n, size * width)), packing.fixed(rings.first),
                            packing.fixed(rings.counts.reshape(n, size * width))])
    return Cells(group, names.ids(rings.codes), values, whole_milliseconds(rings.newest))


def ring_features(group: str, rings: RingColumns, names: Names, t: int) -> Extract:
    """Feature values as of t."""
    ring = RINGS[group]
    sums = window_sums(rings.first, rings.counts, t // ring.step, ring.windows).reshape(
        len(rings.codes), rings.counts.shape[2] * len(ring.windows))
    return Extract(names.ids(rings.codes), {f.name: sums[:, i].astype(float) for i, f in enumerate(features_of(group))})


def whole_milliseconds(micros: Ints) -> Ints:
    """Times cut to whole milliseconds, still in microseconds: cell timestamps."""
    return micros // 1000 * 1000
