"""The JSON of a packed page in one compiled pass: what an item's metadata is stands ready in the bundle, the rest in LITERALS.

Byte for byte what serving.api.pages.Pieces writes; where an id, a title or a score needs more care than a copy, it says so and
Pieces does it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import msgspec
import numba
import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from schemas.cells import REASONS, SOURCES
from serving.ranking.kernels import F32, I32, I64, LINE, ask_for
from serving.ranking.listed import BECAUSE, BECAUSE_END, ID_END, POSITION, REASON, SOURCE
from serving.ranking.model import Packed
from serving.responses import reason_sentence
from transforms.records.memory import copy, prefetch

U8 = npt.NDArray[np.uint8]
_DIGITS = 7
_LONGEST_NUMBER = 32
_HEAD, _RANK, _SCORE, _SOURCES = range(4)
_ALONE = _SOURCES + len(SOURCES)
_BEFORE, _BEHIND, _ID = (_ALONE + times * len(REASONS) for times in (1, 2, 3))
_TITLE, _END = _ID + 1, _ID + 2
"""Places of literals: parts of an item; one a source; one a reason each: an explanation without an item, then what stands
before an item's title and behind it; what metadata begin with."""


@dataclass(frozen=True, eq=False)
class Literals:
    """Pieces of JSON one behind the other: ``text`` and, (k + 1,), where each begins; ``named``: by reason, whether its
    sentence has a title."""

    text: U8
    starts: I64
    named: npt.NDArray[np.bool_]


@functools.cache
def literals() -> Literals:
    """The pieces, in the order of the names above."""
    parts = [b'{"item_id":"', b'","rank":', b',"score":',
             *(b',"rec_source":"%b","explanation":{"type":"' % source.encode() for source in SOURCES)]
    alone, before, behind, named = list[bytes](), list[bytes](), list[bytes](), list[bool]()
    for kind in REASONS:
        head = b'%b","reason":"' % kind.encode()
        alone.append(head + _quoted(reason_sentence(kind, None)) + b'","source_item_id":null},"metadata":')
        first, title, last = reason_sentence(kind, "\0").partition("\0")
        before.append(head + _quoted(first))
        behind.append(_quoted(last) + b'","source_item_id":"')
        named.append(bool(title))
    parts += [*alone, *before, *behind, b'"},"metadata":', b'{"title":', b"},"]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Literals(np.frombuffer(b"".join(parts), np.uint8), starts, np.array(named, np.bool_))


def _quoted(text: str) -> bytes:
    return msgspec.json.encode(text)[1:-1]


def items_json(packed: Packed, scores: F32, rank: int, bundle: Bundle) -> bytes | None:
    """The items of a page, ``rank`` of the first one first; None where that takes more than copies."""
    ready = literals()
    found = _write(packed.numbers, packed.text, packed.split, scores, rank, bundle.metadata_bytes, bundle.metadata_offsets,
                   ready.text, ready.starts, ready.named)
    return found.tobytes() if len(found) else None


@numba.njit(cache=True, nogil=True)
def _write(numbers: I32, text: U8, split: int, scores: F32, rank: int, metadata: U8, offsets: I64, ready: U8, starts: I64,
           named: npt.NDArray[np.bool_]) -> U8:
    """``items_json``; nothing where it cannot be."""
    k, size = len(scores), 0
    titles, nothing = np.zeros((k, 2), np.int64), np.empty(0, np.uint8)
    if not _is_plain(text):
        return nothing
    ask_for(numbers[POSITION], offsets)
    ask_for(numbers[BECAUSE], offsets)
    at_metadata = np.int64(metadata.ctypes.data)
    for i in range(k):
        own, why = numbers[POSITION, i], numbers[BECAUSE, i]
        for at in range(offsets[own] if own >= 0 else 0, offsets[own + 1] if own >= 0 else 0, LINE):
            prefetch(at_metadata, at)
        if why >= 0:
            prefetch(at_metadata, offsets[why])
            prefetch(at_metadata, offsets[why] + LINE)
    for i in range(k):
        own, why, reason = numbers[POSITION, i], numbers[BECAUSE, i], numbers[REASON, i]
        if own < 0 or why == -1:
            return nothing
        if why >= 0 and named[reason]:
            titles[i, 0], titles[i, 1] = _title_in(metadata, offsets[why], offsets[why + 1], ready, starts)
            if titles[i, 0] < -1:
                return nothing
        source = _SOURCES + numbers[SOURCE, i]
        size += offsets[own + 1] - offsets[own] + titles[i, 1] - titles[i, 0] + 2 * _LONGEST_NUMBER
        size += starts[source + 1] - starts[source] + starts[_SOURCES] + starts[_END + 1] - starts[_END]
        for literal in (_ALONE + reason, _BEFORE + reason, _BEHIND + reason, _ID):
            size += starts[literal + 1] - starts[literal]
    if k:
        size += numbers[ID_END, k - 1] + 2 * numbers[BECAUSE_END, k - 1]
    out = np.empty(size, np.uint8)
    to, ids, data, pieces = (np.int64(out.ctypes.data), np.int64(text.ctypes.data), np.int64(metadata.ctypes.data),
                             np.int64(ready.ctypes.data))
    at = id_at = 0
    why_at = split
    for i in range(k):
        own, reason = numbers[POSITION, i], numbers[REASON, i]
        id_size, why_size = numbers[ID_END, i] - id_at, numbers[BECAUSE_END, i] + split - why_at
        at = _literal(to, at, pieces, starts, _HEAD)
        copy(to + at, ids + id_at, id_size)
        at = _literal(to, at + id_size, pieces, starts, _RANK)
        at = _literal(to, write_whole(rank + i, out, at), pieces, starts, _SCORE)
        at = write_score(scores[i], out, at)
        if at < 0:
            return nothing
        at = _literal(to, at, pieces, starts, _SOURCES + numbers[SOURCE, i])
        if why_size:
            at = _literal(to, at, pieces, starts, _BEFORE + reason)
            if named[reason] and titles[i, 0] >= 0:
                copy(to + at, data + titles[i, 0], titles[i, 1] - titles[i, 0])
                at += titles[i, 1] - titles[i, 0]
            elif named[reason]:
                copy(to + at, ids + why_at, why_size)
                at += why_size
            at = _literal(to, at, pieces, starts, _BEHIND + reason)
            copy(to + at, ids + why_at, why_size)
            at = _literal(to, at + why_size, pieces, starts, _ID)
        else:
            at = _literal(to, at, pieces, starts, _ALONE + reason)
        copy(to + at, data + offsets[own], offsets[own + 1] - offsets[own])
        at = _literal(to, at + offsets[own + 1] - offsets[own], pieces, starts, _END)
        id_at, why_at = id_at + id_size, why_at + why_size
    return out[: max(0, at - 1)]


