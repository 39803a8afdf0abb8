"""The world of the serving benchmarks: a store with lists and features of many users, and bundles, made without any job.

Users are of ARCHETYPES: those of one archetype have the same cells, each in rows of their own, so that 100,000 users are
written in seconds. Every user has a list of 100 items of three categories, 50 consumed items, an open session of 8 items, a
real-time preference, recent items and counts, as a stream and a nightly run would leave them. The clock stands still at NOW.
With several versions, each has items of its own (version k of n: those whose number is k modulo n), so an answer that mixes
two versions shows.
"""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.inference import index as item_index
from models.inference.bundle import BundleManifest
from models.inference.bundle_write import write_bundle
from schemas.cells import LAYOUT, RankedList, _pack_ids, encode_list, encode_recs, encode_vector
from schemas.features import features_of, group
from schemas.keys import ITEM, STATUS, USER, list_key, row_key, status_key, suppressed_group
from schemas.stream_cells import DECAYED, PANE, RING, RINGS, SESSION, encode_suppression
from schemas.tables import ITEMS
from schemas.workspace import DAY_MICROS, Workspace
from serving.stores import open_store, sqlite_file
from serving.stores.base import Active, Cell, FeatureWrite, ListWrite, Store
from serving.stores.columns import cell_batch
from transforms.catalogue import make_catalogue

NOW = 20_000 * DAY_MICROS
ARCHETYPES, LISTED, CONSUMED, SESSION_ITEMS, RECENT, DIMENSIONS = 2_048, 100, 50, 8, 20, 64
ITEMS_PER_CATEGORY = 200
SECOND = 1_000_000
_STEP = 20_000
_HEADER = struct.Struct("<BBHI")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ServeWorld:
    """What was made.

    Attributes:
      workspace: with the bundles and the clock.
      store: URI.
      users, items: how many; their ids are ``user_id(n)`` and ``item_id(n)``.
      versions: names; the first one is active on the homepage.
    """

    workspace: Workspace
    store: str
    users: int
    items: int
    versions: tuple[str, ...]

    @classmethod
    def make(cls, root: Path, users: int = 100_000, items: int = 20_000, versions: int = 1, store: str | None = None,
             seed: int = 7) -> ServeWorld:
        """The world in a folder; one that is there with the same sizes is taken as it is, but for a store elsewhere.

        Args:
          store: URI of an empty store; default: SQLite in the folder.
        """
        said = json.dumps({"users": users, "items": items, "versions": versions, "seed": seed, "store": store,
                           "layout": sqlite_file.LAYOUT})
        mark, workspace = root / "world.json", Workspace(root)
        names = tuple(f"20240101-0000000{v + 1}" for v in range(versions))
        uri = store or f"sqlite:{workspace.store}"
        world = cls(workspace, uri, users, items, names)
        if mark.exists() and mark.read_text() == said and store is None:
            _activate(uri, names)
            return world
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        workspace.freeze_after(NOW - 1)
        rng = np.random.default_rng(seed)
        opened = open_store(uri)
        try:
            for v, name in enumerate(names):
                _write_bundle(workspace, name, np.arange(v, items, versions), rng)
                _write_lists(opened, name, users, items, versions, v, rng)
            _write_features(opened, users, items, rng)
        finally:
            opened.close()
        _activate(uri, names)
        mark.write_text(said)
        return world


def user_id(n: int) -> str:
    """Of the n-th user."""
    return f"user-{n:07d}"


def item_id(n: int) -> str:
    """Of the n-th item."""
    return f"item-{n:06d}"


def category(n: int, items: int) -> str:
    """Of the n-th item."""
    return f"category-{n % max(4, items // ITEMS_PER_CATEGORY):03d}"


def _activate(uri: str, versions: tuple[str, ...]) -> None:
    store = open_store(uri)
    try:
        store.flip("homepage", store.active("homepage"), Active(versions[0]))
    finally:
        store.close()


