"""Events for benchmarks, made in columns and written through the lake: Zipf users and items, sessions, a funnel."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.io.lake import Lake
from schemas.arrow import TIMESTAMP
from schemas.event_types import CODES, NAMES
from schemas.keys import hash64_column
from schemas.tables import EVENTS
from schemas.workspace import DAY_MICROS

FIRST_DAY = 20_000
CATEGORIES = 40
SESSION = 8
"""Events per session on average; a session is one user's, its events a minute apart."""
_MIX = {"impression": 0.62, "view": 0.2, "click": 0.11, "save": 0.02, "cart": 0.02, "purchase": 0.01, "rating": 0.02}


def zipf_codes(rng: np.random.Generator, n: int, size: int, exponent: float) -> npt.NDArray[np.int64]:
    """n draws below ``size`` with P(k) proportional to (k + 1)^-exponent."""
    weights = np.arange(1, size + 1, dtype=float) ** -exponent
    return np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(n)).clip(0, size - 1)


def day_of_events(day: int, n: int, users: int, items: int, seed: int = 7) -> pa.Table:
    """One day of n events as rows of the lake's ``events`` table, string columns dictionary-encoded."""
    rng = np.random.default_rng((seed, day))
    sessions = max(1, n // SESSION)
    session = np.sort(rng.integers(0, sessions, n))
    user = zipf_codes(rng, sessions, users, 0.6)[session]
    item = zipf_codes(rng, n, items, 0.8)
    start = rng.integers(0, 23 * 3_600, sessions)[session]
    step = np.arange(n) - np.searchsorted(session, session)
    time = day * DAY_MICROS + (start + 60 * step) * 1_000_000 + rng.integers(0, 1_000_000, n)
    kinds = rng.choice(len(_MIX), n, p=list(_MIX.values()))
    kind = np.array([CODES[k] for k in _MIX])[kinds]
    taste = np.random.default_rng(seed).integers(0, CATEGORIES, (items, 2))  # one or two categories per item
    second = taste[:, 0] != taste[:, 1]
    lengths = 1 + second[item].astype(np.int32)
    flat = np.stack((taste[item, 0], taste[item, 1]), 1)[np.stack((np.ones(n, bool), second[item]), 1)]
    names = pa.array([f"category-{c}" for c in range(CATEGORIES)])
    categories = pa.ListArray.from_arrays(pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)),
                                          names.take(pa.array(flat)))
    event_id = pa.array(np.arange(n) + day * 1_000_000_000).cast(pa.string())

    def encoded(codes: npt.NDArray[np.int64], prefix: str) -> pa.DictionaryArray:
        used, position = np.unique(codes, return_inverse=True)
        return pa.DictionaryArray.from_arrays(pa.array(position.astype(np.int32)), pa.array([f"{prefix}{c}" for c in used]))

    def const(value: object, kind: pa.DataType) -> pa.Array:
        return pa.array([value], kind).take(pa.array(np.zeros(n, np.int32)))

    dwell = rng.integers(500, 60_000, n)
    return pa.table({
        "event_id": event_id, "user_id": encoded(user, "user-"), "item_id": encoded(item, "item-"),
        "event_type": pa.DictionaryArray.from_arrays(pa.array(kind.astype(np.int32)), pa.array(NAMES)),
        "occurred_at": pa.array(time).cast(TIMESTAMP), "ingested_at": pa.array(time).cast(TIMESTAMP),
        "dwell_ms": pa.array(dwell, mask=kind == CODES["impression"]),
        "value": pa.array(rng.integers(1, 6, n).astype(float), mask=kind != CODES["rating"]),
        "categories": categories, "price": pa.array((item % 97 + 1) * 0.5),
        "attributes": const([], EVENTS.schema.field("attributes").type), "schema_version": const(1, pa.int32()),
        "source": const("synthetic", pa.string()).dictionary_encode(), "partition": const(0, pa.int32()),
        "offset": pa.array(np.arange(n)), "index": const(0, pa.int32()),
        "event_hash": pa.array(hash64_column(event_id).view(np.int64)),
    })


def write_events(lake: Lake, events: int, days: int, users: int, items: int, seed: int = 7) -> list[str]:
    """Writes ``events`` events over days FIRST_DAY to FIRST_DAY + days - 1, one file a day; returns the files."""
    files = {}
    for d in range(days):
        day = FIRST_DAY + d
        n = events * (d + 1) // days - events * d // days
        files[day * DAY_MICROS] = [lake.write_file("events", day_of_events(day, n, users, items, seed), day * DAY_MICROS)]
    lake.replace_days("events", files)
    return [paths[0] for paths in files.values()]


def add_world_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a benchmark over such events: their size, where they go, how the result is printed."""
    parser.add_argument("--events", type=int, default=10_000_000, help="over 30 days (default: 10,000,000)")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--work", metavar="DIR", help="where everything goes (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")


def print_measured(args: argparse.Namespace, measure: Callable[[argparse.Namespace, Path], dict[str, object]]) -> int:
    """Measures in the folder that the flags name, prints, and returns the exit code: 1 when results were not ``equal``."""
    with tempfile.TemporaryDirectory(prefix="beamrec-bench-") as temporary:
        document = measure(args, Path(args.work or temporary))
    print(json.dumps(document) if args.json else "\n".join(f"{k}: {v}" for k, v in document.items()))
    return 0 if document["equal"] else 1
