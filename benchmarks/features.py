"""Reading features beside Feast 0.67: one user x 250 features, 100 items x 30 features, the same values, the same machine.

  beamrec bench features [--json]            SQLite and, where the emulator is installed, Bigtable
  beamrec bench features --stores sqlite     one of them

beamrec holds every value in a cell of its batch family and, newer, the first of them in a ring of counts of its stream family,
as a nightly run and a streaming job leave them: a read takes both, extracts the stream's windows and lays them over batch.
Feast holds what comes of that. Each side reads through its own client and gets every value with where it came from: beamrec a
matrix (AsyncFeatureReader.many), Feast get_online_features(...).to_dict(). The two take turns, so that what disturbs the
machine disturbs both; equal is whether all values of all timed reads are the same. speedup_vs_feast_p50 and _p99 are the worst
over reads and stores; Feast runs in its own environment, .bench/feast, made on first use.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_pipelines.errors import UserError
from beam_pipelines.services import bigtable, install
from benchmarks.peer_python import ROOT, peer_python
from benchmarks.serve_world import ring_cell
from schemas.cells import encode_vectors
from schemas.features import Feature, Group, Registry, features_of
from schemas.features import group as ring_group
from schemas.keys import ENTITY_KINDS, STATUS, row_key, status_key
from schemas.stream_cells import extract_rings
from serving.features import SOURCES, AsyncFeatureReader
from serving.stores import open_store
from serving.stores.aio import AsyncStore, open_async
from serving.stores.base import Cell, FeatureWrite
from serving.stores.columns import cell_batch

SHAPES = {"user": (1, 250), "item": (100, 30)}
"""Entities of one read, features of each."""
STORES = ("sqlite", "bigtable")
_NOW = 1_800_000_000_000_000
_HOUR = 3_600_000_000

RING_OF = {"user": "user_panes", "item": "item_minutes"}
"""The group of the stream that each kind has beside batch."""

Values = dict[str, npt.NDArray[np.float32]]
Rings = dict[str, tuple[list[bytes], npt.NDArray[np.int64]]]
"""By kind, n cells of its ring and the (n, k) values they hold at _NOW."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES), help="default: both")
    parser.add_argument("--users", type=int, default=200, help="stored (default: 200)")
    parser.add_argument("--items", type=int, default=1000, help="stored (default: 1000)")
    parser.add_argument("--reads", type=int, default=100, help="of each side and shape in a turn (default: 100)")
    parser.add_argument("--turns", type=int, default=5, help="default: 5")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Measures; 1 where values differ."""
    if "bigtable" in args.stores and not bigtable_installed():
        print("bench features: without Bigtable: make services SERVICES=bigtable", file=sys.stderr)
        args.stores = [store for store in args.stores if store != "bigtable"]
    result: dict[str, Any] = {"users": args.users, "items": args.items, "reads": args.reads * args.turns}
    chance = np.random.default_rng(7)
    values: Values = {kind: chance.normal(size=(n, SHAPES[kind][1])).astype(np.float32)
                      for kind, n in (("user", args.users), ("item", args.items))}
    with tempfile.TemporaryDirectory(prefix="beamrec-features-") as folder:
        rings = {kind: made_rings(kind, len(matrix), chance) for kind, matrix in values.items()}
        for kind, (_, windows) in rings.items():
            values[kind][:, : windows.shape[1]] = windows
        np.savez(Path(folder) / "values.npz", **values)  # type: ignore[arg-type]
        for store in args.stores:
            with _place(store, Path(folder)) as (uri, online, environment):
                result[store] = _measure(args, Path(folder), values, rings, uri, online, environment)
    rates = [shape for store in args.stores for shape in result[store].values()]
    result["speedup_vs_feast_p50"] = min(rate["speedup_p50"] for rate in rates)
    result["speedup_vs_feast_p99"] = min(rate["speedup_p99"] for rate in rates)
    result["equal"] = all(rate["equal"] for rate in rates)
    _print(result, args)
    return 0 if result["equal"] else 1


def bigtable_installed() -> bool:
    """Whether the emulator is there."""
    try:
        install.program("bigtable")
    except UserError:
        return False
    return True


@contextmanager
def _place(store: str, folder: Path) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """(URI, Feast's online_store, environment) of an empty store."""
    if store == "sqlite":
        yield f"sqlite:{folder / 'beamrec.db'}", {"type": "sqlite", "path": str(folder / "feast.db")}, {}
        return
    with bigtable.running(folder / "services") as server:
        os.environ.update(server.environment)
        yield ("bigtable://bench/beamrec", {"type": "bigtable", "project_id": "bench", "instance": "feast"},
               dict(server.environment))


def _measure(args: argparse.Namespace, folder: Path, values: Values, rings: Rings, uri: str, online: dict[str, str],
             environment: dict[str, str]) -> dict[str, Any]:
    registry = write(uri, values, rings)
    command = [peer_python("feast"), str(ROOT / "benchmarks" / "features_feast.py"), str(folder), json.dumps(online)]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env={**os.environ, **environment, "FEAST_USAGE": "False"})
    try:
        _answer(peer)  # it has written its values
        return asyncio.run(_turns(args, values, uri, registry, peer))
    finally:
        assert peer.stdin is not None
        peer.stdin.close()
        peer.wait(30)


