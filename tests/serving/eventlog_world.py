"""Event logs to test against: a local one always, Kafka where a broker is at hand or can be started."""

import contextlib
import itertools
import os

import pytest

from serving.eventlog import open_log

BASE = 1_700_000_000_000_000
SECOND = 1_000_000
_numbers = itertools.count()


@contextlib.contextmanager
def broker_at(folder):
    """A broker of its own for a test; skips where Kafka is not installed."""
    pytest.importorskip("confluent_kafka", reason="needs the Kafka client: pip install 'beamrec[stream]'")
    from beam_pipelines.errors import UserError
    from beam_pipelines.services import kafka
    from beam_pipelines.services.install import java, location

    try:
        location("kafka"), java()
    except UserError as error:
        pytest.skip(str(error))
    with kafka.running(folder) as broker:
        yield broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """``HOST:PORT`` of a broker: that of BEAMREC_KAFKA, else one started for the tests."""
    if "BEAMREC_KAFKA" in os.environ:
        yield os.environ["BEAMREC_KAFKA"]
        return
    with broker_at(tmp_path_factory.mktemp("kafka")) as running:
        yield running.bootstrap


def topic():
    """A name of a topic that no other test uses."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture(params=["local", "kafka"])
def uri(request, tmp_path):
    """The URI of a new log of two partitions, created when it is opened."""
    if request.param == "local":
        return f"dir:{tmp_path}/log?partitions=2"
    return f"kafka://{request.getfixturevalue('broker')}/{topic()}?partitions=2"


@pytest.fixture
def log(uri):
    """A new log of two partitions."""
    opened = open_log(uri)
    yield opened
    opened.close()


def read_all(reader, count, seconds=20):
    """[(partition, offset, record)] until there are ``count``."""
    found = []
    for _ in range(int(seconds / 0.2)):
        records = reader.poll(1 << 20, 0.2)
        places = zip(records.partition.tolist(), records.offset.tolist(), strict=True)
        found += [(p, o, records.record(i)) for i, (p, o) in enumerate(places)]
        if len(found) >= count:
            break
    return found
