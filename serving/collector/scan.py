"""Compiled reading of request bodies: JSON to the places of its values, many bodies in one call, no GIL.

It reads what clients nearly always send and leaves the rest to ``wire``: a body with anything unusual in it (an escape in a
string, an unknown or repeated field, a value out of bounds, a float that needs more than one rounding) is left whole, never
refused here. What it does read, ``wire`` would read alike (a property test holds them equal). Grammar: RFC 8259; UTF-8: RFC
3629; floats by Clinger's exact case ("How to Read Floating Point Numbers Accurately", 1990): integers below 2^53 times or
divided by a power of ten up to 10^22.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from schemas.arrow import TIMESTAMP, arrow_schema
from schemas.event_types import NAMES
from serving.collector.wire import MAX_ATTRIBUTES, MAX_CATEGORIES, MAX_EVENTS, MICROS_FROM
from transforms.ingest import MAX_AHEAD_MICROS, MAX_ID_BYTES
from transforms.records.kernels import utf8
from transforms.records.memory import byte_at, int64_at

Bytes = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

SCHEMA = arrow_schema("event")
TEXT, TIME, INT, FLOAT, LIST, MAP, OURS = range(7)
"""Kinds of fields. OURS: the collector's to fill."""

_KINDS = {pa.string(): TEXT, TIMESTAMP: TIME, pa.int32(): INT, pa.int64(): INT, pa.float64(): FLOAT}
_FIELDS = [(f.name, OURS if f.name == "ingested_at" else LIST if pa.types.is_list(f.type) else MAP if pa.types.is_map(f.type)
            else _KINDS[f.type]) for f in SCHEMA]
TEXTS = [name for name, kind in _FIELDS if kind == TEXT]
NUMBERS = [name for name, kind in _FIELDS if kind in (TIME, INT, FLOAT)]

_KIND = np.array([kind for _, kind in _FIELDS], np.int64)
_COLUMN = np.array([TEXTS.index(n) if k == TEXT else NUMBERS.index(n) if k in (TIME, INT, FLOAT) else 0 for n, k in _FIELDS],
                   np.int64)
_LIMIT = np.array([{"page_position": 2**31 - 1, "schema_version": 2**31 - 1, "dwell_ms": 2**53, "referrer": 2048}.get(
    n, MAX_ID_BYTES) for n, _ in _FIELDS], np.int64)
"""Of a text in bytes (no fewer than the characters that ``wire`` counts), of a number its greatest value."""


def _words(texts: list[str]) -> npt.NDArray[np.int64]:
    """(n, 4) each text and a closing quote as two little-endian words, and the masks of what counts in them."""
    rows = []
    for text in texts:
        size = len(text) + 1
        assert size <= 16
        masks = (b"\xff" * size).ljust(16, b"\0")
        rows.append(np.frombuffer((text + '"').encode().ljust(16, b"\0") + masks, np.int64))
    return np.array(rows)


_KEYS, _TYPES, _EVENTS = _words([name for name, _ in _FIELDS]), _words(list(NAMES)), _words(["events"])
_KEY_SIZES = np.array([len(name) for name, _ in _FIELDS], np.int64)
_TYPE_SIZES = np.array([len(name) for name in NAMES], np.int32)
_POWERS = 10.0 ** np.arange(23)
_EVENT_ID, _USER_ID, _ITEM_ID, _TYPE = (TEXTS.index(n) for n in ("event_id", "user_id", "item_id", "event_type"))
_TYPE_FIELD, _USER_FIELD, _VERSION_FIELD = (SCHEMA.names.index(n) for n in ("event_type", "user_id", "schema_version"))
_OCCURRED, _PRICE, _VERSION = (NUMBERS.index(n) for n in ("occurred_at", "price", "schema_version"))
_SIGNUP = NAMES.index("signup")
_N_TEXTS, _N_NUMBERS, _N_FIELDS = len(TEXTS), len(NUMBERS), len(_FIELDS)

_ONES = 0x0101010101010101
_QUOTES, _SLASHES, _SPACES = 0x22 * _ONES, 0x5C * _ONES, 0x20 * _ONES
_HIGH = np.int64(-0x7F7F7F7F7F7F7F80)  # 0x8080808080808080
_NO = -1