def _answer(peer: subprocess.Popen[str]) -> dict[str, Any]:
    assert peer.stdout is not None
    line = peer.stdout.readline()
    if not line:
        raise UserError("Feast ended; its reason is above")
    return dict(json.loads(line))


async def _turns(args: argparse.Namespace, values: Values, uri: str, registry: Registry, peer: subprocess.Popen[str]
                 ) -> dict[str, Any]:
    store, reader = open_async(uri), AsyncFeatureReader(registry=registry)
    assert peer.stdin is not None
    found: dict[str, Any] = {}
    for kind, (size, width) in SHAPES.items():
        ours, theirs, equal = list[float](), list[float](), True
        for turn in range(args.turns + 1):
            took, digest = await _read(store, reader, kind, size, args.reads, len(values[kind]), turn)
            peer.stdin.write(f"{kind} {args.reads} {turn}\n")
            peer.stdin.flush()
            said = _answer(peer)
            equal &= said["digest"] == digest
            if turn:  # the first warms up
                ours += took
                theirs += said["seconds"]
        found[f"{size}_{kind}{'s' if size > 1 else ''}_x_{width}"] = _rates(ours, theirs) | {"equal": equal}
    await store.close()
    return found


async def _read(store: AsyncStore, reader: AsyncFeatureReader, kind: str, size: int, reads: int, entities: int, seed: int
                ) -> tuple[list[float], str]:
    """Seconds of each read, and a checksum of all values."""
    chance, took, digest = np.random.default_rng(seed), list[float](), hashlib.sha256()
    for _ in range(reads):
        ids = [f"{kind}-{i:06}" for i in chance.choice(entities, size, replace=False)]
        began = time.perf_counter()
        matrix = await reader.many(store, kind, ids, _NOW)  # type: ignore[arg-type]
        took.append(time.perf_counter() - began)
        streamed = np.flatnonzero(matrix.sources[0] == SOURCES.index("stream"))
        assert len(streamed) == len(features_of(RING_OF[kind])), "the stream's values were not laid over"
        digest.update(matrix.values.tobytes())
    return took, digest.hexdigest()


def made_rings(kind: str, entities: int, chance: np.random.Generator) -> tuple[list[bytes], npt.NDArray[np.int64]]:
    """Cells of random counts that reach to _NOW, and the values of their windows."""
    name = RING_OF[kind]
    cells = [ring_cell(name, _NOW, chance) for _ in range(entities)]
    return cells, extract_rings(name, cells, _NOW)


def write(uri: str, values: Values, rings: Rings) -> Registry:
    """Writes the values, of each kind one group of batch, that knows other ones of those that the stream has, and one of the
    stream; the registry of their features."""
    groups = [Group(1000 + i, f"{kind}_bench", kind, "batch", "vector") for i, kind in enumerate(values)]  # type: ignore[arg-type]
    features = [Feature(f"{kind}_f{i:03}", kind, f"{kind}_bench", "A number.")  # type: ignore[arg-type]
                for kind, matrix in values.items() for i in range(matrix.shape[1])]
    features += [Feature(f"{kind}_f{i:03}", kind, RING_OF[kind], "A count.", source="stream", ttl=600)  # type: ignore[arg-type]
                 for kind, (_, windows) in rings.items() for i in range(windows.shape[1])]
    store = open_store(uri)
    status = json.dumps({"written_at": _NOW, "watermark": _NOW - 10_000_000, "run": "bench"}).encode()
    store.write_features([FeatureWrite(status_key(), "stream", STATUS, Cell(status, _NOW))])
    for kind, (cells, _) in rings.items():
        rows = [row_key(ENTITY_KINDS[kind], f"{kind}-{i:06}") for i in range(len(cells))]
        store.write_cells("stream", cell_batch(rows, [RING_OF[kind]] * len(rows), cells, [_NOW - 1_000_000] * len(rows)))
    for group in groups:
        matrix = values[group.entity].copy()
        matrix[:, : rings[group.entity][1].shape[1]] += 1
        rows = [row_key(ENTITY_KINDS[group.entity], f"{group.entity}-{i:06}") for i in range(len(matrix))]
        store.write_cells("batch", cell_batch(rows, [group.name] * len(rows), encode_vectors(group.id, matrix),
                                              [_NOW - _HOUR] * len(rows)))
    store.close()
    return Registry([*groups, *(ring_group(name) for name in RING_OF.values())], features)


@dataclass(frozen=True)
class _Times:
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> _Times:
        return cls(*(float(np.percentile(seconds, q)) * 1000 for q in (50, 99)))


def _rates(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    mine, feast = _Times.of(ours), _Times.of(theirs)
    return {"p50_ms": round(mine.p50, 3), "p99_ms": round(mine.p99, 3), "feast_p50_ms": round(feast.p50, 3),
            "feast_p99_ms": round(feast.p99, 3), "speedup_p50": round(feast.p50 / mine.p50, 1),
            "speedup_p99": round(feast.p99 / mine.p99, 1)}


def _print(result: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(result))
        return
    for store in args.stores:
        for shape, rate in result[store].items():
            print(f"{store:<9} {shape:<15} " + "  ".join(f"{name} {value}" for name, value in rate.items()))
    for name in ("speedup_vs_feast_p50", "speedup_vs_feast_p99", "equal"):
        print(f"{name:<22} {result[name]}")
