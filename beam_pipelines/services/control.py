"""What ``beamrec services`` does: starts, ends and describes the servers of one directory."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.errors import UserError
from beam_pipelines.services import bigtable, flink, kafka, prism, process
from beam_pipelines.services.server import Server

NAMES = ("kafka", "flink", "bigtable", "prism")
DEFAULT = ("kafka", "flink", "bigtable")
PORTS = {"kafka": kafka.PORT, "kafka_controller": 0, "flink": flink.PORTS["rest"], "flink_rpc": flink.PORTS["rpc"],
         "jobs": flink.PORTS["jobs"], "workers": flink.PORTS["workers"], "bigtable": bigtable.PORT, "prism": prism.PORT}


@dataclass(frozen=True)
class PartStatus:
    """One process of a server.

    Attributes:
      state: "healthy", "not answering" or "dead" (it has a pid file and no process).
      memory_mib: resident, with all its children.
    """

    service: str
    part: str
    state: str
    pid: int
    ports: Mapping[str, int]
    uptime_s: float
    memory_mib: int
    log: Path


def parts_of(name: str) -> tuple[str, ...]:
    """Names of a server's processes."""
    return flink.PARTS if name == "flink" else (name,)


def check(names: Sequence[str]) -> None:
    """Raises UserError for a name that is no server's."""
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"no service {unknown[0]!r}; one of: {', '.join(NAMES)}")


def server(name: str, directory: Path, ports: Mapping[str, int], slots: int = 2, parent: int = 0) -> Server:
    """A server that is not started yet; its files will be in ``directory/NAME``."""
    folder = directory / name
    if name == "kafka":
        return kafka.Broker(folder, ports["kafka"], parent, ports["kafka_controller"])
    if name == "bigtable":
        return bigtable.Emulator(folder, ports["bigtable"], parent)
    if name == "prism":
        return prism.Prism(folder, ports["prism"], parent)
    own = {"rest": ports["flink"], "rpc": ports["flink_rpc"], "jobs": ports["jobs"], "workers": ports["workers"]}
    return flink.Cluster(folder, own, slots, parent=parent)


def found(name: str, directory: Path) -> Server | None:
    """A server that was started in ``directory``, alive or not; None without one."""
    kinds: dict[str, Callable[[Path], Server | None]] = {
        "kafka": kafka.Broker.found, "flink": flink.Cluster.found,
        "bigtable": bigtable.Emulator.found, "prism": prism.Prism.found}
    return kinds[name](directory / name)


def up(names: Sequence[str], directory: Path, ports: Mapping[str, int], slots: int = 2, parent: int = 0,
       news: Callable[[str], None] = lambda line: None) -> dict[str, Server]:
    """Starts servers, one after the other, and waits until each answers; one that runs stays as it is.

    Raises:
      UserError: one cannot start; those before it keep running.
    """
    check(names)
    with _alone(directory):
        servers = {}
        for name in names or DEFAULT:
            news(f"starting {name}")
            servers[name] = server(name, directory, ports, slots, parent)
            servers[name].start()
        return servers


def down(names: Sequence[str], directory: Path, news: Callable[[str], None] = lambda line: None) -> list[str]:
    """Ends servers, all of them when none is named, with every process that they started; returns which were there."""
    check(names)
    with _alone(directory):
        ended = []
        for name in names or reversed(NAMES):
            if (known := found(name, directory)) is not None:
                news(f"ending {name}")
                known.stop()
                ended.append(name)
        return ended


def status(names: Sequence[str], directory: Path) -> list[PartStatus]:
    """Every process of the named servers, or of all, that was started and not ended by ``down``."""
    check(names)
    rows = []
    for name in names or NAMES:
        known = found(name, directory)
        if known is None:
            continue
        for part in parts_of(name):
            if (run := process.find(directory / name, part)) is not None:
                state = "dead" if not run.alive else "healthy" if known.ready(part) else "not answering"
                rows.append(PartStatus(name, part, state, run.pid, run.ports, round(time.time() - run.started_at, 1),
                                       sum(map(process.resident_mib, run.members())), run.log))
    return rows


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps a second ``up`` or ``down`` of the same directory out."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another 'beamrec services' works on {directory}; try again when it is done") from error
        yield