@njit(cache=True, nogil=True)
def _skip(base: int, at: int) -> int:
    """The place of the next byte that is no space."""
    while True:
        byte = byte_at(base, at)
        if byte != 32 and byte != 10 and byte != 13 and byte != 9:
            return at
        at += 1


@njit(cache=True, nogil=True)
def _text(base: int, at: int) -> int:
    """The closing quote of the string whose first byte is at a place; -1 for an escape, a control byte or broken UTF-8."""
    begin, ascii_only = at, True
    while True:
        word = int64_at(base, at)
        quote, slash = word ^ _QUOTES, word ^ _SLASHES
        if ((((quote - _ONES) & ~quote) | ((slash - _ONES) & ~slash) | ((word - _SPACES) & ~word)) & _HIGH) == 0:
            ascii_only &= (word & _HIGH) == 0
            at += 8
            continue
        for _ in range(8):
            byte = byte_at(base, at)
            if byte == 34:
                return at if ascii_only or utf8(base, begin, at) else _NO
            if byte == 92 or byte < 32:
                return _NO
            ascii_only &= byte < 128
            at += 1


@njit(cache=True, nogil=True)
def _which(base: int, at: int, words: I64, guess: int) -> int:
    """Which of the texts stands at a place, the guess tried first; -1 for none."""
    one, two = int64_at(base, at), int64_at(base, at + 8)
    if guess >= 0 and one & words[guess, 2] == words[guess, 0] and two & words[guess, 3] == words[guess, 1]:
        return guess
    for i in range(len(words)):
        if one & words[i, 2] == words[i, 0] and two & words[i, 3] == words[i, 1]:
            return i
    return _NO


@njit(cache=True, nogil=True)
def _is_null(base: int, at: int) -> bool:
    return int64_at(base, at) & 0xFFFFFFFF == 0x6C6C756E


@njit(cache=True, nogil=True)
def _digits(base: int, at: int) -> tuple[int, int]:
    """(value, place after it) of up to 18 digits; the place is -1 without any, or with more."""
    begin, value = at, 0
    byte = byte_at(base, at)
    while 48 <= byte <= 57:
        value = value * 10 + byte - 48
        at += 1
        byte = byte_at(base, at)
    return value, at if 0 < at - begin <= 18 else _NO


@njit(cache=True, nogil=True)
def _integer(base: int, at: int) -> tuple[int, int]:
    """(value, place after it) of an integer that is not negative; the place is -1 for anything else."""
    value, end = _digits(base, at)
    if end - at > 1 and byte_at(base, at) == 48:
        return 0, _NO
    return value, end


@njit(cache=True, nogil=True)
def _float(base: int, at: int) -> tuple[float, int]:
    """(value, place after it) of a number that one multiplication or division gives exactly; the place is -1 for others."""
    negative = byte_at(base, at) == 45
    at += negative
    mantissa, end = _integer(base, at)
    if end < 0:
        return 0.0, _NO
    size, exponent, at = end - at, 0, end
    if byte_at(base, at) == 46:
        more, end = _digits(base, at + 1)
        if end < 0 or size + end - at > 17:
            return 0.0, _NO
        exponent = at + 1 - end
        for _ in range(-exponent):
            mantissa *= 10
        mantissa += more
        at = end
    if byte_at(base, at) | 32 == 101:
        return 0.0, _NO
    if mantissa > 1 << 53 or (negative and mantissa == 0):
        return 0.0, _NO
    value = mantissa / _POWERS[-exponent]
    return -value if negative else value, at


@njit(cache=True, nogil=True)
def _strings(base: int, at: int, begin: I64, size: I32, used: int, most: int, longest: int) -> tuple[int, int]:
    """(used, place after it) of an array of strings, of 1 to ``longest`` bytes each; the place is -1 for anything else."""
    if byte_at(base, at) != 91:
        return used, _NO
    at = _skip(base, at + 1)
    if byte_at(base, at) == 93:
        return used, at + 1
    last = min(used + most, len(begin))
    while used < last and byte_at(base, at) == 34:
        end = _text(base, at + 1)
        if not 1 <= end - at - 1 <= longest:
            return used, _NO
        begin[used], size[used] = at + 1, end - at - 1
        used += 1
        at = _skip(base, end + 1)
        byte = byte_at(base, at)
        if byte == 93:
            return used, at + 1
        if byte != 44:
            return used, _NO
        at = _skip(base, at + 1)
    return used, _NO


