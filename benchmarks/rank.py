"""Microseconds of ranking one request in the process, step by step, beside the same formulas in plain NumPy.

  beamrec bench rank --json      lists of 100 items of a bundle of 100,000 x 64, a page of 20, a session of 8 items

Keys: us (median over the requests of the best of some repeats): stored (the list without re-ranking), rerank (preference and
session), diversity (MMR and calibration on top), whole (exploration too); numpy (diversity in plain NumPy) and equal, the share
of its pages that are the same; on_demand (a list made for a user without one), similar; open_ms and warm_ms of the bundle.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from benchmarks import rank_world
from benchmarks.rank_world import Request
from models.inference.bundle import Bundle
from serving.ranking.model import Signals
from serving.ranking.on_demand import make
from serving.ranking.policy import ContextPolicy, load
from serving.ranking.rank import SESSION_HALF_LIFE, SMOOTHING, rank
from serving.ranking.similar import similar
from serving.ranking.warm import warm_up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``bench rank``."""
    parser.add_argument("--items", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--requests", type=int, default=300, help="different ones (default: 300)")
    parser.add_argument("--repeat", type=int, default=5, help="times each is ranked; its best counts (default: 5)")
    parser.add_argument("--dir", default=".bench/rank", help="where the bundle is kept (default: .bench/rank)")
    parser.add_argument("--fresh", action="store_true", help="write the bundle again")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    if args.items < 1000 or args.requests < 1 or args.repeat < 1:
        raise UserError("at least 1000 items, one request and one repeat")
    rank_world.bundle(Path(args.dir), args.items, fresh=args.fresh)
    started = time.perf_counter()
    bundle = rank_world.bundle(Path(args.dir), args.items)
    opened = time.perf_counter()
    warm_up(load(), bundle)
    warmed = time.perf_counter()
    made = rank_world.requests(bundle, args.requests)
    times = measure(bundle, made, args.repeat)
    policy = replace(load().of("homepage"), explore_slot=0)
    equal = np.mean([list(rank(r.ask, r.candidates, r.signals, policy, bundle).item_ids)
                     == rank_world.numpy_page(r, policy, bundle, SESSION_HALF_LIFE, SMOOTHING) for r in made])
    result: dict[str, Any] = {
        "items": args.items, "dimensions": 64, "candidates": rank_world.LISTED, "page": 20, "requests": args.requests,
        "us": {name: round(value, 1) for name, value in times.items()}, "equal": round(float(equal), 4),
        "numpy_over_beamrec": round(times["numpy"] / times["diversity"], 2),
        "open_ms": round(1e3 * (opened - started), 1), "warm_ms": round(1e3 * (warmed - opened), 1),
    }
    if args.json:
        print_json(result)
    else:
        for key, value in result.items():
            print(f"{key:<18} {value}")
    return 0


def measure(bundle: Bundle, made: Sequence[Request], repeat: int) -> dict[str, float]:
    """Microseconds per request, by step; each includes those before it."""
    whole = load().of("homepage")
    diversity = replace(whole, explore_slot=0)
    rerank = replace(diversity, diversity=0.0, calibration=0.0)
    stored = replace(rerank, preference=0.0, session=0.0, max_per_category=0)
    plain = [replace(r, signals=Signals(hidden=r.signals.hidden)) for r in made]
    cases: dict[str, tuple[Callable[[Request], Any], Sequence[Request]]] = {
        "stored": (functools.partial(_ranked, stored, bundle), plain),
        "rerank": (functools.partial(_ranked, rerank, bundle), made),
        "diversity": (functools.partial(_ranked, diversity, bundle), made),
        "whole": (functools.partial(_ranked, whole, bundle), made),
        "numpy": (lambda r: rank_world.numpy_page(r, diversity, bundle, SESSION_HALF_LIFE, SMOOTHING), made),
        "on_demand": (lambda r: make(r.ask, r.signals, bundle, 0), made[:50]),
        "similar": (lambda r: similar(bundle, r.candidates.recs.item_ids[0], load_item(), r.signals), made[:50]),
    }
    return {name: 1e6 * float(np.median([_best(call, r, repeat) for r in requests]))
            for name, (call, requests) in cases.items()}


@functools.cache
def load_item() -> ContextPolicy:
    """The policy of the context ``item``."""
    return load().of("item")


def _ranked(policy: ContextPolicy, bundle: Bundle, request: Request) -> Any:
    return rank(request.ask, request.candidates, request.signals, policy, bundle)


def _best(call: Callable[[Request], Any], request: Request, repeat: int) -> float:
    """Seconds of the fastest of some calls: what else the machine does only adds."""
    best = np.inf
    for _ in range(repeat):
        started = time.perf_counter()
        call(request)
        best = min(best, time.perf_counter() - started)
    return float(best)
