"""Accepts connections and gives each to the worker that holds the fewest; starts workers, and those that die anew.

Kernels deal connections out by a hash (SO_REUSEPORT), 53 to 75 of 128, or to whoever wakes first, all to one: the worker that
has more than its share answers late while another idles. A balancer that keeps four connections to two workers gives each two.
A connection is handed over as it was accepted, before a byte of it is read.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from serving.logs import LOGGER

READY, CLOSED, ALIVE = b"r", b"-", b"a"
"""What a worker says over its channel: it can answer; a connection has ended; its loop turns (once a second)."""
HANGS_S = 60.0
"""A worker that has answered and then says nothing for so long is replaced."""
BACKLOG = 1024
KILL_S = 10.0
"""Workers that are told to end and do not are killed after this long."""
PAUSE_S, MAX_PAUSE_S = 0.5, 10.0
"""Before a worker is started again, doubled while it dies before it is ready."""
_ACCEPTS = 64
_log = logging.getLogger(LOGGER)


@dataclass(eq=False)
class _Worker:
    """One process and this end of the channel to it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    ready: bool = False
    connections: int = 0
    dealt: int = 0
    heard: float = 0.0
    aborted: bool = False


class Dealer:
    """The process that accepts.

    Args:
      listening: the socket.
      factory: MODULE:FUNCTION that makes the application in a worker; settings travel in the environment.
      workers: processes that answer.
      hangs_s: see HANGS_S.
    """

    def __init__(self, listening: socket.socket, factory: str, workers: int, hangs_s: float = HANGS_S) -> None:
        self._listening, self._factory, self._hangs_s = listening, factory, hangs_s
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._many = workers
        self._missing: list[float] = []  # when to start each worker that is not there
        self._pause = PAUSE_S
        self._looked = time.monotonic()
        self._ever_ready = self._ending = self._accepting = self._failed = False

    def run(self) -> int:
        """Serves until SIGTERM or SIGINT; 1 where no worker could be started."""
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        signal.signal(signal.SIGCHLD, _nothing)
        self._selector.register(woken, selectors.EVENT_READ)
        self._listening.setblocking(False)
        try:
            for _ in range(self._many):
                self._start()
            while not self._ending:
                found = self._selector.select(self._wait())
                for key, _ in found:
                    if key.fileobj is self._listening:
                        self._accept()
                    elif key.fileobj is woken:
                        with contextlib.suppress(BlockingIOError):
                            woken.recv(4096)
                    else:
                        self._hear(key.data)
                self._end_hanging()
                self._bury()
        finally:
            self._end()
        return int(self._failed)

    def _told_to_end(self, *_: object) -> None:
        self._ending = True

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # in a group of its own: Ctrl-C is for this process, which then tells the workers
                [sys.executable, "-m", "serving.server.worker", self._factory, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0)
        ours.setblocking(False)
        worker = _Worker(process, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _wait(self) -> float:
        """Seconds until something is due."""
        return max(0.0, min([at - time.monotonic() for at in self._missing], default=self._hangs_s / 4))

    def _hear(self, worker: _Worker) -> None:
        """What a worker says."""
        try:
            said = worker.channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:  # it is dead, or about to be
            self._forget(worker)
        worker.heard = time.monotonic()
        worker.connections -= said.count(CLOSED)
        if READY in said:
            worker.ready = self._ever_ready = True
            self._pause = PAUSE_S
        self._accept_or_not()

    def _forget(self, worker: _Worker) -> None:
        """A worker whose channel is closed gets no more connections."""
        worker.ready = False
        if worker.channel.fileno() >= 0:
            self._selector.unregister(worker.channel)
            worker.channel.close()

    def _accept_or_not(self) -> None:
        """Connections wait in the kernel while nobody can answer."""
        may = any(worker.ready for worker in self._workers)
        if may and not self._accepting:
            self._selector.register(self._listening, selectors.EVENT_READ)
        elif not may and self._accepting:
            self._selector.unregister(self._listening)
        self._accepting = may

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                accepted, _address = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no file descriptors are left
                _log.warning("cannot accept", extra={"fields": {"detail": str(error)}})
                time.sleep(0.05)
                return
            with accepted:
                with contextlib.suppress(OSError):
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._deal(accepted)

    def _deal(self, accepted: socket.socket) -> None:
        """Gives a connection to the worker that holds the fewest, of equal ones to the one that was given the fewest."""
        for worker in sorted((w for w in self._workers if w.ready), key=_load):
            try:
                socket.send_fds(worker.channel, [b"c"], [accepted.fileno()])
            except BlockingIOError:  # it has not taken hundreds yet
                continue
            except OSError:
                self._forget(worker)
                continue
            worker.connections += 1
            worker.dealt += 1
            return

    def _end_hanging(self) -> None:
        """Aborts a worker whose loop stands still, so that it tells where on stderr; kills one that does not heed that."""
        now, looked = time.monotonic(), self._looked
        self._looked, heard = now, [w for w in self._workers if w.heard]
        if now - looked > self._hangs_s / 2:  # all of us were stopped, wherever this one was: no worker could say anything
            for worker in heard:
                worker.heard = now
        for worker in [w for w in heard if now - w.heard > self._hangs_s]:
            if not worker.aborted:
                _log.error("worker hangs", extra={"fields": {"pid": worker.process.pid, "seconds": round(now - worker.heard)}})
                worker.process.send_signal(signal.SIGABRT)
                worker.aborted = True
                self._forget(worker)
                self._accept_or_not()
            elif now - worker.heard > 1.25 * self._hangs_s:
                worker.process.kill()

    def _bury(self) -> None:
        """Starts a new worker for each that has died."""
        now = time.monotonic()
        for worker in [w for w in self._workers if w.process.poll() is not None]:
            self._forget(worker)
            self._workers.remove(worker)
            _log.error("worker died", extra={"fields": {"pid": worker.process.pid, "status": worker.process.returncode}})
            if not self._ever_ready:  # settings or surroundings are wrong: the next one would die as well
                self._failed = self._ending = True
                return
            self._missing.append(now + self._pause)
            self._pause = min(2 * self._pause, MAX_PAUSE_S)
            self._accept_or_not()
        for due in [at for at in self._missing if at <= now]:
            self._missing.remove(due)
            self._start()

    def _end(self) -> None:
        """Ends the workers: requests under way first."""
        self._listening.close()
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + KILL_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.channel.close()
        self._selector.close()


def _load(worker: _Worker) -> tuple[int, int]:
    return worker.connections, worker.dealt


def _nothing(*_: object) -> None:
    """A handler of its own lets a signal wake the selector."""
