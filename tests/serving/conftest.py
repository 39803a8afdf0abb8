"""Fixtures over serving_world, and those of eventlog_world."""

import pytest
from eventlog_world import broker, log, uri  # noqa: F401
from serving_world import Server, World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "workspace")
    yield made
    made.store.close()


@pytest.fixture
def server_of():
    """Starts servers; all are stopped when the test ends."""
    started = []

    def start(workspace, *flags):
        started.append(Server(workspace, *flags))
        return started[-1]

    yield start
    for server in started:
        server.stop()