@njit(cache=True, nogil=True)
def _twice(base: int, begin: I64, size: I32, first: int, last: int) -> bool:
    """Whether the key before ``last`` stands there before."""
    for i in range(first, last - 2, 2):
        if size[i] == size[last - 2]:
            k = 0
            while k < size[i] and byte_at(base, begin[i] + k) == byte_at(base, begin[last - 2] + k):
                k += 1
            if k == size[i]:
                return True
    return False


@njit(cache=True, nogil=True)
def _pairs(base: int, at: int, begin: I64, size: I32, used: int, most: int) -> tuple[int, int]:
    """(used, place after it) of an object of strings, keys and values in turn; the place is -1 for anything else."""
    if byte_at(base, at) != 123:
        return used, _NO
    at = _skip(base, at + 1)
    if byte_at(base, at) == 125:
        return used, at + 1
    first, last = used, min(used + 2 * most, len(begin) - 1)
    while used < last and byte_at(base, at) == 34:
        for part in range(2):
            end = _text(base, at + 1)
            if byte_at(base, at) != 34 or end < 0 or end - at - 1 > (2048 if part else 128):
                return used, _NO
            begin[used], size[used] = at + 1, end - at - 1
            used += 1
            at = _skip(base, end + 1)
            if part == 0:
                if byte_at(base, at) != 58:
                    return used, _NO
                at = _skip(base, at + 1)
        if _twice(base, begin, size, first, used):
            return used, _NO
        byte = byte_at(base, at)
        if byte == 125:
            return used, at + 1
        if byte != 44:
            return used, _NO
        at = _skip(base, at + 1)
    return used, _NO


@njit(cache=True, nogil=True)
def _pair(base: int, at: int) -> int:
    """Two digits as a number, -1 for anything else."""
    tens, ones = byte_at(base, at) - 48, byte_at(base, at + 1) - 48
    return tens * 10 + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else _NO


