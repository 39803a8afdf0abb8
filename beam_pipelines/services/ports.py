"""Ports: a free one, whether one is taken, whether one answers, a socket that listens on one."""

from __future__ import annotations

import socket

from beam_pipelines.errors import UserError

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def claim(port: int, what: str, flag: str) -> int:
    """The port, checked, or a free one for 0.

    Raises:
      UserError: something listens there already.
    """
    if port == 0:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} for {what} is taken ({error.strerror}); choose another with {flag} PORT, "
                            "0 for a free one") from error
    return port


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens on a port, on a free one for 0; raises UserError when that cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=backlog)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def serves_grpc(address: str, seconds: float = 2.0) -> bool:
    """Whether a gRPC server answers at HOST:PORT."""
    if not answers(int(address.rpartition(":")[2])):
        return False
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            return False
    return True
