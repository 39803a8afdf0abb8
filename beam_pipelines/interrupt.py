"""Ctrl-C and SIGTERM: a command ends what it started, says so in one line, and its exit code is 130."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType


def handle() -> None:
    """From now on either signal raises KeyboardInterrupt in the main thread; else what a command started would outlive it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Runners end before Beam's and gRPC's threads, each of which would tell of the call that it lost.
    threading.excepthook = _nothing
    for name in ("apache_beam", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    raise KeyboardInterrupt


def _nothing(_: threading.ExceptHookArgs) -> None:
    pass
