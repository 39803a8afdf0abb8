"""Fixtures over serving_world, and those of eventlog_world."""

import shutil
import subprocess

import pytest
from eventlog_world import broker, log, uri  # noqa: F401
from serving_world import Server, World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "workspace")
    yield made
    made.store.close()


@pytest.fixture
def read_only():
    """A command that runs another one to which a folder can only be read, as a volume mounted so."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs mount namespaces of its own: unshare (util-linux), allowed to this user")

    def within(folder):
        mount = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec \"$@\""
        return [*alone, "sh", "-c", mount, "sh"]

    return within


@pytest.fixture
def server_of():
    """Starts servers; all are stopped when the test ends."""
    started = []

    def start(workspace, *flags, within=()):
        started.append(Server(workspace, *flags, within=within))
        return started[-1]

    yield start
    for server in started:
        server.stop()
