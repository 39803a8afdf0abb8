"""Codes to Arrow columns: events with dictionary-encoded text, and the catalogue and profiles of a World."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.simulate.behaviour import REFERRERS, SECOND, SURFACES, Rows
from beam_pipelines.simulate.world import CATEGORIES, COUNTRIES, DEVICES, I64, SYSTEMS, World, generator
from schemas.arrow import TIMESTAMP, arrow_schema
from schemas.event_types import NAMES
from schemas.xxh3 import fixed_strings

_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)
_AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
_PLANS = ("free", "basic", "premium")


class EventColumns:
    """Turns Rows of one World into tables of the ``events`` columns (without event_hash)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._source = f"simulate:{world.spec.seed}"
        self._salt = np.uint64(generator(world.spec, 3).integers(0, 1 << 63))
        category, second = world.item_category, world.item_second
        self._shelf = category.astype(np.int32) * (len(CATEGORIES) + 1) + second + 1  # one code per pair of categories

    def table(self, rows: Rows, copies: npt.NDArray[np.bool_] | None = None) -> pa.Table:
        """The events of some rows, in order.

        Args:
          rows: of one day.
          copies: which rows are a second sending: the same event, ingested later, later in the log.
        """
        world, n = self._world, len(rows)
        again = np.zeros(n, np.int64) if copies is None else copies.astype(np.int64)
        has_item = rows.item >= 0
        item = np.where(has_item, rows.item, 0)
        os_code = np.where(rows.device == 1, 2 + rows.user % 3, rows.user % 2).astype(np.int8)
        shopping = rows.kind != 0
        columns: dict[str, pa.Array] = {
            "event_id": fixed_strings(_hex(_mix(rows.number.astype(np.uint64) ^ self._salt))),
            "user_id": _used(rows.user, world.user_ids),
            "item_id": _used(rows.item, world.item_ids),
            "event_type": _coded(rows.kind, NAMES),
            "occurred_at": _times(rows.at),
            "ingested_at": _times(rows.at + rows.lag + again * (30 * SECOND)),
            "surface": _coded(rows.surface, SURFACES),
            "device": _coded(rows.device, DEVICES),
            "session_id": self._numbered(rows.session, 1),
            "page_position": pa.array(rows.position.astype(np.int32), mask=rows.position == 0),
            "request_id": self._numbered(rows.request, 2),
            "dwell_ms": pa.array(rows.dwell.astype(np.int64), mask=rows.dwell < 0),
            "value": pa.array(np.round(rows.value.astype(np.float64), 2), mask=np.isnan(rows.value)),
            "categories": self._categories(np.where(has_item, self._shelf[item], -1)),
            "price": pa.array(world.item_price[item], mask=~(has_item & shopping)),
            "country": _coded(world.user_country[rows.user], COUNTRIES),
            "os": _coded(os_code, SYSTEMS),
            "referrer": _coded(rows.referrer, REFERRERS),
            "attributes": pa.MapArray.from_arrays(np.zeros(n + 1, np.int32), _names(()), _names(())),
            "schema_version": pa.array(np.ones(n, np.int32)),
            "source": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [self._source]),
            "partition": pa.array(np.zeros(n, np.int32)),
            "offset": pa.array(rows.number),
            "index": pa.array(again.astype(np.int32)),
        }
        columns["model_version"] = pa.nulls(n, pa.string())
        order = [f.name for f in arrow_schema("event")] + ["source", "partition", "offset", "index"]
        return pa.table([columns[name] for name in order], names=order)

    def _numbered(self, numbers: I64, kind: int) -> pa.DictionaryArray:
        """16 hex digits per number, null for -1."""
        change = np.flatnonzero(np.diff(numbers, prepend=np.int64(-2)))  # runs: far fewer values to sort
        distinct, run = np.unique(numbers[change], return_inverse=True)
        codes = np.repeat(run.astype(np.int32), np.diff(change, append=len(numbers)))
        missing = None
        if len(distinct) and distinct[0] < 0:
            distinct, codes = distinct[1:], codes - 1
            missing = codes < 0
        text = fixed_strings(_hex(_mix(distinct.astype(np.uint64) ^ self._salt + np.uint64(kind))))
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=missing), text)

    def _categories(self, shelf: npt.NDArray[np.integer]) -> pa.ListArray:
        """The one or two categories of each row's item, none for shelf -1."""
        first, second = np.divmod(shelf, len(CATEGORIES) + 1)
        pair = np.stack([first, second - 1], axis=1)
        pair[shelf < 0] = -1
        there = pair >= 0
        offsets = np.zeros(len(shelf) + 1, np.int32)
        np.cumsum(there.sum(axis=1, dtype=np.int32), out=offsets[1:])
        names = pa.DictionaryArray.from_arrays(pair[there].astype(np.int8), list(CATEGORIES))
        return pa.ListArray.from_arrays(offsets, names)


