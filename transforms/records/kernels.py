"""Compiled loops over the bytes of records: Avro to the places of its values, and values to Arrow's buffers. No GIL.

A string is a place: where it begins in the data and how long it is (-1: null). What is read is always checked against the
end of its record first. The encodings are those of the Avro 1.11 specification ("Binary Encoding"); UTF-8 as in RFC 3629.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from transforms.records.memory import byte_at, copy, int64_at

Bytes = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

STRING, LONG, INT, DOUBLE, STRINGS, STRING_MAP = range(6)
OK, SHORT, VARINT, UNION, UTF8, TRAILING, NEGATIVE, RANGE, LIBRARY = range(9)
"""What became of a record. LIBRARY: it needs the rules of a full Avro library (a map with a key twice, or many)."""

_MANY_KEYS = 64
_HIGH_BITS = np.int64(-0x7F7F7F7F7F7F7F80)  # 0x8080808080808080


@njit(cache=True, nogil=True, inline="always")
def _varint(base: int, at: int, end: int) -> tuple[int, int]:
    """(value, place after it) of a zigzag varint; the place is -1 when it ends early and -2 when it is too long."""
    if at >= end:
        return 0, -1
    byte = byte_at(base, at)
    at += 1
    result = byte & 0x7F
    shift = 7
    while byte >= 0x80:
        if at >= end:
            return 0, -1
        if shift > 63:
            return 0, -2
        byte = byte_at(base, at)
        at += 1
        result |= (byte & 0x7F) << shift
        shift += 7
    return ((result >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(result & 1), at


@njit(cache=True, nogil=True)
def utf8(base: int, at: int, end: int) -> bool:
    """Whether bytes are UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF."""
    while at < end:
        byte = byte_at(base, at)
        if byte < 0x80:
            at += 1
            continue
        if 0xC2 <= byte <= 0xDF:
            more, low, high = 1, 0x80, 0xBF
        elif 0xE0 <= byte <= 0xEF:
            more = 2
            low = 0xA0 if byte == 0xE0 else 0x80
            high = 0x9F if byte == 0xED else 0xBF
        elif 0xF0 <= byte <= 0xF4:
            more = 3
            low = 0x90 if byte == 0xF0 else 0x80
            high = 0x8F if byte == 0xF4 else 0xBF
        else:
            return False
        if at + more >= end or not low <= byte_at(base, at + 1) <= high:
            return False
        for i in range(2, more + 1):
            if byte_at(base, at + i) & 0xC0 != 0x80:
                return False
        at += more + 1
    return True


@njit(cache=True, nogil=True, inline="always")
def _word(base: int, at: int, size: int, limit: int) -> int:
    """Up to seven bytes as a number, in one read where eight lie before ``limit``; loops over so few bytes are slow."""
    if at + 8 <= limit:
        return int64_at(base, at) & ((1 << (8 * size)) - 1)
    word = 0
    for i in range(size):
        word |= byte_at(base, at + i) << (8 * i)
    return word


@njit(cache=True, nogil=True, inline="always")
def _ascii(base: int, at: int, end: int, limit: int) -> bool:
    """Whether no byte is over 127."""
    high = 0
    while at + 8 <= end:
        high |= int64_at(base, at)
        at += 8
    return (high | _word(base, at, end - at, limit)) & _HIGH_BITS == 0


@njit(cache=True, nogil=True, inline="always")
def _string(base: int, at: int, end: int, limit: int) -> tuple[int, int, int]:
    """(begin, length, error) of a string."""
    size, at = _varint(base, at, end)
    if at < 0:
        return 0, 0, SHORT if at == -1 else VARINT
    if size < 0:
        return 0, 0, NEGATIVE
    if size > end - at:
        return 0, 0, SHORT
    if not _ascii(base, at, at + size, limit) and not utf8(base, at, at + size):
        return 0, 0, UTF8
    return at, size, OK


@njit(cache=True, nogil=True, inline="always")
def _same(base: int, one: int, other: int, size: int, limit: int) -> bool:
    """Whether two runs of bytes are equal."""
    i = 0
    while i + 8 <= size:
        if int64_at(base, one + i) != int64_at(base, other + i):
            return False
        i += 8
    return _word(base, one + i, size - i, limit) == _word(base, other + i, size - i, limit)


@njit(cache=True, nogil=True)
def _twice(base: int, begin: I64, size: I32, first: int, last: int, limit: int) -> bool:
    """Whether a key of a map stands there twice."""
    for i in range(first + 2, last, 2):
        for j in range(first, i, 2):
            if size[i] == size[j] and _same(base, begin[i], begin[j], size[i], limit):
                return True
    return False


@njit(cache=True, nogil=True)
def read_avro(data: Bytes, starts: I64, ends: I64, plan: npt.NDArray[np.int8], strings: int, numbers: int,
              list_room: int, map_room: int) -> tuple[
        I64, I32, I64, npt.NDArray[np.bool_], I32, I64, I32, I32, I64, I32, I32, npt.NDArray[np.int8], I32]:
    """Where the values of n Avro records lie.

    Args:
      data, starts, ends: record i is data[starts[i]:ends[i]].
      plan: (fields, 2) kind of each field, and which branch of its union is null (-1: no union); at most one is STRINGS and
        one STRING_MAP.
      strings, numbers: how many fields are strings, and how many numbers.
      list_room, map_room: how many places of list and map strings are kept. Where list_end[-1] or map_end[-1] says that there
        are more, the call is to be repeated with that room: growing them here would cost ten times the whole loop.

    Returns:
      begin, size: (strings, n) places of strings. Of the m records that are right the first m columns are filled, in order.
      value, valid: (numbers, n) numbers (a double as its bits), and whether each is there.
      list_end, list_begin, list_size: (n + 1,) ends of the lists in the places of their strings.
      map_end, map_begin, map_size: the same of maps; keys and values take turns.
      row: (m,) which record each is; error: (n,) OK or why not; field: (n,) in which field, or -1.
    """
    n, fields, base, limit = len(starts), len(plan), np.int64(data.ctypes.data), len(data)
    begin, size = np.empty((strings, n), np.int64), np.empty((strings, n), np.int32)
    value, valid = np.empty((numbers, n), np.int64), np.empty((numbers, n), np.bool_)
    list_end, map_end = np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32)
    list_begin, list_size = np.empty(list_room, np.int64), np.empty(list_room, np.int32)
    map_begin, map_size = np.empty(map_room, np.int64), np.empty(map_room, np.int32)
    row, error, where = np.empty(n, np.int32), np.zeros(n, np.int8), np.full(n, -1, np.int32)
    m = 0
    for i in range(n):
        at, end = starts[i], ends[i]
        s = v = 0
        lists, maps = list_end[m], map_end[m]
        list_end[m + 1], map_end[m + 1] = lists, maps
        code = OK
        for f in range(fields):
            kind, null = plan[f, 0], plan[f, 1]
            absent = False
            if null >= 0:
                branch, at = _varint(base, at, end)
                if at < 0:
                    code = SHORT if at == -1 else VARINT
                elif branch != 0 and branch != 1:
                    code = UNION
                else:
                    absent = branch == null
            if code == OK:
                if kind == STRING:
                    if absent:
                        begin[s, m], size[s, m] = 0, -1
                    else:
                        place, length, code = _string(base, at, end, limit)
                        begin[s, m], size[s, m] = place, length
                        at = place + length
                    s += 1
                elif kind == DOUBLE:
                    valid[v, m] = not absent
                    value[v, m] = 0
                    if not absent:
                        if end - at < 8:
                            code = SHORT
                        else:
                            value[v, m] = int64_at(base, at)
                            at += 8
                    v += 1
                elif kind in (LONG, INT):
                    valid[v, m] = not absent
                    value[v, m] = 0
                    if not absent:
                        number, at = _varint(base, at, end)
                        if at < 0:
                            code = SHORT if at == -1 else VARINT
                        elif kind == INT and (number < -2147483648 or number > 2147483647):
                            code = RANGE
                        value[v, m] = number
                    v += 1
                elif not absent:
                    each = 1 if kind == STRINGS else 2
                    while code == OK:
                        count, at = _varint(base, at, end)
                        if at >= 0 and count < 0:
                            count = -count
                            _, at = _varint(base, at, end)
                        if at < 0:
                            code = SHORT if at == -1 else VARINT
                            break
                        if count == 0:
                            break
                        if count < 0 or count > (end - at) // each:  # every string takes a byte at least
                            code = SHORT
                            break
                        for _ in range(count * each):
                            place, length, code = _string(base, at, end, limit)
                            if code != OK:
                                break
                            at = place + length
                            if kind == STRINGS:
                                if lists < list_room:
                                    list_begin[lists], list_size[lists] = place, length
                                lists += 1
                            else:
                                if maps < map_room:
                                    map_begin[maps], map_size[maps] = place, length
                                maps += 1
            if code != OK:
                where[i] = f
                break
        if code == OK and at != end:
            code = TRAILING
        if code == OK and maps - map_end[m] > 2 and (
                maps - map_end[m] > 2 * _MANY_KEYS
                or (maps <= map_room and _twice(base, map_begin, map_size, map_end[m], maps, limit))):
            code = LIBRARY
        error[i] = code
        if code == OK:
            row[m] = i
            list_end[m + 1], map_end[m + 1] = lists, maps
            m += 1
    return (begin, size, value, valid, list_end[: m + 1], list_begin[: list_end[m]], list_size[: list_end[m]],
            map_end[: m + 1], map_begin[: map_end[m]], map_size[: map_end[m]], row[:m], error, where)


@njit(cache=True, nogil=True)
def gather_strings(data: Bytes, begin: I64, size: I32) -> tuple[I32, Bytes]:
    """Arrow's buffers of n strings: (n + 1,) offsets, and their bytes. Less than 2 GiB of them."""
    n = len(begin)
    offsets = np.empty(n + 1, np.int32)
    offsets[0] = 0
    for i in range(n):
        offsets[i + 1] = offsets[i] + max(np.int32(0), size[i])
    out = np.empty(offsets[n], np.uint8)
    source, target = np.int64(data.ctypes.data), np.int64(out.ctypes.data)
    for i in range(n):
        if size[i] > 0:
            copy(target + offsets[i], source + begin[i], size[i])
    return offsets, out