def _write_bundle(workspace: Workspace, version: str, numbers: Ints, rng: np.random.Generator) -> None:
    ids, count = [item_id(n) for n in numbers.tolist()], len(numbers)
    categories = [category(n, int(numbers[-1]) + 1) for n in numbers.tolist()]
    _, code = np.unique(categories, return_inverse=True)
    centres = rng.normal(size=(code.max() + 1, DIMENSIONS))
    vectors = (centres[code] + 0.7 * rng.normal(size=(count, DIMENSIONS))).astype(np.float32)
    by_code = np.argsort(code, kind="stable")
    place = np.empty(count, np.int64)
    place[by_code] = np.arange(count)
    near = []
    for at in range(count):  # the next 20 of its category
        there = by_code[place[at] + 1 : place[at] + 21]
        listed = [ids[i] for i in there.tolist() if code[i] == code[at]]
        near.append({"ids": listed, "times": [0] * len(listed), "scores": (0.5 / np.arange(1, len(listed) + 1)).tolist()})
    kind = pa.struct([("ids", pa.list_(pa.string())), ("times", pa.list_(pa.int64())), ("scores", pa.list_(pa.float32()))])
    snapshot = pa.table({
        "item_id": ids, "popularity_30d": pa.array(1e6 / (1.0 + np.arange(count)), pa.float32()),
        "cooccurring_items": pa.array(near, kind),
        "impressions_total": pa.array(np.where(np.arange(count) % 10 == 9, 100.0, 50_000.0), pa.float32()),
        "age_days": pa.array(np.arange(count) % 300, pa.float32()),
        "ctr_smoothed_30d": pa.array(rng.random(count) * 0.1, pa.float32())})
    table = pa.Table.from_pylist([
        {**{f.name: None for f in ITEMS.schema}, "item_id": i, "title": f"The story of {i}", "categories": [c], "price": 9.99,
         "image": f"https://img.example/{i}.jpg", "is_active": True, "updated_at": 0, "attributes": [("year", "1999")],
         "schema_version": 1} for i, c in zip(ids, categories, strict=True)], schema=ITEMS.schema)
    model = f"m-{version}"
    folder = workspace.scratch / f"index-{version}"
    item_index.build(pa.array(ids), vectors, model).save(folder)
    catalogue = make_catalogue(pa.array(ids), vectors, snapshot, table)
    manifest = BundleManifest(version, model, model, model, "homepage", NOW, 0, 0, 0)
    write_bundle(workspace.bundles / version, manifest, catalogue, table, snapshot, folder)