def items_table(world: World) -> pa.Table:
    """The catalogue as it is at the end of the world: items born by then; those that died are inactive."""
    born = np.flatnonzero(world.item_born < world.end)
    dead = world.item_dies[born] < world.end
    categories = [[CATEGORIES[a]] + ([CATEGORIES[b]] if b >= 0 else [])
                  for a, b in zip(world.item_category[born].tolist(), world.item_second[born].tolist(), strict=True)]
    return pa.table({
        "item_id": pa.array(world.item_ids(born)),
        "title": pa.array([world.title(i) for i in born.tolist()]),
        "categories": pa.array(categories, pa.list_(pa.string())),
        "price": world.item_price[born],
        "image": pa.nulls(len(born), pa.string()),
        "published_at": _times(world.item_born[born]),
        "is_active": pa.array(~dead),
        "updated_at": _times(np.where(dead, world.item_dies[born], world.item_born[born])),
        "attributes": pa.array([[("year", str(y))] for y in world.item_year[born].tolist()], pa.map_(pa.string(), pa.string())),
        "schema_version": np.ones(len(born), np.int32),
    }).select(arrow_schema("item").names)


def users_table(world: World, first: int, last: int) -> pa.Table:
    """The profiles of user indices [first, last) that have signed up by the end of the world."""
    who = np.arange(first, last)
    who = who[world.user_born[who] < world.end]
    age, plan = (who * 7919) % len(_AGES), (who * 104729) % 10 // 5 + (who % 31 == 0)
    attributes = [[("age", _AGES[a]), ("plan", _PLANS[p])] for a, p in zip(age.tolist(), plan.tolist(), strict=True)]
    return pa.table({
        "user_id": pa.array(world.user_ids(who)),
        "signup_at": _times(world.user_born[who]),
        "country": _coded(world.user_country[who], COUNTRIES).cast(pa.string()),
        "is_active": pa.array(np.ones(len(who), bool)),
        "updated_at": _times(world.user_born[who]),
        "attributes": pa.array(attributes, pa.map_(pa.string(), pa.string())),
        "schema_version": np.ones(len(who), np.int32),
    }).select(arrow_schema("user").names)


def _times(micros: I64) -> pa.Array:
    return pa.array(micros.astype(np.int64)).view(TIMESTAMP)


def _coded(codes: npt.NDArray[np.integer], names: tuple[str, ...]) -> pa.DictionaryArray:
    """A dictionary column of small codes; -1 is null."""
    missing = codes < 0
    indices = pa.array(codes.astype(np.int32), mask=missing if missing.any() else None)
    return pa.DictionaryArray.from_arrays(indices, _names(names))


@functools.cache
def _names(names: tuple[str, ...]) -> pa.Array:
    return pa.array(names, pa.string())


def _used(indices: npt.NDArray[np.int32], ids: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.str_]]) -> pa.DictionaryArray:
    """A dictionary column of ids, holding only the ids that occur; -1 is null."""
    missing = indices < 0
    low = int(indices.max(initial=0)) + 1
    there = np.zeros(low, bool)
    there[indices[~missing] if missing.any() else indices] = True
    code = np.cumsum(there, dtype=np.int32) - 1
    dictionary = pa.array(ids(np.flatnonzero(there)))
    return pa.DictionaryArray.from_arrays(pa.array(code[indices], mask=missing if missing.any() else None), dictionary)


def _mix(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit numbers that looks random (the finaliser of splitmix64, Steele et al. 2014)."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hex(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """(n, 16) ASCII hex digits, most significant first."""
    return _HEX[numbers.byteswap().view(np.uint8)].view(np.uint8).reshape(len(numbers), 16)
