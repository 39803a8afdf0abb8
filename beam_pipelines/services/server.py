"""What every local server has in common, and the base of those that are one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

from beam_pipelines.services import process
from beam_pipelines.services.ports import HOST, claim, serves_grpc


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


class OneGrpcServer(OneProcess):
    """A server of one process that answers gRPC on one port; TITLE is what messages call it."""

    TITLE: ClassVar[str]

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    @classmethod
    def found(cls, directory: Path) -> Self | None:
        """The server that a directory's pid file describes; None without one."""
        known = process.find(directory, cls.NAME)
        return None if known is None else cls(directory, known.ports[cls.NAME])

    def command(self) -> list[str]:
        """Its program and flags but for the port; raises UserError when it is not installed."""
        raise NotImplementedError

    def port_flag(self) -> str:
        """The flag that names the port."""
        raise NotImplementedError

    def start(self, seconds: float = 30.0) -> Self:
        """Starts it unless it runs, and waits until it answers.

        Raises:
          UserError: not to be had, the port is taken, or it does not come up.
        """
        known = self.process
        if known is not None and known.alive:
            self.port = known.ports[self.NAME]
        else:
            command = self.command()
            self.port = claim(self.port, self.TITLE, f"--port-{self.NAME}")
            known = process.start(self.directory, self.NAME, [*command, self.port_flag()], ports={self.NAME: self.port},
                                  parent=self.parent)
        known.wait_ready(self.healthy, seconds, self.TITLE)
        return self

    def healthy(self) -> bool:
        """Whether it answers."""
        return serves_grpc(self.address)
