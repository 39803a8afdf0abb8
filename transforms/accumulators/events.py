"""Events of one batch as integer columns: what every accumulator's ``add`` reads. Decoded lazily, once per batch."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.event_types import CODES, EVENT_TYPES
from schemas.workspace import DAY_MICROS
from schemas.xxh3 import hash64_strings
from transforms.accumulators.frame import Ids, Ints
from transforms.accumulators.kernels import explode

UNKNOWN_CATEGORY = "unknown"
MICRO = 1_000_000
"""Prices are summed in millionths."""

_WEIGHTS = np.array([t.weight for t in EVENT_TYPES], np.int64)
_CONSUMES = np.array([t.consumes for t in EVENT_TYPES])
_POSITIVE = np.array([t.positive for t in EVENT_TYPES])
_FLOOR = np.array([-np.inf if t.min_value is None else t.min_value for t in EVENT_TYPES])


class Events:
    """Columns of a batch of the lake's ``events`` table; a property may be read when the batch has its columns."""

    def __init__(self, batch: pa.RecordBatch | pa.Table) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def _column(self, name: str) -> pa.Array:
        column = self._batch.column(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.unify_dictionaries().combine_chunks() if pa.types.is_dictionary(column.type) else \
                column.combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        return column

    def column(self, name: str) -> pa.Array:
        """A column as one array, as it came."""
        return self._column(name)

    def _ids(self, column: pa.Array) -> tuple[Ids, Ints]:
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        names = encoded.dictionary.cast(pa.large_string())
        ids, position = Ids.of(hash64_strings(names), names)
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return ids, np.append(position, -1)[codes]  # a null's code, -1, reads the -1 at the end

    @cached_property
    def _users(self) -> tuple[Ids, Ints]:
        return self._ids(self._column("user_id"))

    @cached_property
    def _items(self) -> tuple[Ids, Ints]:
        return self._ids(self._column("item_id"))

    @property
    def users(self) -> Ids:
        """The users of the batch."""
        return self._users[0]

    @property
    def user(self) -> Ints:
        """(n,) positions in ``users``."""
        return self._users[1]

    @property
    def items(self) -> Ids:
        """The items of the batch."""
        return self._items[0]

    @property
    def item(self) -> Ints:
        """(n,) positions in ``items``; -1 for an event without an item."""
        return self._items[1]

    @cached_property
    def time(self) -> Ints:
        """(n,) occurred_at, microseconds since 1970."""
        return self._column("occurred_at").cast(pa.int64()).to_numpy()

    @property
    def day(self) -> Ints:
        """(n,) UTC day number since 1970."""
        return self.time // DAY_MICROS

    @cached_property
    def tie(self) -> Ints:
        """(n,) hash64 of event_id, read as int64: orders events of one microsecond (compare as uint64)."""
        return self._column("event_hash").to_numpy()

    @cached_property
    def type(self) -> Ints:
        """(n,) codes of event_types; raises ValueError for a type that is not there."""
        column = self._column("event_type")
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        if unknown := set(names) - CODES.keys():
            raise ValueError(f"unknown event types: {', '.join(sorted(unknown))}")
        return np.array([CODES[n] for n in names], np.int64)[encoded.indices.to_numpy()]

    @cached_property
    def weight(self) -> Ints:
        """(n,) weight of each event's type."""
        return _WEIGHTS[self.type]

    @cached_property
    def interacts(self) -> npt.NDArray[np.bool_]:
        """(n,) weight > 0 and an item."""
        return (self.weight > 0) & (self.item >= 0)

    @cached_property
    def consumes(self) -> npt.NDArray[np.bool_]:
        """(n,) the user is done with the item."""
        return _CONSUMES[self.type] & (self.item >= 0)

    @cached_property
    def positive(self) -> npt.NDArray[np.bool_]:
        """(n,) a positive label: its type is one, and its value reaches the type's floor."""
        value = self._column("value").fill_null(np.nan).to_numpy(zero_copy_only=False)
        floor = _FLOOR[self.type]
        return _POSITIVE[self.type] & (self.item >= 0) & ((floor == -np.inf) | (value >= floor))

    @cached_property
    def dwell(self) -> tuple[npt.NDArray[np.bool_], Ints]:
        """(n,) whether it has a dwell, and the dwell in milliseconds (0 without)."""
        column = self._column("dwell_ms")
        return column.is_valid().to_numpy(zero_copy_only=False), column.fill_null(0).to_numpy()

    @cached_property
    def price(self) -> tuple[npt.NDArray[np.bool_], Ints]:
        """(n,) whether it has a finite price, and the price in micro-units (0 without)."""
        price = self._column("price").fill_null(np.nan).to_numpy(zero_copy_only=False)
        has = np.isfinite(price)
        return has, np.rint(np.where(has, price, 0.0) * MICRO).astype(np.int64)

    @cached_property
    def categories(self) -> tuple[Ids, Ints, Ints]:
        """The categories, and for each (interaction, category) its event's row and its category's position.

        An event without categories has the one called ``unknown``; one that names a category twice has it once.
        """
        column = self._column("categories")
        flat = column.values
        encoded = flat if pa.types.is_dictionary(flat.type) else flat.dictionary_encode()
        names = pa.concat_arrays([encoded.dictionary.cast(pa.large_string()), pa.array([UNKNOWN_CATEGORY], pa.large_string())])
        ids, position = Ids.of(hash64_strings(names), names)
        codes = position[encoded.indices.to_numpy()]
        return ids, *explode(self.interacts, column.offsets.to_numpy(), codes, int(position[-1]))
