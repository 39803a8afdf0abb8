"""Compiled: what each request body is told once its events are durable. No GIL."""

from __future__ import annotations

import numpy as np
from numba import njit

from serving.collector.json_places import I32, I64, Bytes
from transforms.records.memory import copy


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
