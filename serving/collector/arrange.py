"""Compiled loops from the places that ``scan`` found to Arrow's buffers, in the order of partitions, and to answers. No GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from serving.collector.json_places import I32, I64, Bytes
from transforms.records.memory import copy

Bools = npt.NDArray[np.bool_]


@njit(cache=True, nogil=True)
def _fill(source: int, begin: I64, size: I32, offsets: I32, target: int, order: I64) -> int:
    """Copies strings in an order to an address, offsets beside them; where the next one goes."""
    total = 0
    offsets[0] = 0
    for k in range(len(order)):
        length = size[order[k]]
        if length > 0:
            copy(target + total, source + begin[order[k]], length)
            total += length
        offsets[k + 1] = total
    return total


@njit(cache=True, nogil=True)
def _bits(valid: Bools, order: I64, out: Bytes) -> int:
    """Arrow's bitmap of flags in an order; how many are not set."""
    nulls = 0
    for k in range(len(order)):
        if valid[order[k]]:
            out[k >> 3] |= 1 << (k & 7)
        else:
            nulls += 1
    return nulls


@njit(cache=True, nogil=True)
def _strings_of(end: I32, order: I64, each: int) -> tuple[I32, I64]:
    """Ends of the lists in a new order, counted in ``each`` strings, and the places of their strings in that order."""
    ends, places = np.empty(len(order) + 1, np.int32), np.empty(end[-1], np.int64)
    ends[0] = total = 0
    for k in range(len(order)):
        for place in range(end[order[k]], end[order[k] + 1]):
            places[total] = place
            total += 1
        ends[k + 1] = total // each
    return ends, places


@njit(cache=True, nogil=True)
def arrange(data: Bytes, begin: I64, size: I32, number: I64, valid: Bools, list_end: I32, list_begin: I64, list_size: I32,
            map_end: I32, map_begin: I64, map_size: I32, order: I64) -> Any:
    """Buffers of all columns, rows in the given order.

    Args:
      data ... map_size: as serving.collector.scan.scan has them.
      order: (n,) which event each row is.

    Returns:
      offsets: (texts + 3, n' + 1) int32 offsets of the text columns; then of the strings of lists, of map keys, of map values.
      starts, values: the bytes of string column c are values[starts[c]:starts[c + 1]].
      bits, nulls: (texts + numbers, bytes) validity of each column, and how many rows of it are null.
      numbers: (numbers, n) values; floats as their bits.
      lists, maps: (n + 1,) ends of each row's list and map.
    """
    n, texts, columns = len(order), begin.shape[1], number.shape[1]
    lists, list_order = _strings_of(list_end, order, 1)
    maps, map_order = _strings_of(map_end, order, 2)
    longest = max(n, len(list_order), len(map_order) // 2)
    offsets = np.zeros((texts + 3, longest + 1), np.int32)
    starts = np.zeros(texts + 4, np.int64)
    total = 0
    for i in range(len(order)):
        for c in range(texts):
            total += max(0, size[order[i], c])
    values = np.empty(total + list_size.sum() + map_size.sum(), np.uint8)
    source, target = np.int64(data.ctypes.data), np.int64(values.ctypes.data)
    bits, nulls = np.zeros((texts + columns, (n + 7) // 8), np.uint8), np.zeros(texts + columns, np.int64)
    at = 0
    for c in range(texts):
        at += _fill(source, begin[:, c], size[:, c], offsets[c], target + at, order)
        starts[c + 1] = at
        nulls[c] = _bits(size[:, c] >= 0, order, bits[c])
    at += _fill(source, list_begin, list_size, offsets[texts], target + at, list_order)
    starts[texts + 1] = at
    for part in range(2):
        at += _fill(source, map_begin, map_size, offsets[texts + 1 + part], target + at, map_order[part::2])
        starts[texts + 2 + part] = at
    numbers = np.empty((columns, n), np.int64)
    for c in range(columns):
        for k in range(n):
            numbers[c, k] = number[order[k], c]
        nulls[texts + c] = _bits(valid[:, c], order, bits[texts + c])
    return offsets, starts, values, bits, nulls, numbers, lists, maps


@njit(cache=True, nogil=True)
def _put(target: int, at: int, text: Bytes) -> int:
    copy(target + at, np.int64(text.ctypes.data), len(text))
    return at + len(text)


@njit(cache=True, nogil=True)
def answers(data: Bytes, begin: I64, size: I32, first: I64, parts: tuple[Bytes, Bytes, Bytes, Bytes, Bytes]) -> tuple[
        Bytes, I64]:
    """The JSON that says that every event of a body was accepted.

    Args:
      begin, size: (events,) places of the event ids, which are JSON as they are.
      first: (bodies + 1,) each body's events.
      parts: before the count, after it, before an id, after it, and at the end; a comma follows where more follow.

    Returns:
      text, end: (bodies,) where each answer ends in ``text``.
    """
    counted, listed, opening, closing, last = parts
    each, whole = len(opening) + len(closing) + 1, len(counted) + len(listed) + len(last) + 8
    room = size.sum() + len(size) * each + len(first) * whole
    text, end = np.empty(room, np.uint8), np.zeros(len(first) - 1, np.int64)
    source, target = np.int64(data.ctypes.data), np.int64(text.ctypes.data)
    at = 0
    for body in range(len(first) - 1):
        number = first[body + 1] - first[body]
        if number:
            at = _put(target, at, counted)
            tens = 1
            while tens * 10 <= number:
                tens *= 10
            while tens:
                text[at] = 48 + number // tens % 10
                at += 1
                tens //= 10
            at = _put(target, at, listed)
            for i in range(first[body], first[body + 1]):
                if i > first[body]:
                    text[at] = 44
                    at += 1
                at = _put(target, at, opening)
                copy(target + at, source + begin[i], size[i])
                at = _put(target, at + size[i], closing)
            at = _put(target, at, last)
        end[body] = at
    return text, end
