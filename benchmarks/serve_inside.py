"""What a request costs, without sockets: the application in this process, processor time by step.

CPU of the whole (a request after the other, the answer taken in memory), wall time of each step as the server itself counts it.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_world import ServeWorld, user_id

_WARM = 2_000


def in_process(world: ServeWorld, requests: int, truth: bool, profile: bool = False) -> dict[str, Any]:
    """Microseconds of processor a request, and of its steps."""
    with tempfile.TemporaryDirectory(prefix="beamrec-serve-bench-") as folder:
        return asyncio.run(_measure(world, requests, f"dir:{folder}/log" if truth else None, profile))


async def _measure(world: ServeWorld, requests: int, log: str | None, profile: bool) -> dict[str, Any]:
    from serving.api import create_app
    from serving.settings import Settings

    app = create_app(Settings(world.store, Path(world.workspace.root), log=log, events=False))
    bodies: list[bytes] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            bodies.append(message["body"])

    async def ask(n: int) -> None:
        await app({"type": "http", "method": "GET", "path": "/v1/recommendations", "client": ("127.0.0.1", 1),
                   "headers": [(b"host", b"127.0.0.1")],
                   "query_string": f"user_id={user_id(n)}&context=homepage&page_size=20".encode()}, _nothing, send)

    users = np.random.default_rng(5).integers(0, world.users, requests + _WARM).tolist()
    async with app.fastapi.router.lifespan_context(app.fastapi):
        for n in users[:_WARM]:
            await ask(n)
        counters = app.state.counters
        counters.steps.clear()
        bodies.clear()
        watch = cProfile.Profile() if profile else None
        if watch is not None:
            watch.enable()
        started, wall = time.process_time(), time.perf_counter()
        for n in users[_WARM:]:
            await ask(n)
            await asyncio.sleep(0)  # what runs between requests gets its turn
        if app.state.truth is not None:
            await app.state.truth.flush()
        used, took = time.process_time() - started, time.perf_counter() - wall
        if watch is not None:
            watch.disable()
            pstats.Stats(watch, stream=sys.stderr).sort_stats("tottime").print_stats(45)
        steps = {name: round(1e6 * found.total / max(1, requests), 1) for name, found in sorted(counters.steps.items())}
    return {"requests": requests, "cpu_us_per_request": round(1e6 * used / requests, 1),
            "wall_us_per_request": round(1e6 * took / requests, 1), **{f"{name}_us": value for name, value in steps.items()},
            "not_full": sum(body.count(b'"item_id":') < 20 for body in bodies), "load_before": round(os.getloadavg()[0], 1)}


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}
