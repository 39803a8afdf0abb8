"""Waiting for a lake that is away: a catalog or a disk that answers again later loses nothing."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException, ServiceUnavailableError
from sqlalchemy.exc import OperationalError

AWAY = (OSError, OperationalError, CommitFailedException, CommitStateUnknownException, ServiceUnavailableError)
_LONGEST_WAIT_S = 30.0
_LAST_TRIES = 3

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


def patiently(call: Callable[[], T], stop: threading.Event) -> T:
    """Calls ``call`` until the lake takes it, with pauses of 0.5 to 30 s; it must be harmless to repeat.

    Raises:
      OSError, OperationalError, CommitFailedException, ...: the lake is still away some tries after ``stop`` was set.
    """
    attempt = 0
    while True:
        try:
            return call()
        except AWAY as error:
            wait = min(0.5 * 2 ** min(attempt, 10), _LONGEST_WAIT_S) * random.uniform(0.5, 1)
            _LOG.warning("the lake is away (%s); next try in %.1f s", type(error).__name__, wait)
            attempt += 1
            if stop.wait(wait) and attempt >= _LAST_TRIES:
                raise
