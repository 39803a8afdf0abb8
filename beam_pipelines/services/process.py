"""One server process: started in a session of its own, recorded in a pid file, found again and ended with all its children."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from beam_pipelines.errors import UserError
from schemas.workspace import write_atomically

MARK = "BEAMREC_SERVICE"  # children inherit it, so that none is lost however they detach
_started: dict[str, subprocess.Popen[bytes]] = {}  # ours by token, to be reaped
_guards: dict[int, subprocess.Popen[bytes]] = {}  # by the pid that they watch


@dataclass(frozen=True)
class Process:
    """A server process, as its pid file ``DIRECTORY/NAME.json`` describes it; its output is in ``DIRECTORY/NAME.log``.

    Attributes:
      name: of the process within its directory, such as "taskmanager".
      directory: holds the pid file and the log.
      pid: leader of a session of its own.
      token: stands in the environment of the process and of every child.
      started_at: seconds since 1970.
      ticks: the kernel's start time of the process; a later process of the same pid has another.
      ports: what it listens on, by purpose.
    """

    name: str
    directory: Path
    pid: int
    token: str
    started_at: float
    ticks: int
    ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.directory / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """The record by which another command finds the process."""
        return self.directory / f"{self.name}.json"

    @property
    def alive(self) -> bool:
        """Whether the leader runs."""
        child = _started.get(self.token)
        if child is not None and child.poll() is not None:
            return False
        return ticks(self.pid) == self.ticks

    def members(self) -> list[int]:
        """Pids of the leader and of every descendant that lives."""
        return marked(self.token)

    def kill(self) -> None:
        """Ends the process and its children at once (SIGKILL), as a crash would; the pid file stays."""
        kill_marked(self.token)
        _reap(self.token)

    def stop(self, grace: float = 10.0) -> None:
        """Ends the process: SIGTERM, after ``grace`` seconds SIGKILL, and its children with it; removes the pid file."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            poll(lambda: not self.alive, grace, 0.05)
        self.kill()
        self.pid_file.unlink(missing_ok=True)

    def tail(self, lines: int = 8) -> str:
        """The last lines that it printed."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    def wait_ready(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits until ``ready()``.

        Raises:
          UserError: it ended, or is not ready in time; names the log.
        """
        ended = False

        def settled() -> bool:
            nonlocal ended
            ended = not self.alive
            return ended or ready()

        if not poll(settled, seconds) or ended:
            state = "ended at its start" if ended else f"does not answer after {seconds:.0f} s"
            raise UserError(f"{what} {state}; its log is {self.log}, last lines:\n{self.tail()}")


def start(directory: Path, name: str, command: Sequence[str], *, ports: Mapping[str, int] | None = None,
          environment: Mapping[str, str] | None = None, parent: int = 0) -> Process:
    """Starts a process that outlives this one; with ``parent`` it is killed as soon as the process of that pid is gone.

    Raises:
      UserError: its program is not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    with (directory / f"{name}.log").open("ab") as log:
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                     start_new_session=True, cwd=directory,
                                     env={**os.environ, **(environment or {}), MARK: token})
        except FileNotFoundError as error:
            raise UserError(f"cannot start {name}: no program {command[0]}") from error
    _started[token] = child
    if parent:
        _guard(token, parent)
    process = Process(name, directory, child.pid, token, time.time(), ticks(child.pid) or 0, dict(ports or {}))
    record = {k: v for k, v in asdict(process).items() if k not in ("directory", "name")}
    write_atomically(process.pid_file, json.dumps(record).encode())
    return process


def find(directory: Path, name: str) -> Process | None:
    """The process that a pid file describes, alive or not; None without one."""
    try:
        return Process(name, directory, **json.loads((directory / f"{name}.json").read_text()))
    except FileNotFoundError:
        return None


def poll(done: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Asks ``done()`` until it is true; False when ``seconds`` are over first."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def marked(token: str) -> list[int]:
    """Pids of the living processes that were started, directly or not, under a token."""
    mark = f"{MARK}={token}".encode()
    found = []
    for folder in _processes():
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0") and ticks(int(folder.name)) is not None:
                found.append(int(folder.name))
    return found


def kill_marked(token: str) -> None:
    """SIGKILL to every process under a token, until none is left."""
    for _ in range(50):  # one may start another meanwhile
        pids = marked(token)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes() -> Iterator[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())


def resident_mib(pid: int) -> int:
    """Memory of a process in MiB; 0 when it is gone."""
    with contextlib.suppress(OSError):
        pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20
    return 0


def ticks(pid: int) -> int | None:
    """Start time of a living process, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _reap(token: str) -> None:
    child = _started.pop(token, None)
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)


def _guard(token: str, parent: int) -> None:
    """Has a token's processes killed when ``parent`` is gone, however it goes.

    Not PR_SET_PDEATHSIG: it fires when the starting thread ends, spares grandchildren, and needs code between fork and exec.
    """
    guard = _guards.get(parent)
    if guard is None or guard.poll() is not None:
        guard = subprocess.Popen([sys.executable, "-m", "beam_pipelines.services.guard", str(parent), str(ticks(parent) or 0)],
                                 stdin=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).parents[2])
        _guards[parent] = guard
    assert guard.stdin is not None
    guard.stdin.write(token.encode() + b"\n")
    guard.stdin.flush()