def _liked(rng: np.random.Generator, items: int, count: int) -> Ints:
    """(ARCHETYPES, count) distinct items of three categories each, popular ones more often."""
    clusters = max(4, items // ITEMS_PER_CATEGORY)
    size = items // clusters
    found = np.empty((ARCHETYPES, count), np.int64)
    for a in range(ARCHETYPES):
        own = rng.permutation(clusters)[:3]
        ranks = np.argsort(rng.random((3, size)) * np.sqrt(np.arange(1, size + 1)), axis=1)[:, : -(-count // 3)]
        found[a] = rng.permutation((own[:, None] + clusters * ranks).ravel())[:count]
    return found


def _write_lists(store: Store, version: str, users: int, items: int, versions: int, v: int, rng: np.random.Generator) -> None:
    cells = []
    for row in _liked(rng, items // versions, LISTED).tolist():
        listed = RankedList([item_id(n * versions + v) for n in row], np.sort(rng.random(LISTED).astype(np.float32))[::-1],
                            ["two_tower"] * LISTED, ["because_you_watched"] * LISTED,
                            [item_id(row[(k + 1) % LISTED] * versions + v) for k in range(LISTED)], f"m-{version}",
                            NOW - 1, NOW + 30 * DAY_MICROS)
        cells.append(Cell(encode_recs(listed), NOW))
    store.write_lists(ListWrite(list_key(user_id(u), "homepage"), version, cells[u % ARCHETYPES]) for u in range(users))
    popular = RankedList([item_id(n * versions + v) for n in range(LISTED)], np.linspace(1, 0, LISTED, dtype=np.float32),
                         ["popular"] * LISTED, ["popular"] * LISTED, [""] * LISTED, f"m-{version}", NOW - 1,
                         NOW + 30 * DAY_MICROS)
    store.write_lists([ListWrite(list_key("", "homepage"), version, Cell(encode_recs(popular), NOW))])


def _write_features(store: Store, users: int, items: int, rng: np.random.Generator) -> None:
    written = json.dumps({"written_at": NOW, "watermark": NOW - 10 * SECOND, "run": "bench"}).encode()
    store.write_features([FeatureWrite(status_key(), "stream", STATUS, Cell(written, NOW))])
    made = [_cells(row, items, rng) for row in _liked(rng, items, CONSUMED).tolist()]
    for family in ("batch", "stream"):
        cells = [[(name, cell) for name, (its, cell) in user.items() if its == family] for user in made]
        at = NOW - DAY_MICROS if family == "batch" else NOW - SECOND
        for start in range(0, users, _STEP):
            wanted = range(start, min(users, start + _STEP))
            rows = [row for u in wanted for row in [row_key(USER, user_id(u))] * len(cells[u % ARCHETYPES])]
            names, values = zip(*(cell for u in wanted for cell in cells[u % ARCHETYPES]), strict=True)
            store.write_cells(family, cell_batch(rows, names, values, [at] * len(rows)))  # type: ignore[arg-type]
    item_cells = [encode_vector(group("item_stats").id, rng.random(len(features_of("item_stats"))).astype(np.float32))
                  for _ in range(256)]
    for start in range(0, items, _STEP):
        rows = [row_key(ITEM, item_id(n)) for n in range(start, min(items, start + _STEP))]
        stats = [item_cells[n % 256] for n in range(len(rows))]
        store.write_cells("batch", cell_batch(rows, ["item_stats"] * len(rows), stats, [NOW - DAY_MICROS] * len(rows)))


def _cells(consumed: list[int], items: int, rng: np.random.Generator) -> dict[str, tuple[str, bytes]]:
    """Cells of one archetype: family and value by group."""
    ids = [item_id(n) for n in consumed]
    names = sorted({category(n, items) for n in consumed})[:3]
    back = np.arange(CONSUMED) * 6 * 3600 * SECOND
    ones = np.ones(CONSUMED, np.float32)
    stats = rng.random(len(features_of("user_stats"))).astype(np.float32)
    stats[[f.name for f in features_of("user_stats")].index("segment")] = rng.integers(0, 3)
    cells: dict[str, tuple[str, Any]] = {
        "user_stats": ("batch", encode_vector(group("user_stats").id, stats)),
        "user_affinity": ("batch", encode_list(group("user_affinity").id, names, np.zeros(3, np.int64),
                                               np.array([0.5, 0.3, 0.2], np.float32)[: len(names)])),
        "user_last_items": ("batch", encode_list(group("user_last_items").id, ids, NOW - DAY_MICROS - back, ones)),
        "user_consumed": ("batch", encode_list(group("user_consumed").id, ids, NOW - DAY_MICROS - back, ones)),
        "user_recent": ("stream", encode_list(group("user_recent").id, ids[:RECENT],
                                              NOW - 60 * SECOND * np.arange(1, RECENT + 1), ones[:RECENT])),
        "user_session": ("stream", _session(ids[:SESSION_ITEMS], names)),
        "user_preference": ("stream", _preference(names, rng)),
        suppressed_group(ids[0]): ("stream", encode_suppression(NOW - 60 * SECOND)),
    }
    for name in ("user_panes", "user_day"):
        cells[name] = ("stream", ring_cell(name, NOW, rng))
    return cells


def ring_cell(name: str, now: int, rng: np.random.Generator) -> bytes:
    """A cell of a group of counts, all of its panes full, the last one that of ``now``."""
    ring, width = RINGS[name], len(features_of(name)) // len(RINGS[name].windows)
    first = struct.pack("<q", now // ring.step - ring.size + 1)
    counts = rng.integers(0, 4, (ring.size, width)).astype("<i4").tobytes()
    return _HEADER.pack(LAYOUT, RING, group(name).id, ring.size * width) + first + counts


def _session(ids: list[str], names: list[str]) -> bytes:
    start, end, n = NOW - 600 * SECOND, NOW - SECOND, len(ids)
    numbers = struct.pack("<9qI", start, end, 12, 90_000, 8, 80 * SECOND, 8, 5 * SECOND, 20 * SECOND, len(names))
    return b"".join((_HEADER.pack(LAYOUT, SESSION, group("user_session").id, n), numbers,
                     (end - np.arange(n) * 30 * SECOND).astype("<i8").tobytes(), np.ones(n, "<f4").tobytes(), _pack_ids(ids),
                     np.arange(len(names), 0, -1).astype("<i8").tobytes(), _pack_ids(names)))


def _preference(names: list[str], rng: np.random.Generator) -> bytes:
    entries = 4 * len(names)
    return b"".join((_HEADER.pack(LAYOUT, DECAYED, group("user_preference").id, len(names)),
                     struct.pack("<qI", NOW // PANE, entries), _pack_ids(names),
                     np.repeat(np.arange(len(names)), 4).astype("<u2").tobytes(),
                     np.tile(np.arange(4), len(names)).astype(np.uint8).tobytes(),
                     rng.integers(1, 9, entries).astype("<i4").tobytes()))


