"""A purchase disappears from its user's next list: with the stream stopped, and with it running."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from servers import need

sys.path[:0] = [str(Path(__file__).parent.parent / "serving"), str(Path(__file__).parent.parent / "serving" / "api")]
from api_world import publish  # noqa: E402
from serving_world import NOW, Server, World  # noqa: E402

from beam_pipelines.services.process import poll  # noqa: E402
from schemas.cells import RankedList, encode_recs  # noqa: E402
from schemas.keys import list_key  # noqa: E402
from serving.stores.base import Cell, ListWrite  # noqa: E402

YEARS = 50 * 365 * 86_400_000_000


@contextlib.contextmanager
def streaming(world, log, runs):
    if not runs:
        yield
        return
    stream = subprocess.Popen([sys.executable, "-m", "beam_pipelines.cli.main", "stream", "--log", log, "--quiet", "--runner",
                               "prism", "--workspace", str(world.workspace.root)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        stream.terminate()
        stream.wait(60)


@pytest.mark.parametrize("runs", [False, True], ids=["stream stopped", "stream running"])
def test_a_purchase_is_gone_from_the_next_list(tmp_path, runs):
    if runs:
        need("prism")
    world = publish(World(tmp_path / "workspace"))
    log = f"dir:{tmp_path / 'log'}"
    recs = RankedList([f"i{n}" for n in range(10, 40)], np.linspace(1, 0.1, 30, dtype=np.float32), ["two_tower"] * 30,
                      ["popular"] * 30, [""] * 30, "m1", NOW, NOW + YEARS)
    world.store.write_lists([ListWrite(list_key("ann", "homepage"), "v1", Cell(encode_recs(recs), NOW + 1000))])
    server = Server(world.workspace.root, "--log", log)
    try:
        with streaming(world, log, runs):
            if runs:  # what the stream computed is served: it runs
                click = {"user_id": "bob", "item_id": "i3", "event_type": "click"}
                assert server.client.post("/v1/events", json=click).status_code == 202
                assert poll(lambda: (server.client.get("/v1/status").json()["stream"] or {}).get("events", 0) >= 1, 120, 0.5)
            for _ in range(5):
                bought = server.items("ann", page_size=10)[0]
                event = {"user_id": "ann", "item_id": bought, "event_type": "purchase"}
                assert server.client.post("/v1/events", json=event).status_code == 202
                assert bought not in server.items("ann", page_size=100)
            if runs:
                time.sleep(3)  # the stream has written its own cells over the collector's
            assert bought not in server.items("ann", page_size=100)
    finally:
        server.stop()
        world.store.close()
