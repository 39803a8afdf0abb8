"""The world of ``beamrec bench rank``: a bundle of clustered items, and requests of users who like some clusters."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.inference import index as item_index
from models.inference.bundle import Bundle, BundleManifest
from models.inference.bundle_write import write_bundle
from schemas.cells import RankedList
from serving.ranking.model import Ask, Candidates, Signals
from transforms.catalogue import Catalogue

VERSION, MODEL = "bench", "tt-bench"
NEIGHBOURS, PER_CLUSTER, LISTED = 50, 200, 100


@dataclass(frozen=True)
class Request:
    """What ``rank`` is called with."""

    ask: Ask
    candidates: Candidates
    signals: Signals


def bundle(folder: Path, items: int, dimensions: int = 64, fresh: bool = False) -> Bundle:
    """The bundle, written when it is not there."""
    root = folder / f"{items}x{dimensions}"
    if fresh:
        shutil.rmtree(root, ignore_errors=True)
    if not (root / VERSION / "manifest.json").is_file():
        _write(root, items, dimensions)
    return Bundle.open(root / VERSION)


def _write(root: Path, items: int, dimensions: int) -> None:
    rng = np.random.default_rng(7)
    clusters = max(2, items // PER_CLUSTER)
    cluster = np.arange(items) % clusters
    centres = rng.normal(size=(clusters, dimensions)) * 0.6
    vectors = (centres[cluster] + rng.normal(size=(items, dimensions)) * 0.8).astype(np.float32)
    ids = pa.array([f"item-{n:06d}" for n in range(items)])
    index = item_index.build(ids, vectors, MODEL, queries=vectors[:: max(1, items // 512)])
    index.save(root / "index")
    popularity = np.sort(rng.pareto(1.2, items))[::-1]
    share = (np.log1p(popularity) / np.log1p(popularity[0])).astype(np.float32)
    active = np.arange(items) % 100 != 99
    order = np.arange(items, dtype=np.int32)
    near = (np.arange(items)[:, None] + clusters * (1 + np.arange(NEIGHBOURS))) % items
    strengths = np.tile((0.3 / (1 + np.arange(NEIGHBOURS))).astype(np.float32), items)
    catalogue = Catalogue(ids, vectors, active, share, order[active], np.arange(items + 1, dtype=np.int64) * NEIGHBOURS,
                          near.reshape(-1).astype(np.int32), strengths)
    snapshot = pa.table({"item_id": ids, "impressions_total": pa.array((popularity * 100).astype(np.float32)),
                         "age_days": pa.array(rng.integers(0, 400, items).astype(np.float32)),
                         "ctr_smoothed_30d": pa.array(rng.uniform(0.01, 0.1, items).astype(np.float32))})
    pairs = pa.map_(pa.string(), pa.string())
    table = pa.table({
        "item_id": ids, "title": pa.array([f"Title {n % 997} of item {n}" for n in range(items)]),
        "categories": pa.array([[f"c{c % 60}", f"d{n % 40}"] for n, c in enumerate(cluster.tolist())]),
        "price": pa.array(rng.uniform(1, 90, items).round(2)), "image": pa.nulls(items, pa.string()),
        "attributes": pa.array([[("year", str(1950 + n % 70))] for n in range(items)], pairs)})
    manifest = BundleManifest(VERSION, MODEL, MODEL, MODEL, "homepage", 0, items, items, dimensions)
    write_bundle(root / VERSION, manifest, catalogue, table, snapshot, root / "index")


def requests(bundle: Bundle, count: int, seed: int = 11) -> list[Request]:
    """``count`` requests: a list of LISTED items of a few clusters, a session of 8 items, 20 hidden items, 12 categories."""
    rng = np.random.default_rng(seed)
    items = bundle.manifest.items
    clusters = max(2, items // PER_CLUSTER)
    made = []
    for number in range(count):
        own = rng.integers(0, clusters, 6)
        pool = (own[rng.integers(0, 6, 3 * LISTED)] + clusters * rng.integers(0, items // clusters, 3 * LISTED)) % items
        listed = bundle.ids(np.unique(pool)[rng.permutation(len(np.unique(pool)))][:LISTED])
        scores = np.sort(rng.random(len(listed)))[::-1].astype(np.float32)
        n = len(listed)
        recs = RankedList(listed, scores, ["two_tower"] * n, ["similar_taste"] * n, [""] * n, MODEL, 0, 1)
        session = bundle.ids((own[rng.integers(0, 6, 8)] + clusters * rng.integers(0, items // clusters, 8)) % items)
        shares = rng.dirichlet(np.ones(12)).tolist()
        preference = {f"c{c % 60}": share for c, share in zip([*own.tolist(), *range(20, 26)], shares, strict=True)}
        signals = Signals(known=True, hidden=frozenset(listed[:10:2]), session=[(i, 2.0) for i in session],
                          history=[(i, 2.0) for i in session], preference=preference)
        made.append(Request(Ask(f"user-{number}", request_id=f"r{number}", page_size=20),
                            Candidates(recs, VERSION, "list", True), signals))
    return made


def numpy_page(request: Request, policy: Any, bundle: Bundle, half_life: float, smoothing: float) -> list[str]:
    """The page by plain NumPy, without exploration: the same formulas, an array operation at a time."""
    recs, signals, size = request.candidates.recs, request.signals, request.ask.page_size
    positions = bundle.positions(recs.item_ids)
    sums: dict[int, float] = {}
    session = bundle.positions([i for i, _ in signals.session[: policy.session_items]])
    for rank, (position, (_, weight)) in enumerate(zip(session.tolist(), signals.session, strict=False)):
        near, strengths = bundle.neighbours_of(position)
        decayed = np.float32(weight * 2 ** (-rank / half_life)) * strengths
        for item, value in zip(near.tolist(), decayed.tolist(), strict=True):
            sums[item] = sums.get(item, 0.0) + value
    known = {*positions.tolist(), *session.tolist()}
    extra = sorted((p for p in sums if p not in known and bundle.active[p]), key=lambda p: (-sums[p], p))
    names = bundle.ids(np.array(extra[: 2 * policy.session_candidates], np.int32)) if extra else []
    joined = [(i, p) for i, p in zip(names, extra, strict=False) if i not in signals.hidden][: policy.session_candidates]
    ids = [*recs.item_ids, *(i for i, _ in joined)]
    at = np.concatenate([positions, np.array([p for _, p in joined], np.int32)])
    keep = bundle.active[at] & np.array([i not in signals.hidden for i in ids])
    base = np.zeros(len(ids), np.float32)
    low, high = recs.scores.min(), recs.scores.max()
    base[: len(recs.item_ids)] = (recs.scores - low) / (high - low)
    share = np.array([signals.preference.get(name, 0.0) for name in bundle.category_names], np.float32)
    belongs = np.zeros((len(ids), len(share)), np.float32)
    for row, position in enumerate(at.tolist()):
        belongs[row, bundle.category_codes[bundle.category_offsets[position] : bundle.category_offsets[position + 1]]] = 1
    first = bundle.category_codes[bundle.category_offsets[at]].astype(np.int64)
    parts = belongs.sum(axis=1, keepdims=True)
    match = belongs @ share / (np.linalg.norm(share) * np.sqrt(parts[:, 0]))
    near_ = np.array([sums.get(p, 0.0) for p in at.tolist()], np.float32)
    score = base + policy.preference * match + policy.session * near_ / max(near_[keep].max(initial=0), 1e-9)
    return [ids[i] for i in _greedy(score, keep, bundle.units(at), belongs / parts, share / share.sum(), first, size, policy,
                                    smoothing)]


def _greedy(score: npt.NDArray[np.floating], keep: npt.NDArray[np.bool_], units: npt.NDArray[np.float32],
            mixes: npt.NDArray[np.float32], p: npt.NDArray[np.float32], first: npt.NDArray[np.int64], size: int,
            policy: Any, smoothing: float) -> list[int]:
    chosen: list[int] = []
    nearest, mix, open_ = np.zeros(len(score)), np.zeros(len(p)), keep.copy()
    wanted = np.flatnonzero(p)
    alike = np.clip(units @ units.T, 0, 1)
    while len(chosen) < size and open_.any():
        q = smoothing * p[wanted] + (1 - smoothing) * mix[wanted] / (len(chosen) + 1)
        gain = np.log1p((1 - smoothing) * mixes[:, wanted] / (len(chosen) + 1) / q) @ p[wanted]
        worth = (1 - policy.diversity) * score - policy.diversity * (
            (1 - policy.calibration) * nearest - policy.calibration * gain)
        full = np.bincount(first[chosen], minlength=len(p))[first] >= policy.max_per_category
        free = open_ & ~full if (open_ & ~full).any() else open_
        best = int(np.argmax(np.where(free, worth, -np.inf)))
        chosen.append(best)
        open_[best] = False
        nearest = np.maximum(nearest, alike[best])
        mix += mixes[best]
    return chosen