@njit(cache=True, nogil=True, inline="always")
def _hash(base: int, at: int, size: int, limit: int) -> np.uint64:
    """A quick hash for one table: words multiplied and folded."""
    h = np.uint64(size)
    i = 0
    while i + 8 <= size:
        h = (h ^ np.uint64(int64_at(base, at + i))) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(32)
        i += 8
    h = (h ^ np.uint64(_word(base, at + i, size - i, limit))) * np.uint64(0x9E3779B97F4A7C15)
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def number_strings(data: Bytes, begin: I64, size: I32) -> tuple[I32, I64]:
    """Numbers equal strings alike, in the order in which they appear.

    Returns:
      (n,) number of each string (0 for a null), and the row of each number's first string.
    """
    n = len(begin)
    codes = np.empty(n, np.int32)
    room = 64
    table = np.full(room, -1, np.int32)
    hashes = np.empty(room, np.uint64)
    first = np.empty(room, np.int64)
    count = last = 0
    base, limit = np.int64(data.ctypes.data), len(data)
    for i in range(n):
        length = size[i]
        if length < 0:
            codes[i] = 0
            continue
        if count and size[first[last]] == length and _same(base, begin[first[last]], begin[i], length, limit):
            codes[i] = last
            continue
        h = _hash(base, begin[i], length, limit)
        slot = np.int64(h & np.uint64(room - 1))
        while True:
            code = table[slot]
            if code < 0:
                table[slot] = code = count
                hashes[count], first[count] = h, i
                count += 1
                break
            if hashes[code] == h and size[first[code]] == length and _same(base, begin[first[code]], begin[i], length, limit):
                break
            slot = (slot + 1) & (room - 1)
        codes[i] = code
        last = code
        if 2 * count > room:
            room *= 4
            table = np.full(room, -1, np.int32)
            more_hashes, more_first = np.empty(room, np.uint64), np.empty(room, np.int64)
            more_hashes[:count] = hashes[:count]
            more_first[:count] = first[:count]
            hashes, first = more_hashes, more_first
            for k in range(count):
                slot = np.int64(hashes[k] & np.uint64(room - 1))
                while table[slot] >= 0:
                    slot = (slot + 1) & (room - 1)
                table[slot] = k
    return codes, first[:count]


@njit(cache=True, nogil=True)
def ascending(bounds: I32, limit: int) -> bool:
    """Whether bounds begin at 0 or above, never fall, and end within ``limit``."""
    wrong = bounds[0] < 0 or bounds[-1] > limit
    for i in range(len(bounds) - 1):
        wrong |= bounds[i + 1] < bounds[i]
    return not wrong


@njit(cache=True, nogil=True)
def is_ascii(data: Bytes, begin: int, end: int) -> bool:
    """Whether no byte of data[begin:end] is over 127."""
    high = np.uint8(0)
    for byte in data[begin:end]:
        high |= byte
    return bool(high < 0x80)
