"""A pool of Python workers for a Flink cluster: Beam's own, whose workers remember state that they have read.

Beam's command for it (``apache_beam.runners.worker.worker_pool_main``) has no flag for that and starts workers without: then
each read of a bucket's marker is a round trip to the TaskManager, and a bundle of 16 buckets waits for 16, one by one.
"""

from __future__ import annotations

import argparse

from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer


def main(argv: list[str] | None = None) -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description="Workers for Beam's EXTERNAL environment.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state-cache-mib", type=int, default=64, help="of each worker (default: 64)")
    args = parser.parse_args(argv)
    _, server = BeamFnExternalWorkerPoolServicer.start(use_process=True, port=args.port,
                                                       state_cache_size=args.state_cache_mib << 20)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
