"""What every local server has in common, and the base of those that are one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from beam_pipelines.services import process


class Server(Protocol):
    """A local server, of one process or several; ``start`` and ``stop`` may be called again and again."""

    @property
    def address(self) -> str:
        """Where its clients find it."""

    @property
    def environment(self) -> dict[str, str]:
        """What a shell exports to use it."""

    def start(self, seconds: float = 60.0) -> Server:
        """Starts it unless it runs, and waits until it answers; raises UserError when it cannot."""

    def ready(self, name: str) -> bool:
        """Whether one of its processes does its work."""

    def stop(self) -> None:
        """Ends it, in order when it can."""


@dataclass
class OneProcess:
    """A server of one process.

    Attributes:
      directory: its pid file, log and data.
      port: where clients connect; 0 becomes a free one at the first start, and stays.
      parent: pid of the process with which it ends; 0: it outlives all.
    """

    NAME: ClassVar[str]

    directory: Path
    port: int = 0
    parent: int = 0

    @property
    def process(self) -> process.Process | None:
        """The process, alive or not; None before the first start."""
        return process.find(self.directory, self.NAME)

    def healthy(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    def ready(self, name: str) -> bool:
        """Whether it runs and answers."""
        known = self.process
        return known is not None and known.alive and self.healthy()

    def kill(self) -> None:
        """Kills it at once, as a crash would; ``start()`` brings it back on its port."""
        if (known := self.process) is not None:
            known.kill()

    def stop(self) -> None:
        """Ends it, in order when it can."""
        if (known := self.process) is not None:
            known.stop()
