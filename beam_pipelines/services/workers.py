"""Python workers of a Flink cluster: Beam's own pool and harness, with state that costs fewer round trips.

As they are, each read of a bucket's marker is a round trip to the TaskManager (the pool has no flag for the harness's cache),
and when a bundle ends each write is awaited before the next is sent: 16 buckets are 48 round trips, one after another. Beam's
cache would help with the reads, but it weighs what it holds by walking all loaded modules: a third of a worker's time. And the
thread that samples which step is at work sleeps ever longer while a bundle is open, and its end waits for the sleeper: a bundle
of 300 ms for 30 more, at each of a job's stages. What a worker frees it keeps: columns come and go with each bundle.

``python -m beam_pipelines.services.workers --port N`` is a pool; with ``--worker ID --control HOST:PORT`` one of its workers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker import statesampler
from apache_beam.runners.worker.sdk_worker import GlobalCachingStateHandler, GrpcStateHandlerFactory, SdkHarness
from apache_beam.runners.worker.statecache import StateCache, WeightedValue
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from serving.settled import KEEP_MEMORY

REMEMBERED = ("marker", "probe")
"""Names of small states of one value each, kept in memory once they were read; no other is."""
_WEIGHT = 256
_CACHE_BYTES = 64 << 20
_TURN_S = 0.0005
"""A stage that computes lets the others, and the thread that writes, have a turn so often; by default ten times as rarely."""


class Answered:
    """Stands for a write's answer, which is awaited later."""

    def get(self, timeout: float | None = None) -> None:
        """See Beam's futures."""


class PatientState(GlobalCachingStateHandler):  # type: ignore[misc]
    """State of which only REMEMBERED is cached, and whose writes are awaited together, when the bundle ends."""

    @contextlib.contextmanager
    def process_instruction_id(self, bundle_id: str, cache_tokens: Iterable[Any]) -> Iterator[None]:
        """See CachingStateHandler. Raises RuntimeError when a write was refused."""
        sent: list[Any] = []
        self._context.sent = sent
        with super().process_instruction_id(bundle_id, cache_tokens):
            yield
            for answer in sent:
                if (error := getattr(answer.get(), "error", None)):
                    raise RuntimeError(f"state could not be written: {error}")

    def extend(self, state_key: Any, coder: Any, elements: Iterable[Any]) -> Any:
        """See CachingStateHandler."""
        self._context.sent.append(super().extend(state_key, coder, elements))
        return Answered()

    def clear(self, state_key: Any) -> Any:
        """See CachingStateHandler."""
        self._context.sent.append(super().clear(state_key))
        return Answered()

    def _get_cache_token(self, state_key: Any) -> Any:
        if state_key.HasField("bag_user_state") and state_key.bag_user_state.user_state_id not in REMEMBERED:
            return None
        return super()._get_cache_token(state_key)


class _Cache(StateCache):  # type: ignore[misc]
    def put(self, key: Any, value: Any) -> None:
        super().put(key, value if isinstance(value, WeightedValue) else WeightedValue(value, _WEIGHT))


class _States(GrpcStateHandlerFactory):  # type: ignore[misc]
    def create_state_handler(self, api_service_descriptor: Any) -> Any:
        made = super().create_state_handler(api_service_descriptor)
        if type(made) is GlobalCachingStateHandler:
            with self._lock:
                made = PatientState(self._state_cache, made._underlying)
                self._state_handler_cache[api_service_descriptor.url] = made
        return made


class Unsampled(statesampler.StateSampler):  # type: ignore[misc]
    """Keeps track of the step at work, for counters, and samples none: the milliseconds that Beam reports of steps stay 0."""

    def start(self) -> None:
        """See StateSampler."""
        self.tracked_thread = threading.current_thread()
        statesampler.set_current_tracker(self)
        self.started = True

    def stop(self) -> None:
        """See StateSampler."""
        statesampler.set_current_tracker(None)
        self.finished = True


class Worker(SdkHarness):  # type: ignore[misc]
    """Beam's harness with that state, and without a sampler; there is one in a process."""

    def __init__(self, control: str, worker_id: str) -> None:
        statesampler.StateSampler = Unsampled
        sys.setswitchinterval(_TURN_S)
        super().__init__(control, worker_id=worker_id, data_buffer_time_limit_ms=-1)
        self._state_cache = _Cache(_CACHE_BYTES)
        self._state_handler_factory = _States(self._state_cache, worker_id=worker_id)
        self._bundle_processor_cache.state_handler_factory = self._state_handler_factory


class Pool(BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """Starts a Worker, a process of its own, for each that a runner asks for."""

    def StartWorker(self, start_worker_request: Any, unused_context: Any) -> Any:  # noqa: N802
        """See Beam's pool."""
        worker, control = start_worker_request.worker_id, start_worker_request.control_endpoint.url
        try:
            self._worker_processes[worker] = subprocess.Popen(
                [sys.executable, "-m", "beam_pipelines.services.workers", "--worker", worker, "--control", control],
                env={**KEEP_MEMORY, **os.environ})
        except OSError:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        return beam_fn_api_pb2.StartWorkerResponse()


def main(argv: list[str] | None = None) -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description="Workers for Beam's EXTERNAL environment.")
    parser.add_argument("--port", type=int, help="of the pool")
    parser.add_argument("--worker", metavar="ID", help="be this worker")
    parser.add_argument("--control", metavar="HOST:PORT", help="of its runner")
    args = parser.parse_args(argv)
    if args.worker is not None:
        Worker(args.control, args.worker).run()
        return
    _, server = Pool.start(use_process=True, port=args.port)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