@numba.njit(cache=True, nogil=True)
def _literal(to: int, at: int, pieces: int, starts: I64, which: int) -> int:
    """Copies a literal; the place behind it."""
    copy(to + at, pieces + starts[which], starts[which + 1] - starts[which])
    return at + starts[which + 1] - starts[which]


@numba.njit(cache=True, nogil=True)
def _is_plain(text: U8) -> bool:
    """Whether ids may stand in JSON as they are."""
    plain = True
    for c in text:
        plain = plain and 0x20 <= c < 0x7F and c != 0x22 and c != 0x5C
    return plain


@numba.njit(cache=True, nogil=True)
def _title_in(metadata: U8, start: int, end: int, ready: U8, starts: I64) -> tuple[int, int]:
    """Where the title's JSON begins and ends, without its quotes; (-1, -1) where there is none or it is empty, (-2, -2) where
    the metadata begin with something else."""
    at, first = start, starts[_TITLE]
    for i in range(first, starts[_TITLE + 1]):
        if at >= end or metadata[at] != ready[i]:
            return -2, -2
        at += 1
    if at >= end or metadata[at] != 0x22:  # null
        return -1, -1
    at += 1
    begin = at
    while at < end and metadata[at] != 0x22:
        at += 2 if metadata[at] == 0x5C else 1
    if at >= end:
        return -2, -2
    return (begin, at) if at > begin else (-1, -1)


@numba.njit(cache=True, nogil=True)
def write_whole(value: int, out: U8, at: int) -> int:
    """A whole number >= 0; the place behind it."""
    digits, left = 1, value
    while left >= 10:
        left //= 10
        digits += 1
    for i in range(at + digits - 1, at - 1, -1):
        out[i] = 48 + value % 10
        value //= 10
    return at + digits


@numba.njit(cache=True, nogil=True)
def write_score(value: np.float32, out: U8, at: int) -> int:
    """A float32 as C's %.7g, where that has no exponent: 0, or from 1e-4 to below 1e7; else -1. The place behind it.

    value = m / 2^s with whole m < 2^24 and s <= 37, so its first 7 digits are a whole number of 64 bits divided by a power of
    two: exact, halves to even.
    """
    size = abs(value)
    if not size < np.float32(1e7) or (size < np.float32(1e-4) and size != 0):
        return -1
    if value < 0 or (value == 0 and math.copysign(1.0, value) < 0):
        out[at] = 45
        at += 1
    if size == 0:
        out[at] = 48
        return at + 1
    mantissa, exponent = math.frexp(np.float64(size))
    whole, shift = int(mantissa * 16777216.0), 24 - exponent
    decade, power = 0, 1.0  # 10^decade <= size
    while size >= power * 10:
        power *= 10
        decade += 1
    while decade <= 0 and not _at_least(whole, shift, -decade):
        decade -= 1
    scaled = whole
    for _ in range(_DIGITS - 1 - decade):
        scaled *= 10
    digits = scaled >> shift
    rest, half = scaled - (digits << shift), (1 << shift) >> 1
    if shift and (rest > half or (rest == half and digits & 1)):
        digits += 1
    if digits == 10_000_000:
        digits, decade = 1_000_000, decade + 1
    behind = _DIGITS - 1 - decade
    while behind > 0 and digits % 10 == 0:
        digits //= 10
        behind -= 1
    if behind <= 0:
        for _ in range(-behind):
            digits *= 10
        return write_whole(digits, out, at)
    scale = 1
    for _ in range(behind):
        scale *= 10
    at = write_whole(digits // scale, out, at)
    out[at] = 46
    left = digits % scale
    for i in range(at + behind, at, -1):
        out[i] = 48 + left % 10
        left //= 10
    return at + behind + 1


@numba.njit(cache=True, nogil=True)
def _at_least(whole: int, shift: int, decades: int) -> bool:
    """Whether whole / 2^shift >= 10^-decades."""
    for _ in range(decades):
        whole *= 10
    return whole >> shift >= 1
