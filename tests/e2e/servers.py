"""Fixtures of real servers, one per module; without the installed part they skip with the line that says how to get it."""

import pytest

from beam_pipelines.errors import UserError
from beam_pipelines.services import bigtable, flink, install, kafka, prism


def need(*names):
    """Skips unless the parts are installed in .services."""
    try:
        for name in names:
            install.location(name)
            if name in ("kafka", "flink"):
                install.java()
    except UserError as error:
        pytest.skip(str(error))


def server(start, name, folders):
    need(name)
    if name == "kafka":
        pytest.importorskip("confluent_kafka")
    with start(folders.mktemp(name)) as running:
        yield running


@pytest.fixture(scope="module")
def kafka_broker(tmp_path_factory):
    yield from server(kafka.running, "kafka", tmp_path_factory)


@pytest.fixture(scope="module")
def flink_cluster(tmp_path_factory):
    yield from server(flink.running, "flink", tmp_path_factory)


@pytest.fixture(scope="module")
def bigtable_emulator(tmp_path_factory):
    yield from server(bigtable.running, "bigtable", tmp_path_factory)


@pytest.fixture(scope="module")
def prism_server(tmp_path_factory):
    yield from server(prism.running, "prism", tmp_path_factory)
