"""Shared by all tests: property tests have no deadline, for machines are shared and a first call may compile."""

from e2e.servers import bigtable_emulator, flink_cluster, kafka_broker, prism_server  # noqa: F401 - fixtures for every folder
from hypothesis import settings

settings.register_profile("beamrec", deadline=None)
settings.load_profile("beamrec")
