"""Compiled: from the places that ``scan`` found to the Arrow streams of packs, whole but for compression. No GIL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from serving.collector.json_places import I32, I64, Bytes
from serving.collector.scan import COLUMN, FLOAT, INT, KIND, LIST, MAP, OURS, SCHEMA, TEXT, TIME
from transforms.records.kernels import number_strings
from transforms.records.memory import copy

Bools = npt.NDArray[np.bool_]
_NARROW = np.array([field.type == pa.int32() for field in SCHEMA])
_UP = 7  # buffers begin at multiples of 8


@njit(cache=True, nogil=True)
def _chunks(order: I64, bounds: I64, size: I32, list_end: I32, list_size: I32, map_end: I32, map_size: I32, most_rows: int,
            most_bytes: int, fixed: int) -> tuple[I64, I64, int]:
    """Where in ``order`` each pack ends, its partition, and how many bytes of text and of numbers all of them have."""
    ends, partitions = np.empty(len(order) + len(bounds), np.int64), np.empty(len(order) + len(bounds), np.int64)
    count, total = 0, np.int64(0)
    for partition in range(len(bounds) - 1):
        rows, held = 0, np.int64(0)
        for k in range(bounds[partition], bounds[partition + 1]):
            row = order[k]
            mine = np.int64(fixed)
            for c in range(size.shape[1]):
                mine += max(0, size[row, c])
            for i in range(list_end[row], list_end[row + 1]):
                mine += 4 + list_size[i]
            for i in range(map_end[row], map_end[row + 1]):
                mine += 4 + map_size[i]
            if rows and (rows == most_rows or held + mine > most_bytes):
                ends[count], partitions[count] = k, partition
                count, rows, held = count + 1, 0, np.int64(0)
            rows, held, total = rows + 1, held + mine, total + mine
        if rows:
            ends[count], partitions[count] = bounds[partition + 1], partition
            count += 1
    return ends[:count], partitions[:count], int(total)


@njit(cache=True, nogil=True)
def _pack(out: Bytes, wide: I64, narrow: I32, at: int, data: Bytes, begin: I64, size: I32, number: I64, valid: Bools,
          list_end: I32, list_begin: I64, list_size: I32, map_end: I32, map_begin: I64, map_size: I32, rows: I64, now: int,
          start: Bytes, spots: I64, end: Bytes) -> int:
    """Writes one stream from ``at`` on, a multiple of 8; where it ends, which is one too."""
    n = len(rows)
    target, source = np.int64(out.ctypes.data), np.int64(data.ctypes.data)
    copy(target + at, np.int64(start.ctypes.data), len(start))
    node, buffer = (at + spots[1]) >> 3, (at + spots[2]) >> 3
    body = place = at + len(start)
    wide[(at + spots[0]) >> 3] = n
    for field in range(len(KIND)):
        kind, column = KIND[field], COLUMN[field]
        nulls = 0
        if kind == TEXT:
            for k in range(n):
                nulls += size[rows[k], column] < 0
        elif kind in (TIME, INT, FLOAT):
            for k in range(n):
                nulls += not valid[rows[k], column]
        wide[node], wide[node + 1] = n, nulls
        node += 2
        wide[buffer], wide[buffer + 1] = place - body, 0
        if nulls:
            for k in range(n):
                if (size[rows[k], column] >= 0) if kind == TEXT else valid[rows[k], column]:
                    out[place + (k >> 3)] |= 1 << (k & 7)
            wide[buffer + 1] = (n + 7) >> 3
            place += (wide[buffer + 1] + _UP) & ~_UP
        buffer += 2
        if kind == TEXT:
            bytes_at = place + ((4 * (n + 1) + _UP) & ~_UP)
            last = bytes_at
            for k in range(n):
                length = size[rows[k], column]
                if length > 0:
                    copy(target + last, source + begin[rows[k], column], length)
                    last += length
                narrow[(place >> 2) + k + 1] = last - bytes_at
            wide[buffer], wide[buffer + 1] = place - body, 4 * (n + 1)
            wide[buffer + 2], wide[buffer + 3] = bytes_at - body, last - bytes_at
            buffer, place = buffer + 4, (last + _UP) & ~_UP
        elif kind in (LIST, MAP):
            ends = list_end if kind == LIST else map_end
            begins, sizes = (list_begin, list_size) if kind == LIST else (map_begin, map_size)
            parts = 1 if kind == LIST else 2
            total = 0
            for k in range(n):
                total += (ends[rows[k] + 1] - ends[rows[k]]) // parts
                narrow[(place >> 2) + k + 1] = total
            wide[buffer], wide[buffer + 1] = place - body, 4 * (n + 1)
            buffer, place = buffer + 2, place + ((4 * (n + 1) + _UP) & ~_UP)
            if kind == MAP:  # the pairs
                wide[node], wide[node + 1] = total, 0
                wide[buffer], wide[buffer + 1] = place - body, 0
                node, buffer = node + 2, buffer + 2
            for part in range(parts):
                bytes_at = place + ((4 * (total + 1) + _UP) & ~_UP)
                last, seen = bytes_at, 0
                for k in range(n):
                    for i in range(ends[rows[k]] + part, ends[rows[k] + 1], parts):
                        if sizes[i] > 0:
                            copy(target + last, source + begins[i], sizes[i])
                            last += sizes[i]
                        seen += 1
                        narrow[(place >> 2) + seen] = last - bytes_at
                wide[node], wide[node + 1] = total, 0
                wide[buffer], wide[buffer + 1] = place - body, 0
                wide[buffer + 2], wide[buffer + 3] = place - body, 4 * (total + 1)
                wide[buffer + 4], wide[buffer + 5] = bytes_at - body, last - bytes_at
                node, buffer, place = node + 2, buffer + 6, (last + _UP) & ~_UP
        else:
            each = 4 if _NARROW[field] else 8
            for k in range(n):
                if kind == OURS:
                    wide[(place >> 3) + k] = now
                elif each == 4:
                    narrow[(place >> 2) + k] = number[rows[k], column]
                else:
                    wide[(place >> 3) + k] = number[rows[k], column]
            wide[buffer], wide[buffer + 1] = place - body, each * n
            buffer, place = buffer + 2, (place + each * n + _UP) & ~_UP
    wide[(at + spots[3]) >> 3] = place - body
    copy(target + place, np.int64(end.ctypes.data), len(end))
    return place + len(end)


@njit(cache=True, nogil=True)
def packs(data: Bytes, begin: I64, size: I32, number: I64, valid: Bools, list_end: I32, list_begin: I64, list_size: I32,
          map_end: I32, map_begin: I64, map_size: I32, order: I64, bounds: I64, now: int, most_rows: int, most_bytes: int,
          start: Bytes, spots: I64, buffer_count: int, end: Bytes) -> tuple[Bytes, I64, I64]:
    """The streams of n events by partition.

    Args:
      data ... map_size: as serving.collector.scan.scan has them.
      order: (n,) events, those of a partition side by side.
      bounds: (partitions + 1,) partition p has order[bounds[p]:bounds[p + 1]].
      now: microseconds; becomes ingested_at.
      most_rows, most_bytes: of a pack, but for a single event that is larger.
      start ... end: as transforms.records.pack_layout.layout has them.

    Returns:
      out, ends, partitions: stream i is of partitions[i] and ends at ends[i] in ``out``; each begins where the one before ends.
    """
    fields = len(KIND)
    cut, partitions, total = _chunks(order, bounds, size, list_end, list_size, map_end, map_size, most_rows, most_bytes,
                                     9 * fields)
    each = len(start) + len(end) + 16 * buffer_count + 8 * fields
    out = np.zeros((total + len(cut) * each + _UP) & ~_UP, np.uint8)
    wide, narrow = out.view(np.int64), out.view(np.int32)
    ends = np.empty(len(cut), np.int64)
    at = first = np.int64(0)
    for i in range(len(cut)):
        at = _pack(out, wide, narrow, at, data, begin, size, number, valid, list_end, list_begin, list_size, map_end, map_begin,
                   map_size, order[first : cut[i]], now, start, spots, end)
        ends[i], first = at, cut[i]
    return out, ends, partitions


@njit(cache=True, nogil=True)
def kinds_of(data: Bytes, begin: I64, size: I32, first: int, second: int) -> tuple[I64, I64]:
    """Numbers equal pairs of two text columns alike, null as ""; the first column has few values.

    Returns:
      (n,) number of each event's pair, and an event of each number.
    """
    n = len(begin)
    firsts, tall = number_strings(data, begin[:, first].copy(), np.maximum(size[:, first], 0))
    seconds, wide = number_strings(data, begin[:, second].copy(), np.maximum(size[:, second], 0))
    pairs, event = np.full(len(tall) * len(wide), -1, np.int64), np.empty(n, np.int64)
    found, count = np.empty(n, np.int64), 0
    for k in range(n):
        pair = np.int64(firsts[k]) * len(wide) + seconds[k]
        if pairs[pair] < 0:
            pairs[pair], event[count] = count, k
            count += 1
        found[k] = pairs[pair]
    return found, event[:count]
