"""Compiled reading of request bodies: JSON to the places of its values, many bodies in one call, no GIL.

It reads what clients nearly always send and leaves the rest to ``wire``: a body with anything unusual in it (what json_places
does not read, an unknown or repeated field, a value out of bounds) is left whole, never refused here. What it does read,
``wire`` would read alike (a property test holds them equal).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from schemas.arrow import TIMESTAMP, arrow_schema
from schemas.event_types import NAMES
from serving.collector.json_places import (
    I32,
    I64,
    NO,
    Bytes,
    decimal,
    end_of_text,
    is_null,
    moment,
    pairs,
    skip_spaces,
    texts,
    which_word,
    whole_number,
    words_of,
)
from serving.collector.wire import MAX_ATTRIBUTES, MAX_CATEGORIES, MAX_EVENTS, MICROS_FROM
from transforms.ingest import MAX_AHEAD_MICROS, MAX_ID_BYTES
from transforms.records.memory import byte_at

SCHEMA = arrow_schema("event")
TEXT, TIME, INT, FLOAT, LIST, MAP, OURS = range(7)
"""Kinds of fields. OURS: the collector's to fill."""

_KINDS = {pa.string(): TEXT, TIMESTAMP: TIME, pa.int32(): INT, pa.int64(): INT, pa.float64(): FLOAT}
_FIELDS = [(f.name, OURS if f.name == "ingested_at" else LIST if pa.types.is_list(f.type) else MAP if pa.types.is_map(f.type)
            else _KINDS[f.type]) for f in SCHEMA]
TEXTS = [name for name, kind in _FIELDS if kind == TEXT]
NUMBERS = [name for name, kind in _FIELDS if kind in (TIME, INT, FLOAT)]

KIND = np.array([kind for _, kind in _FIELDS], np.int64)
COLUMN = np.array([TEXTS.index(n) if k == TEXT else NUMBERS.index(n) if k in (TIME, INT, FLOAT) else 0 for n, k in _FIELDS],
                   np.int64)
_LIMIT = np.array([{"page_position": 2**31 - 1, "schema_version": 2**31 - 1, "dwell_ms": 2**53, "referrer": 2048}.get(
    n, MAX_ID_BYTES) for n, _ in _FIELDS], np.int64)
"""Of a text in bytes (no fewer than the characters that ``wire`` counts), of a number its greatest value."""


_KEYS, _TYPES, _EVENTS = words_of([name for name, _ in _FIELDS]), words_of(list(NAMES)), words_of(["events"])
_KEY_SIZES = np.array([len(name) for name, _ in _FIELDS], np.int64)
_TYPE_SIZES = np.array([len(name) for name in NAMES], np.int32)
_EVENT_ID, _USER_ID, _ITEM_ID, _TYPE = (TEXTS.index(n) for n in ("event_id", "user_id", "item_id", "event_type"))
_TYPE_FIELD, _USER_FIELD, _VERSION_FIELD = (SCHEMA.names.index(n) for n in ("event_type", "user_id", "schema_version"))
_OCCURRED, _PRICE, _VERSION = (NUMBERS.index(n) for n in ("occurred_at", "price", "schema_version"))
_SIGNUP = NAMES.index("signup")
_N_TEXTS, _N_NUMBERS, _N_FIELDS = len(TEXTS), len(NUMBERS), len(_FIELDS)


