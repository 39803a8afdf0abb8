"""The Bigtable emulator: in memory, so what is in it is gone when it ends.

``with bigtable.running(directory) as emulator: os.environ.update(emulator.environment)`` starts one on a free port.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beam_pipelines.services.install import program
from beam_pipelines.services.ports import HOST
from beam_pipelines.services.server import OneGrpcServer

PORT = 8086


@dataclass
class Emulator(OneGrpcServer):
    """A Bigtable emulator; any project and instance name will do."""

    NAME: ClassVar[str] = "bigtable"
    TITLE: ClassVar[str] = "the Bigtable emulator"

    port: int = PORT

    @property
    def environment(self) -> dict[str, str]:
        """What Google's clients look at."""
        return {"BIGTABLE_EMULATOR_HOST": self.address}

    def command(self) -> list[str]:
        """See OneGrpcServer."""
        return [str(program("bigtable")), f"-host={HOST}"]

    def port_flag(self) -> str:
        """See OneGrpcServer."""
        return f"-port={self.port}"


@contextlib.contextmanager
def running(directory: Path, port: int = 0) -> Iterator[Emulator]:
    """An emulator for the length of a ``with``; killed with this process if that dies first."""
    emulator = Emulator(directory, port, parent=os.getpid())
    try:
        yield emulator.start()
    finally:
        emulator.stop()
