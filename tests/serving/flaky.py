"""A gRPC proxy that passes bytes on to a real server and fails as told: a fault of the network, not of the server."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

CALL = "call"  # fails before the server hears of it
ANSWER = "answer"  # fails after the server's first answer, which is lost
BREAK = "break"  # fails after the server's first answer, which arrives


class Flaky(grpc.GenericRpcHandler):
    """``faults[method]`` is a queue of how the next calls of a method fail; ``calls`` counts them all; ``refuse``: a request
    that holds these bytes is invalid."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self.faults: dict[str, collections.deque[str]] = collections.defaultdict(collections.deque)
        self.calls: collections.Counter[str] = collections.Counter()
        self.refuse: bytes | None = None

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Every method is a stream of bytes here, unary ones are streams of one."""
        name = details.method.rpartition("/")[2]

        def forward(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls[name] += 1
            if self.refuse is not None and self.refuse in request:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "injected")
            fault = self.faults[name].popleft() if self.faults[name] else None
            if fault == CALL:
                context.abort(grpc.StatusCode.UNAVAILABLE, "injected")
            try:
                for answer in self._channel.unary_stream(details.method)(request, timeout=context.time_remaining()):
                    if fault != ANSWER:
                        yield answer
                    if fault in (ANSWER, BREAK):
                        context.abort(grpc.StatusCode.UNAVAILABLE, "injected")
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_stream_rpc_method_handler(forward)


@contextlib.contextmanager
def between(target: str) -> Iterator[tuple[Flaky, str]]:
    """(the proxy, its address) of one that forwards to ``target``."""
    proxy = Flaky(target)
    server = grpc.server(ThreadPoolExecutor(16), handlers=[proxy])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield proxy, f"127.0.0.1:{port}"
    finally:
        server.stop(0)