@njit(cache=True, nogil=True)
def _moment(base: int, at: int) -> tuple[int, int]:
    """(microseconds since 1970, place after it) of an RFC 3339 time with its closing quote; the place is -1 for others."""
    century, year = _pair(base, at), _pair(base, at + 2)
    month, day = _pair(base, at + 5), _pair(base, at + 8)
    hour, minute, second = _pair(base, at + 11), _pair(base, at + 14), _pair(base, at + 17)
    if (min(century, year, hour, minute, second) < 0 or month < 1 or month > 12 or day < 1 or hour > 23 or minute > 59
            or second > 59 or byte_at(base, at + 4) != 45 or byte_at(base, at + 7) != 45 or byte_at(base, at + 10) != 84
            or byte_at(base, at + 13) != 58 or byte_at(base, at + 16) != 58):
        return 0, _NO
    year += 100 * century
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if year < 1970 or day > (28 + leap if month == 2 else 30 + (month + month // 8) % 2):
        return 0, _NO
    at += 19
    micros = 0
    if byte_at(base, at) == 46:
        more, end = _digits(base, at + 1)
        if end < 0 or end - at > 7:
            return 0, _NO
        for _ in range(7 - (end - at)):
            more *= 10
        micros, at = more, end
    offset = 0
    sign = byte_at(base, at)
    if sign == 90:
        at += 1
    elif sign == 43 or sign == 45:
        hours, minutes = _pair(base, at + 1), _pair(base, at + 4)
        if hours < 0 or hours > 23 or minutes < 0 or minutes > 59 or byte_at(base, at + 3) != 58:
            return 0, _NO
        offset = (hours * 60 + minutes) * (1 if sign == 43 else -1)
        at += 6
    else:
        return 0, _NO
    if byte_at(base, at) != 34:
        return 0, _NO
    # Days since 1970 in the proleptic Gregorian calendar, years begun in March (Hinnant, "chrono-compatible low-level dates").
    shifted = year - (month <= 2)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = shifted * 365 + shifted // 4 - shifted // 100 + shifted // 400 + of_year - 719_468
    return ((days * 24 + hour) * 60 + minute - offset) * 60_000_000 + second * 1_000_000 + micros, at + 1


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
        return _NO, lists, maps
    seen, kind_of_event, last = 0, -1, _N_FIELDS
    at = _skip(base, at + 1)
    while byte_at(base, at) == 34:
        field = _which(base, at + 1, _KEYS, after[last])
        if field < 0 or seen >> field & 1:
            return _NO, lists, maps
        after[last] = last = field
        seen |= 1 << field
        at = _skip(base, at + 2 + _KEY_SIZES[field])
        if byte_at(base, at) != 58:
            return _NO, lists, maps
        at = _skip(base, at + 1)
        kind, column = _KIND[field], _COLUMN[field]
        if _is_null(base, at):
            if field in (_TYPE_FIELD, _USER_FIELD, _VERSION_FIELD):
                return _NO, lists, maps
            at += 4
        elif kind == TEXT:
            if byte_at(base, at) != 34:
                return _NO, lists, maps
            at += 1
            if field == _TYPE_FIELD:
                kind_of_event = _which(base, at, _TYPES, kind_of_event)
                if kind_of_event < 0:
                    return _NO, lists, maps
                end = at + _TYPE_SIZES[kind_of_event]
            else:
                end = _text(base, at)
            if end < 0 or end - at > _LIMIT[field]:
                return _NO, lists, maps
            begin[column], size[column] = at, end - at
            at = end + 1
        elif kind == INT:
            number[column], at = _integer(base, at)
            valid[column] = True
            if at < 0 or number[column] > _LIMIT[field] or (number[column] == 0 and field == _VERSION_FIELD):
                return _NO, lists, maps
        elif kind == FLOAT:
            real[column], at = _float(base, at)
            valid[column] = True
            if at < 0:
                return _NO, lists, maps
        elif kind == TIME:
            if byte_at(base, at) == 34:
                number[column], at = _moment(base, at + 1)
            else:
                number[column], at = _integer(base, at)
                if number[column] < MICROS_FROM:
                    number[column] *= 1000
            valid[column] = True
            if at < 0 or number[column] < 0 or number[column] > now + MAX_AHEAD_MICROS:
                return _NO, lists, maps
        elif kind == LIST:
            lists, at = _strings(base, at, list_begin, list_size, lists, MAX_CATEGORIES, 256)
            if at < 0:
                return _NO, lists, maps
        elif kind == MAP:
            maps, at = _pairs(base, at, map_begin, map_size, maps, MAX_ATTRIBUTES)
            if at < 0:
                return _NO, lists, maps
        else:
            return _NO, lists, maps
        at = _skip(base, at)
        byte = byte_at(base, at)
        if byte != 44:
            if byte != 125:
                return _NO, lists, maps
            break
        at = _skip(base, at + 1)
        if byte_at(base, at) != 34:
            return _NO, lists, maps
    if byte_at(base, at) != 125 or size[_USER_ID] < 1 or kind_of_event < 0 or size[_ITEM_ID] == 0:
        return _NO, lists, maps
    if size[_ITEM_ID] < 0 and kind_of_event != _SIGNUP:
        return _NO, lists, maps
    if leaves[kind_of_event] or (needs_stamps and (lists == lists_before or not valid[_PRICE])):
        return _NO, lists, maps
    if size[_EVENT_ID] == 0:
        size[_EVENT_ID] = -1
    if not valid[_OCCURRED]:
        if size[_EVENT_ID] > 0:  # a retry must be a copy: the router remembers the time that it gave
            return _NO, lists, maps
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
        kept, at = n, _skip(base, place)
        many, closing = byte_at(base, at) == 91, False
        if many:
            at = _skip(base, at + 1)
        elif byte_at(base, at) == 123:
            key = _skip(base, at + 1)
            if byte_at(base, key) == 34 and _which(base, key + 1, _EVENTS, -1) == 0:
                at = _skip(base, key + 8)
                many = closing = True
                at = _skip(base, at + 1) if byte_at(base, at) == 58 else place
                at = _skip(base, at + 1) if byte_at(base, at) == 91 else place
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
            at = _skip(base, at)
            byte = byte_at(base, at)
            at = _skip(base, at + 1)
            if byte == 93:
                break
            good = byte == 44
        if good and closing:
            good = byte_at(base, at) == 125
            at = _skip(base, at + 1)
        if not good or n - kept > MAX_EVENTS or _skip(base, at) != ends[body]:
            n, lists, maps = kept, list_end[kept], map_end[kept]
        first[body + 1] = n
        place = ends[body] + 1
    return (begin[:n], size[:n], number[:n], valid[:n], list_end[: n + 1], list_begin[:lists], list_size[:lists],
            map_end[: n + 1], map_begin[:maps], map_size[:maps], first)
