"""A small world to publish in, and a real server process over it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from schemas.cells import RankedList, encode_list, encode_recs, encode_vector
from schemas.features import features_of, group
from schemas.keys import ITEM, USER, list_key, row_key
from schemas.workspace import Workspace
from serving.stores import open_store
from serving.stores.base import Active, Cell, FeatureWrite, ListWrite

NOW = 1_700_006_400_000_000  # a midnight, as the clock of an import
DAY = 86_400_000_000


class World:
    """A workspace whose clock stands at NOW, with a store; ``store`` writes to it while others read."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.workspace.freeze_after(NOW - 1)
        assert self.workspace.now() == NOW
        self.uri = f"sqlite:{self.workspace.store}"
        self.store = open_store(self.uri)

    def catalogue(self, *items: str, **titles: str) -> None:
        """Entries with a title each: of an id alone "Title of <id>"."""
        named = {**{i: f"Title of {i}" for i in items}, **titles}
        rest = {"categories": ["Drama"], "price": None, "image": None, "attributes": {"year": "1995"}}
        self.store.write_features(
            FeatureWrite(row_key(ITEM, i), "meta", "item", Cell(json.dumps({"title": t, **rest}).encode(), 0))
            for i, t in named.items())

    def put_list(self, user: str, version: str, items: list[str], surface: str = "homepage", reason: str = "similar_taste",
                 because: str = "", expires_at: int = NOW + DAY, model: str = "m1", generated_at: int = NOW) -> None:
        """Writes a ranked list with scores 1, 1/2, 1/3..."""
        recs = RankedList(items, (1 / np.arange(1, len(items) + 1)).astype(np.float32), ["two_tower"] * len(items),
                          [reason] * len(items), [because] * len(items), model, generated_at, expires_at)
        self.store.write_lists([ListWrite(list_key(user, surface), version, Cell(encode_recs(recs), generated_at))])

    def put_features(self, user: str, name: str, ids: list[str], at: int = NOW) -> None:
        """Writes a list feature group of a user, newest first."""
        times = NOW - DAY - np.arange(len(ids)) * 1_000_000
        cell = encode_list(group(name).id, ids, times, np.ones(len(ids), np.float32))
        self.store.write_features([FeatureWrite(row_key(USER, user), "batch", name, Cell(cell, at))])

    def put_stats(self, kind: str, entity: str, at: int = NOW, **values: float) -> None:
        """Writes the stats vector of a user or item: NaN where no value is given."""
        name = f"{kind}_stats"
        vector = np.array([values.get(f.name, np.nan) for f in features_of(name)], np.float32)
        cell = Cell(encode_vector(group(name).id, vector), at)
        self.store.write_features([FeatureWrite(row_key({"user": USER, "item": ITEM}[kind], entity), "batch", name, cell)])

    def flip(self, version: str, surface: str = "homepage", **more: object) -> None:
        """Makes a version active."""
        assert self.store.flip(surface, self.store.active(surface), Active(version, **more))


class Server:
    """``beamrec serve`` in a process of its own on a free port; ``within`` is a command that runs it."""

    def __init__(self, workspace: Path, *flags: str, within: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "beam_pipelines.cli.main", "serve", "--port", "0", "--workspace", str(workspace),
             *flags],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._wait_until_it_answers()
        self.client = httpx.Client(base_url=self.url, timeout=10)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def _wait_until_it_answers(self) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log:
                entry = json.loads(line)
                if entry["event"] == "listening":
                    with contextlib.suppress(httpx.TransportError):
                        assert httpx.get(entry["url"] + "/healthz").status_code == 200
                        return entry["url"]
            time.sleep(0.05)
        self.stop()
        raise AssertionError("the server did not start:\n" + "\n".join(self.log))

    def get(self, user: str = "ann", **parameters: object) -> httpx.Response:
        return self.client.get("/v1/recommendations", params={"user_id": user, **parameters})

    def items(self, user: str = "ann", **parameters: object) -> list[str]:
        answer = self.get(user, **parameters)
        assert answer.status_code == 200, answer.text
        return [item["item_id"] for item in answer.json()["items"]]

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(5)