@njit(cache=True, nogil=True)
def _event(base: int, at: int, now: int, after: I64, begin: I64, size: I32, number: I64, real: npt.NDArray[np.float64],
           valid: npt.NDArray[np.bool_], list_begin: I64, list_size: I32, lists: int, map_begin: I64, map_size: I32,
           maps: int, needs_stamps: bool, leaves: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """(place after it, lists, maps) of an event, its values in one row of each array; the place is -1 for anything odd."""
    begin[:], size[:] = 0, -1
    valid[:] = False
    lists_before = lists
    number[_VERSION], valid[_VERSION] = 1, True
    if byte_at(base, at) != 123:
        return NO, lists, maps
    seen, kind_of_event, last = 0, -1, _N_FIELDS
    at = skip_spaces(base, at + 1)
    while byte_at(base, at) == 34:
        field = which_word(base, at + 1, _KEYS, after[last])
        if field < 0 or seen >> field & 1:
            return NO, lists, maps
        after[last] = last = field
        seen |= 1 << field
        at = skip_spaces(base, at + 2 + _KEY_SIZES[field])
        if byte_at(base, at) != 58:
            return NO, lists, maps
        at = skip_spaces(base, at + 1)
        kind, column = KIND[field], COLUMN[field]
        if is_null(base, at):
            if field in (_TYPE_FIELD, _USER_FIELD, _VERSION_FIELD):
                return NO, lists, maps
            at += 4
        elif kind == TEXT:
            if byte_at(base, at) != 34:
                return NO, lists, maps
            at += 1
            if field == _TYPE_FIELD:
                kind_of_event = which_word(base, at, _TYPES, kind_of_event)
                if kind_of_event < 0:
                    return NO, lists, maps
                end = at + _TYPE_SIZES[kind_of_event]
            else:
                end = end_of_text(base, at)
            if end < 0 or end - at > _LIMIT[field]:
                return NO, lists, maps
            begin[column], size[column] = at, end - at
            at = end + 1
        elif kind == INT:
            number[column], at = whole_number(base, at)
            valid[column] = True
            if at < 0 or number[column] > _LIMIT[field] or (number[column] == 0 and field == _VERSION_FIELD):
                return NO, lists, maps
        elif kind == FLOAT:
            real[column], at = decimal(base, at)
            valid[column] = True
            if at < 0:
                return NO, lists, maps
        elif kind == TIME:
            if byte_at(base, at) == 34:
                number[column], at = moment(base, at + 1)
            else:
                number[column], at = whole_number(base, at)
                if number[column] < MICROS_FROM:
                    number[column] *= 1000
            valid[column] = True
            if at < 0 or number[column] < 0 or number[column] > now + MAX_AHEAD_MICROS:
                return NO, lists, maps
        elif kind == LIST:
            lists, at = texts(base, at, list_begin, list_size, lists, MAX_CATEGORIES, 256)
            if at < 0:
                return NO, lists, maps
        elif kind == MAP:
            maps, at = pairs(base, at, map_begin, map_size, maps, MAX_ATTRIBUTES)
            if at < 0:
                return NO, lists, maps
        else:
            return NO, lists, maps
        at = skip_spaces(base, at)
        byte = byte_at(base, at)
        if byte != 44:
            if byte != 125:
                return NO, lists, maps
            break
        at = skip_spaces(base, at + 1)
        if byte_at(base, at) != 34:
            return NO, lists, maps
    if byte_at(base, at) != 125 or size[_USER_ID] < 1 or kind_of_event < 0 or size[_ITEM_ID] == 0:
        return NO, lists, maps
    if size[_ITEM_ID] < 0 and kind_of_event != _SIGNUP:
        return NO, lists, maps
    if leaves[kind_of_event] or (needs_stamps and (lists == lists_before or not valid[_PRICE])):
        return NO, lists, maps
    if size[_EVENT_ID] == 0:
        size[_EVENT_ID] = -1
    if not valid[_OCCURRED]:
        if size[_EVENT_ID] > 0:  # a retry must be a copy: the router remembers the time that it gave
            return NO, lists, maps
        number[_OCCURRED], valid[_OCCURRED] = now, True
    return at + 1, lists, maps


@njit(cache=True, nogil=True)
def scan(data: Bytes, ends: I64, room: int, now: int, needs_stamps: bool, leaves: npt.NDArray[np.bool_]) -> tuple[
        I64, I32, I64, npt.NDArray[np.bool_], I32, I64, I32, I32, I64, I32, I64]:
    """The events of n request bodies.

    Args:
      data: the bodies, a zero byte after each and eight at the end.
      ends: (n,) where each body ends in ``data``.
      room: how many events there is room for; a body beyond it is left, as is one beyond a list or map string every 8 bytes.
      now: microseconds; what occurs too long after it is left.
      needs_stamps: an event without categories or price is left: the catalogue may have them.
      leaves: (event types,) of which types events are left: what is urgent is told to the store.

    Returns:
      begin, size: (events, texts) places of the columns TEXTS, size -1 for null.
      number, valid: (events, numbers) values of the columns NUMBERS (floats as their bits), and whether each is there.
      list_end, list_begin, list_size: (events + 1,) ends of the lists in the places of their strings.
      map_end, map_begin, map_size: the same of maps; keys and values take turns.
      first: (n + 1,) the events of body i are first[i] to first[i + 1]; none: it is left to ``wire``.
    """
    base = np.int64(data.ctypes.data)
    begin, size = np.empty((room, _N_TEXTS), np.int64), np.empty((room, _N_TEXTS), np.int32)
    number, valid = np.zeros((room, _N_NUMBERS), np.int64), np.empty((room, _N_NUMBERS), np.bool_)
    real = number.view(np.float64)
    strings = len(data) // 8
    list_begin, list_size = np.empty(strings, np.int64), np.empty(strings, np.int32)
    map_begin, map_size = np.empty(strings, np.int64), np.empty(strings, np.int32)
    list_end, map_end = np.zeros(room + 1, np.int32), np.zeros(room + 1, np.int32)
    first = np.zeros(len(ends) + 1, np.int64)
    after = np.full(_N_FIELDS + 1, -1, np.int64)
    n = lists = maps = 0
    place = np.int64(0)
    for body in range(len(ends)):
        kept, at = n, skip_spaces(base, place)
        many, closing = byte_at(base, at) == 91, False
        if many:
            at = skip_spaces(base, at + 1)
        elif byte_at(base, at) == 123:
            key = skip_spaces(base, at + 1)
            if byte_at(base, key) == 34 and which_word(base, key + 1, _EVENTS, -1) == 0:
                at = skip_spaces(base, key + 8)
                many = closing = True
                at = skip_spaces(base, at + 1) if byte_at(base, at) == 58 else place
                at = skip_spaces(base, at + 1) if byte_at(base, at) == 91 else place
        good = True
        while good:
            if n == room:
                good = False
                break
            at, lists, maps = _event(base, at, now, after, begin[n], size[n], number[n], real[n], valid[n],
                                     list_begin, list_size, lists, map_begin, map_size, maps, needs_stamps, leaves)
            if at < 0:
                good = False
                break
            n += 1
            list_end[n], map_end[n] = lists, maps
            if not many:
                break
            at = skip_spaces(base, at)
            byte = byte_at(base, at)
            at = skip_spaces(base, at + 1)
            if byte == 93:
                break
            good = byte == 44
        if good and closing:
            good = byte_at(base, at) == 125
            at = skip_spaces(base, at + 1)
        if not good or n - kept > MAX_EVENTS or skip_spaces(base, at) != ends[body]:
            n, lists, maps = kept, list_end[kept], map_end[kept]
        first[body + 1] = n
        place = ends[body] + 1
    return (begin[:n], size[:n], number[:n], valid[:n], list_end[: n + 1], list_begin[:lists], list_size[:lists],
            map_end[: n + 1], map_begin[:maps], map_size[:maps], first)
