"""A small world to look at through the page: two versions of lists, features, titles with markup; and a server over it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serving" / "ranking"))
from bundle_world import make_bundle
from serving_world import DAY, World

from schemas.cells import encode_list
from schemas.features import group
from schemas.keys import USER, row_key
from schemas.workspace import Workspace
from serving.settings import Settings
from serving.stores.base import Cell, FeatureWrite

MARKUP = '<img src=x onerror="window.hacked=1"> & "quotes"'
ITEMS = [f"i{n}" for n in range(40)]


def now_micros():
    return time.time_ns() // 1000 // 1000 * 1000


class PageWorld(World):
    """Published twice, its clock runs: ann and bob have lists in both versions, everybody else what is popular."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        Workspace(root).run_clock()
        now = now_micros()
        self.catalogue(*ITEMS, "p1", "p2", "p3", heat="Heat", i2=MARKUP)
        for user in ("ann", "bob"):
            self.put_list(user, "v1", ITEMS[:30], reason="because_you_watched", because="heat", model="tt-1",
                          generated_at=now - DAY, expires_at=now + DAY)
            self.put_list(user, "v2", [*ITEMS[5:35], *ITEMS[:5]], reason="similar_taste", model="tt-2", generated_at=now,
                          expires_at=now + DAY)
            self.features_of(user, now - DAY // 2)
        popular = ["p1", "p2", "p3", *ITEMS[:20]]
        titles = {**{i: f"Title of {i}" for i in (*ITEMS, *popular)}, "heat": "Heat", "i2": MARKUP}
        for version, model in (("v1", "tt-1"), ("v2", "tt-2")):
            self.put_list("", version, popular, reason="popular", model=model, generated_at=now, expires_at=now + DAY)
            make_bundle(self.workspace.bundles / version, len(ITEMS), version=version, model=model, titles=titles,
                        extra=["p1", "p2", "p3", "heat"], segments={"": popular})
            self.manifest(version, model, now)
        self.flip("v2", previous="v1")

    def features_of(self, user: str, at: int) -> None:
        times = at - np.arange(3) * 3_600_000_000
        for name, ids, scores in (("user_last_items", ["heat", "i38", "i39"], [1, 2, 1]),
                                  ("user_affinity", ["Drama", "Comedy", "War"], [0.6, 0.3, 0.1])):
            cell = encode_list(group(name).id, ids, times, np.array(scores, np.float32))
            self.store.write_features([FeatureWrite(row_key(USER, user), "batch", name, Cell(cell, at))])
        self.put_stats("user", user, at, segment=1.0, active_days_30d=4.0, price_mean_30d=12.5)

    def manifest(self, version: str, model: str, as_of: int) -> None:
        """What the job leaves of a version that is complete and was checked."""
        folder = self.workspace.lists
        folder.mkdir(parents=True, exist_ok=True)
        report = {"surface": "homepage", "model_version": model, "users": 2, "items": len(ITEMS), "as_of": as_of}
        (folder / f"{version}.json").write_text(json.dumps({"report": report, "gate": {"checked_at": as_of}}))


class PageServer:
    """The API's worker in a process of its own, with page and events."""

    def __init__(self, root: Path, **more: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        space = Workspace(root)
        settings = Settings(f"sqlite:{space.store}", root, log=f"dir:{root / 'log'}", **more)
        self.url = f"http://127.0.0.1:{port}"
        self.log = root / "server.log"
        command = [sys.executable, "-m", "uvicorn", "--factory", "--host", "127.0.0.1",
                   "--port", str(port), "--no-access-log", "serving.api:create_app"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, **settings.to_env()})
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/readyz").status_code in (200, 503):
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(self.log.read_text())
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
