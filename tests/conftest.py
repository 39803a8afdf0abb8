"""Shared by all tests: property tests have no deadline, for machines are shared and a first call may compile."""

from hypothesis import settings

settings.register_profile("beamrec", deadline=None)
settings.load_profile("beamrec")
