"""A worker: answers on the connections that deal.py hands to it, in one thread, until it is told to end or its parent is gone.

``python -m serving.server.worker MODULE:FACTORY FD``; FD is one end of a pair of sockets. It receives a connection with each
byte that comes, says ``READY`` once it can answer, ``ALIVE`` every second, ``CLOSED`` for each connection that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib
import logging.config
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, cast

from uvicorn import Config, Server

from serving.logs import log_config
from serving.server.deal import ALIVE, CLOSED, READY
from serving.server.protocol import Connection, Later

GRACE_S = 8.0
"""Requests under way when a worker is told to end may take so long."""
SWITCH_S = 0.0005
"""A thread beside the loop (the log's, the store's) hands the interpreter back within this time; Python's own 5 ms are the
latency of a whole request."""
_SWEEP_TICKS = 10


class _Told:
    """Of a connection the parent hears when it ends."""

    channel: socket.socket

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # type: ignore[misc]
        with contextlib.suppress(OSError):  # the parent is gone
            self.channel.send(CLOSED)


class Worker(Server):
    """uvicorn's server, its connections those that come over a channel."""

    def __init__(self, config: Config, channel: socket.socket, kind: type[Connection]) -> None:
        super().__init__(config)
        self._channel = channel
        self._kind: Any = type(kind.__name__, (_Told, kind), {})

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await super().startup([])
        loop = asyncio.get_running_loop()
        self._later = Later(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._take)
        self._channel.send(READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        asyncio.get_running_loop().remove_reader(self._channel)
        await super().shutdown()

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn.Server."""
        if counter % _SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                connection.sweep(now)  # type: ignore[union-attr]
            with contextlib.suppress(OSError):  # the parent is gone, or has not listened for long
                self._channel.send(ALIVE)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """Signals are the loop's, from startup on."""
        yield

    def _end(self) -> None:
        self.should_exit = True

    def _take(self) -> None:
        """Takes the connections that have come."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                said, fds, _, _ = socket.recv_fds(self._channel, 1, 8)
            except BlockingIOError:
                return
            except OSError:
                said, fds = b"", []
            for fd in fds:
                task = loop.create_task(self._connect(socket.socket(fileno=fd)))
                self.server_state.tasks.add(task)
                task.add_done_callback(self.server_state.tasks.discard)
            if not said:  # the parent is gone
                loop.remove_reader(self._channel)
                self._end()
                return

    async def _connect(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._connection, accepted)
        except OSError:
            accepted.close()
            self._channel.send(CLOSED)

    def _connection(self) -> Connection:
        made: Any = self._kind(self.config, self.server_state, self.lifespan.state)
        made.channel, made.later = self._channel, self._later
        return cast(Connection, made)


def run(factory: str, fd: int) -> None:
    """Serves until it is told to end."""
    faulthandler.enable()
    logging.config.dictConfig(log_config())
    sys.setswitchinterval(SWITCH_S)
    module, _, name = factory.partition(":")
    app: Any = getattr(importlib.import_module(module), name)()
    kind: type[Connection] = getattr(app, "connection", Connection)  # an application may have a kind of its own
    config = Config(app, http=kind, ws="none", loop="auto", lifespan="on", interface="asgi3", log_config=None,
                    access_log=False, proxy_headers=False, server_header=False, timeout_graceful_shutdown=round(GRACE_S))
    Worker(config, socket.socket(fileno=fd), kind).run()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
