"""Cells of the stream family: packed accumulators, read as of any t at or after the entity's newest event.

The header is that of schemas.cells. Kinds: a ``ring`` is the int64 number of its first pane and then size x width int32
counts, pane by pane; a ``session`` is the last session; a ``decayed`` list holds weights per id and pane; a
``suppression`` is the int64 time (microseconds) of the event that consumed the item. A ``list`` is that of schemas.cells.

Windows, so that every mode agrees: ``n`` panes at t are the pane that holds t and the n - 1 before it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.cells import HEADER_BYTES, LAYOUT, CellError, _header, decode_list, unpack_ids
from schemas.features import features_of
from schemas.features import group as group_of
from schemas.workspace import DAY_MICROS

RING, SESSION, DECAYED, SUPPRESSION = 3, 4, 5, 6

SECOND = 1_000_000
PANE, MINUTE = 300 * SECOND, 60 * SECOND
SESSION_GAP = 30 * 60 * SECOND
"""A session ends when its user does nothing for this long: an event this much later, or more, begins another."""
RECENT_WINDOW = DAY_MICROS
"""How long an item stays in the list of recent ones."""
DECAY_PANES, HALF_LIFE_PANES = 48, 12
DECAY_ONE = 1 << 24
DECAY: npt.NDArray[np.int64] = np.rint(DECAY_ONE * 2.0 ** (-np.arange(DECAY_PANES) / HALF_LIFE_PANES)).astype(np.int64)
"""Weight of a pane i panes before the one that holds t, in 2^-24: integers, so that a sum has one value in any order."""

_DECAY: list[int] = DECAY.tolist()
_FEW_ENTRIES = 48
"""So many are added up one by one in less time than an array operation begins in."""
_FIRST = struct.Struct("<q")
_SESSION = struct.Struct("<9qI")
_DECAYED = struct.Struct("<qI")
SESSION_FIELDS = ("start", "end", "events", "dwell_sum", "dwell_n", "price_sum", "price_n", "price_min", "price_max")
MICRO = 1_000_000
"""Prices are held in millionths."""

Ints = npt.NDArray[np.int64]
Listed = tuple[list[str], Ints, npt.NDArray[np.float32]]
"""ids, times (0 where an id has none) and scores."""


@dataclass(frozen=True)
class Ring:
    """A group of counts: ``size`` panes of ``step`` microseconds are kept; each count has one feature per window (panes)."""

    step: int
    size: int
    windows: tuple[int, ...]


RINGS: dict[str, Ring] = {
    "user_panes": Ring(PANE, 12, (1, 12)),
    "user_day": Ring(DAY_MICROS, 1, (1,)),
    "item_minutes": Ring(MINUTE, 60, (1, 10, 60)),
}


def window_sums(first: Ints, counts: npt.NDArray[np.integer], pane: int, windows: Sequence[int]) -> Ints:
    """Sums of rings over windows that end with a pane.

    Args:
      first: (n,) number of each ring's first pane.
      counts: (n, size, width).
      pane: the pane that holds t.

    Returns:
      (n, width, windows) int64.
    """
    age = (pane - first)[:, None] - np.arange(counts.shape[1])
    sums = [np.einsum("ns,nsk->nk", ((age >= 0) & (age < w)).astype(np.int64), counts, dtype=np.int64) for w in windows]
    return np.stack(sums, axis=2)


def decode_rings(group: str, cells: Sequence[bytes]) -> tuple[Ints, npt.NDArray[np.int32]]:
    """First panes (n,) and counts (n, size, width) of ring cells of a group; raises CellError.

    A cell written before a count was appended to the group is narrower: its missing counts read 0.
    """
    size = RINGS[group].size
    longest = max(map(len, cells), default=HEADER_BYTES + _FIRST.size + 4 * size)
    if any(len(cell) != longest for cell in cells):
        widths = sorted({len(cell) for cell in cells})
        counts = np.zeros((len(cells), size, (longest - HEADER_BYTES - _FIRST.size) // (4 * size)), np.int32)
        first = np.zeros(len(cells), np.int64)
        for width in widths:
            rows = [i for i, cell in enumerate(cells) if len(cell) == width]
            first[rows], narrow = decode_rings(group, [cells[i] for i in rows])
            counts[rows, :, : narrow.shape[2]] = narrow
        return first, counts
    body = longest - HEADER_BYTES - _FIRST.size
    if body < 0 or body % (4 * size):
        raise CellError(f"a ring of {size} panes cannot have {longest} bytes")
    raw = np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), longest)
    head = np.ascontiguousarray(raw[:, :HEADER_BYTES])
    if len(cells) and not ((head[:, :2] == (LAYOUT, RING)).all() and (head.view("<u4")[:, 1] == body // 4).all()
                           and (head.view("<u2")[:, 1] == group_of(group).id).all()):
        raise CellError(f"a cell is not a ring of group {group} in layout {LAYOUT}")
    first = np.ascontiguousarray(raw[:, HEADER_BYTES : HEADER_BYTES + 8]).view("<i8")[:, 0]
    counts = np.ascontiguousarray(raw[:, HEADER_BYTES + 8 :]).view("<i4").reshape(len(cells), size, body // (4 * size))
    return first, counts


def extract_rings(group: str, cells: Sequence[bytes], t: int) -> Ints:
    """Feature values as of t (microseconds) of n ring cells, (n, features of the group in order); raises CellError."""
    ring = RINGS[group]
    first, counts = decode_rings(group, cells)
    return window_sums(first, counts, t // ring.step, ring.windows).reshape(len(cells), counts.shape[2] * len(ring.windows))


def ring_values(group: str, cell: bytes, t: int) -> list[int]:
    """extract_rings of one cell, in a tenth of the time; raises CellError."""
    ring = RINGS[group]
    _, count = _header(cell, RING)
    if len(cell) != HEADER_BYTES + _FIRST.size + 4 * count or count % ring.size:
        raise CellError(f"a ring of {ring.size} panes cannot have {len(cell)} bytes")
    width = count // ring.size
    counts = np.frombuffer(cell, "<i4", count, HEADER_BYTES + _FIRST.size)
    after = t // ring.step - int(_FIRST.unpack_from(cell, HEADER_BYTES)[0]) + 1  # behind the pane that holds t
    sums = []
    for window in ring.windows:
        low, high = max(0, after - window), min(ring.size, after)
        if high <= low:
            sums.append([0] * width)
        elif high - low == 1:
            sums.append(counts[low * width : high * width].tolist())
        else:
            sums.append(counts[low * width : high * width].reshape(high - low, width).sum(0, dtype=np.int64).tolist())
    return [value for values in zip(*sums, strict=True) for value in values]


@dataclass(frozen=True)
class Session:
    """The last session of a user. Times are microseconds, prices millionths, dwell milliseconds.

    Attributes:
      start, end: its first and last event; events: how many.
      dwell_sum, dwell_n, price_sum, price_n, price_min, price_max: over its events that have one (prices: of weight > 0).
      items: newest first, with the time and the weight of their last event of weight > 0.
      categories, weights: heaviest first.
    """

    start: int
    end: int
    events: int
    dwell_sum: int
    dwell_n: int
    price_sum: int
    price_n: int
    price_min: int
    price_max: int
    items: Listed
    categories: list[str]
    weights: Ints

    def is_open(self, t: int) -> bool:
        """Whether it goes on at t."""
        return self.start <= t < self.end + SESSION_GAP


def decode_session(cell: bytes) -> Session:
    """A session cell; raises CellError."""
    _, count = _header(cell, SESSION)
    at = HEADER_BYTES + _SESSION.size
    if len(cell) < at + 12 * count:
        raise CellError(f"a session with {count} items has at least {at + 12 * count} bytes, this cell {len(cell)}")
    *numbers, categories = _SESSION.unpack_from(cell, HEADER_BYTES)
    times = np.frombuffer(cell, "<i8", count, at)
    scores = np.frombuffer(cell, "<f4", count, at + 8 * count)
    items, at = unpack_ids(cell, at + 12 * count, count)
    if len(cell) < at + 8 * categories:
        raise CellError(f"the cell ends before the weights of {categories} categories")
    weights = np.frombuffer(cell, "<i8", categories, at)
    names, end = unpack_ids(cell, at + 8 * categories, categories)
    if end != len(cell):
        raise CellError(f"{len(cell) - end} bytes after the end of a session")
    return Session(**dict(zip(SESSION_FIELDS, numbers, strict=True)), items=(items, times, scores), categories=names,
                   weights=weights)


def session_numbers(session: Session) -> dict[str, float]:
    """Numbers of an open session by feature name, NaN for none."""
    priced = session.price_n > 0
    return {
        "session_length_s": (session.end - session.start) / SECOND,
        "session_events": float(session.events),
        "session_dwell_ms": float(session.dwell_sum),
        "session_price_min": session.price_min / MICRO if priced else float("nan"),
        "session_price_max": session.price_max / MICRO if priced else float("nan"),
        "session_price_mean": session.price_sum / session.price_n / MICRO if priced else float("nan"),
    }


def _session_features(cell: bytes, t: int) -> dict[str, float | Listed]:
    session = decode_session(cell)
    if not session.is_open(t):
        return {}
    return {
        **session_numbers(session),
        "session_items": session.items,
        "session_categories": (session.categories, np.zeros(len(session.weights), np.int64),
                               (session.weights / max(1, int(session.weights.sum()))).astype(np.float32)),
    }


@dataclass(frozen=True)
class Decayed:
    """Weights of n ids in m (id, pane) entries: entry e gives ``ids[index[e]]`` ``weight[e]`` in pane ``last - age[e]``."""

    last: int
    ids: list[str]
    index: npt.NDArray[np.uint16]
    age: npt.NDArray[np.uint8]
    weight: npt.NDArray[np.int32]


def decode_decayed(cell: bytes) -> Decayed:
    """A decayed cell; raises CellError."""
    _, count = _header(cell, DECAYED)
    if len(cell) < HEADER_BYTES + _DECAYED.size:
        raise CellError("the cell ends before its last pane")
    last, entries = _DECAYED.unpack_from(cell, HEADER_BYTES)
    ids, at = unpack_ids(cell, HEADER_BYTES + _DECAYED.size, count)
    if len(cell) != at + 7 * entries:
        raise CellError(f"{entries} entries end at byte {at + 7 * entries}, this cell has {len(cell)}")
    found = Decayed(last, ids, np.frombuffer(cell, "<u2", entries, at),
                    np.frombuffer(cell, np.uint8, entries, at + 2 * entries),
                    np.frombuffer(cell, "<i4", entries, at + 3 * entries))
    if abs(last) > 1 << 53:
        raise CellError(f"{last} is no pane")
    if entries and (int(found.index.max()) >= count or int(found.age.max()) >= DECAY_PANES):
        raise CellError("an entry of a decayed cell names no id or no pane of its window")
    return found


def decayed_scores(cell: bytes, t: int) -> tuple[list[str], Ints]:
    """Ids with a score above 0 at t, best first by (score, id), and their scores in 1 / DECAY_ONE; raises CellError."""
    found = decode_decayed(cell)
    later = t // PANE - found.last
    scores = np.zeros(len(found.ids), np.int64)
    if len(found.age) <= _FEW_ENTRIES:
        for at, age, weight in zip(found.index.tolist(), found.age.tolist(), found.weight.tolist(), strict=True):
            if 0 <= age + later < DECAY_PANES:
                scores[at] += _DECAY[age + later] * weight
    else:
        ages = found.age.astype(np.int64) + later
        inside = (ages >= 0) & (ages < DECAY_PANES)
        np.add.at(scores, found.index[inside], DECAY[ages[inside]] * found.weight[inside])
    ranked = sorted((i for i in range(len(scores)) if scores[i] > 0), key=lambda i: (-scores[i], found.ids[i].encode()))
    return [found.ids[i] for i in ranked], scores[ranked]


def encode_suppression(occurred_at: int) -> bytes:
    """The cell ``s:<item_id>``: the item was consumed at that time (microseconds)."""
    return struct.pack("<BBHI", LAYOUT, SUPPRESSION, 0, 1) + _FIRST.pack(occurred_at)


def decode_suppression(cell: bytes) -> int:
    """When the item was consumed, microseconds; raises CellError."""
    _header(cell, SUPPRESSION)
    if len(cell) != HEADER_BYTES + _FIRST.size:
        raise CellError(f"a suppression has {HEADER_BYTES + _FIRST.size} bytes, this cell {len(cell)}")
    return int(_FIRST.unpack_from(cell, HEADER_BYTES)[0])


def extract(group: str, cell: bytes, t: int) -> dict[str, float | Listed]:
    """Features of a stream group by name from its cell as of t (microseconds); raises CellError.

    A feature that is left out, or NaN, has its default. An unknown group raises KeyError.
    """
    if group_of(group).source != "stream":
        raise KeyError(f"no stream group {group!r}")
    if len(cell) >= HEADER_BYTES and int.from_bytes(cell[2:4], "little") != group_of(group).id:
        raise CellError(f"a cell of another group than {group}")
    if group in RINGS:
        return {f.name: float(v) for f, v in zip(features_of(group), ring_values(group, cell, t), strict=False)}
    if group == "user_session":
        return _session_features(cell, t)
    if group == "user_recent":
        ids, times, scores = decode_list(cell)
        inside = np.flatnonzero((times <= t) & (times > t - RECENT_WINDOW))
        return {"recent_items": ([ids[i] for i in inside], times[inside], scores[inside])}
    ids, score = decayed_scores(cell, t)
    times = np.zeros(len(ids), np.int64)
    if group == "user_preference":
        return {"category_preference": (ids, times, (score / max(1, int(score.sum()))).astype(np.float32))}
    return {"recent_cooccurring_items": (ids, times, (score / DECAY_ONE).astype(np.float32))}
