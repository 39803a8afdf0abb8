"""What a pane of a user holds: counts by event type, first and last event, dwell and prices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from schemas.event_types import NAMES as EVENT_NAMES
from schemas.stream_cells import PANE
from schemas.tables import STREAM_PANES
from transforms.accumulators.events import Events
from transforms.accumulators.frame import Ints
from transforms.accumulators.stream.kernels import MAX, MIN, SUM
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.table import Table

TYPES = len(EVENT_NAMES)
FIRST, LAST = TYPES + 4, TYPES + 6
PANE_OPS = (*(SUM,) * (TYPES + 4), MIN, MIN, MAX, MAX)
"""Value columns: counts by type, dwell_sum, dwell_n, price_sum, price_n; first, price_min; last, price_max."""
MERGES = ((np.add, slice(0, TYPES + 4)), (np.minimum, slice(TYPES + 4, TYPES + 6)), (np.maximum, slice(TYPES + 6, TYPES + 8)))
Flags = npt.NDArray[np.bool_]
_NO_MIN, _NO_MAX = np.iinfo(np.int64).max, np.iinfo(np.int64).min


def pane_values(events: Events) -> Ints:
    """The value columns of each event but the counts by type, (n, k - TYPES)."""
    return _values(events.time, *events.dwell, *events.price, events.weight, len(PANE_OPS) - TYPES)


@njit(cache=True, nogil=True)
def _values(time: Ints, has_dwell: Flags, dwell: Ints, has_price: Flags, price: Ints, weight: Ints, width: int) -> Ints:
    out = np.empty((len(time), width), np.int64)
    for i in range(len(time)):
        priced = has_price[i] and weight[i] > 0
        out[i, 0], out[i, 1] = dwell[i], has_dwell[i]
        out[i, 2], out[i, 3] = price[i] if priced else 0, priced
        out[i, 4], out[i, 5] = time[i], price[i] if priced else _NO_MIN
        out[i, 6], out[i, 7] = time[i], price[i] if priced else _NO_MAX
    return out


def dwell_and_price(values: Ints) -> Ints:
    """dwell_sum, dwell_n, price_sum, price_n, price_min, price_max of n rows of values; 0 for a price that is not there."""
    prices = np.where(values[:, TYPES + 3, None] > 0, values[:, [FIRST + 1, LAST + 1]], 0)
    return np.concatenate([values[:, TYPES : TYPES + 4], prices], axis=1)


def final_panes(panes: Table, users: Names, horizon: int, previous: int) -> pa.RecordBatch:
    """Rows of stream_panes that ended in (previous, horizon], in order of the user's hash and time."""
    ends = (panes.pane + 1) * PANE
    rows = np.flatnonzero((ends > previous) & (ends <= horizon))
    rows = rows[np.lexsort((panes.pane[rows], users.hashes[panes.entity[rows]]))]
    values, schema = panes.values[rows], STREAM_PANES.schema
    numbers = dwell_and_price(values)
    unpriced = numbers[:, 3] == 0
    columns = [users.strings(panes.entity[rows].astype(np.int64)).cast(pa.string()),
               pa.array(panes.pane[rows] * PANE).cast(schema.field("start").type),
               *(pa.array(values[:, i]) for i in range(TYPES)),
               *(pa.array(numbers[:, i], mask=unpriced if i > 3 else None) for i in range(6))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
