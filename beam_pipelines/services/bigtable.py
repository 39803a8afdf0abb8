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

from beam_pipelines.services import process
from beam_pipelines.services.install import program
from beam_pipelines.services.ports import HOST, claim, serves_grpc
from beam_pipelines.services.server import OneProcess

PORT = 8086


@dataclass
class Emulator(OneProcess):
    """A Bigtable emulator; any project and instance name will do."""

    NAME: ClassVar[str] = "bigtable"

    port: int = PORT

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What Google's clients look at."""
        return {"BIGTABLE_EMULATOR_HOST": self.address}

    @classmethod
    def found(cls, directory: Path) -> Emulator | None:
        """The emulator that a directory's pid file describes; None without one."""
        known = process.find(directory, cls.NAME)
        return None if known is None else cls(directory, known.ports["bigtable"])

    def start(self, seconds: float = 30.0) -> Emulator:
        """Starts it unless it runs, and waits until it answers.

        Raises:
          UserError: not installed, the port is taken, or it does not come up.
        """
        known = self.process
        if known is not None and known.alive:
            self.port = known.ports["bigtable"]
        else:
            command = [str(program("bigtable")), f"-host={HOST}"]
            self.port = claim(self.port, "the Bigtable emulator", "--port-bigtable")
            known = process.start(self.directory, self.NAME, [*command, f"-port={self.port}"], ports={"bigtable": self.port},
                                  parent=self.parent)
        known.wait_ready(self.healthy, seconds, "the Bigtable emulator")
        return self

    def healthy(self) -> bool:
        """Whether it answers."""
        return serves_grpc(self.address)


@contextlib.contextmanager
def running(directory: Path, port: int = 0) -> Iterator[Emulator]:
    """An emulator for the length of a ``with``; killed with this process if that dies first."""
    emulator = Emulator(directory, port, parent=os.getpid())
    try:
        yield emulator.start()
    finally:
        emulator.stop()
