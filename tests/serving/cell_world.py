"""Cells of a user in every group, with awkward ages, for tests of readers."""

from __future__ import annotations

import json
import struct

import numpy as np

from schemas.cells import LAYOUT, encode_list, encode_vector
from schemas.features import features_of, group
from schemas.keys import STATUS, USER, row_key, status_key, suppressed_group
from schemas.put_cells import PUTS, Put, encode_puts
from schemas.stream_cells import DECAYED, PANE, RING, RINGS, SESSION, encode_suppression
from serving.stores.base import Cell, FeatureWrite

DAY, HOUR, MINUTE, SECOND = 86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000


def packed_ids(ids):
    raw = [i.encode() for i in ids]
    return np.cumsum([len(r) for r in raw], dtype="<u4").tobytes() + b"".join(raw)


def head(kind, name, count):
    return struct.pack("<BBHI", LAYOUT, kind, group(name).id, count)


def ring(name, t, seed=0):
    spec = RINGS[name]
    width = len(features_of(name)) // len(spec.windows)
    counts = np.random.default_rng(seed).integers(0, 5, (spec.size, width)).astype("<i4")
    return head(RING, name, counts.size) + struct.pack("<q", t // spec.step - spec.size + 1) + counts.tobytes()


def session(items, categories, start, end):
    times = np.array([end - i * SECOND for i in range(len(items))], "<i8")
    return (head(SESSION, "user_session", len(items))
            + struct.pack("<9qI", start, end, 4, 900, 2, 5_000_000, 2, 1_000_000, 4_000_000, len(categories))
            + times.tobytes() + np.arange(1, len(items) + 1, dtype="<f4").tobytes() + packed_ids(items)
            + np.arange(len(categories), 0, -1, dtype="<i8").tobytes() + packed_ids(categories))


def decayed(name, last, ids):
    n = len(ids)
    return (head(DECAYED, name, n) + struct.pack("<qI", last, n) + packed_ids(ids) + np.arange(n, dtype="<u2").tobytes()
            + (np.arange(n) % 40).astype(np.uint8).tobytes() + (np.arange(n) * 7 % 9 + 1).astype("<i4").tobytes())


def listed(name, ids, newest):
    times = newest - np.arange(len(ids)) * MINUTE
    return encode_list(group(name).id, ids, times, np.linspace(1, 2, max(1, len(ids))).astype(np.float32)[: len(ids)])


def batch_cells(at, items):
    """Every batch group of a user, computed at a time."""
    stats = np.arange(len(features_of("user_stats")), dtype=np.float32)
    stats[[f.name for f in features_of("user_stats")].index("segment")] = 2
    stats[3] = np.nan
    affinity = encode_list(2, ["Drama", "Komödie"], np.zeros(2, np.int64), np.array([0.75, 0.25], np.float32))
    return {"user_stats": Cell(encode_vector(1, stats), at),
            "user_affinity": Cell(affinity, at),
            "user_last_items": Cell(listed("user_last_items", items, at - HOUR), at),
            "user_liked_items": Cell(listed("user_liked_items", items[:2], at - HOUR), at),
            "user_consumed": Cell(listed("user_consumed", items[1:], at - HOUR), at)}


def stream_cells(at, items):
    """Every stream group of a user whose newest event was at a time, and two suppressions."""
    cells = {"user_panes": ring("user_panes", at), "user_day": ring("user_day", at),
             "user_session": session(items[:3], ["Drama", "Crime"], at - 5 * MINUTE, at),
             "user_preference": decayed("user_preference", at // PANE, ["Crime", "Drama", "Noir"]),
             "user_recent": listed("user_recent", items, at)}
    found = {name: Cell(cell, at // 1000 * 1000) for name, cell in cells.items()}
    for item, age in (("sold", HOUR), ("long ago", 8 * DAY)):
        found[suppressed_group(item)] = Cell(encode_suppression(at - age), (at - age) // 1000 * 1000)
    return found


def puts(at, **values):
    """What was PUT at a time."""
    return {PUTS: Cell(encode_puts({name: Put(value, at) for name, value in values.items()}), at)}


def write(store, user, family, cells):
    store.write_features([FeatureWrite(row_key(USER, user), family, name, cell) for name, cell in cells.items()])


def write_status(store, written_at, job="stream"):
    row = json.dumps({"watermark": written_at, "written_at": written_at, "run": "r1"}).encode()
    store.write_features([FeatureWrite(status_key(job), "stream", STATUS, Cell(row, written_at // 1000 * 1000))])
