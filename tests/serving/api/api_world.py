"""A published version with a bundle, and the application over it, in this process."""

import contextlib

from ranking.bundle_world import make_bundle
from starlette.testclient import TestClient

from serving.api import create_app
from serving.settings import Settings

LISTED = [f"i{k}" for k in range(10, 40)]


def publish(world):
    """ann has a list of 30 of the bundle's 60 items."""
    make_bundle(world.workspace.root / "bundles" / "v1", version="v1", titles={"i10": 'Say "hi" to <b>'})
    world.put_list("", "v1", ["i0", "i1", "i2"], reason="popular")
    world.put_list("ann", "v1", LISTED, reason="because_you_watched", because="i5")
    world.flip("v1")
    return world


@contextlib.contextmanager
def client_of(world, **settings):
    app = create_app(Settings(world.uri, world.workspace.root, **settings))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        client.app_state = app.state
        yield client


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]
