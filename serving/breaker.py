"""A circuit breaker per dependency: while one fails, requests do without it at once instead of each waiting for it.

closed: calls go through. After ``failures`` failures in a row, or when half of the last WINDOW calls failed, it is open: no
call goes through for a pause that doubles with each failed probe (jittered, so that workers do not probe together). Then it
is half open: one call at a time is let through as a probe; a good one closes it, a bad one opens it again.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "half_open", "open"]
STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""As a metric, a state is its position here."""
WINDOW = 32
"""Calls over which the share of failures is taken."""


@dataclass(frozen=True)
class BreakerSettings:
    """When a breaker opens and how it probes.

    Attributes:
      failures: in a row that open it.
      pause_s: before the first probe; doubles with each bad one up to ``max_pause_s``.
      jitter: a pause is stretched at random by up to this share.
      probe_s: a probe that has not reported after this long counts as lost, and another may go.
    """

    failures: int = 3
    pause_s: float = 0.25
    max_pause_s: float = 1.0
    jitter: float = 0.5
    probe_s: float = 1.0


class Breaker:
    """Guards one dependency of one worker; used by one event loop or one thread, so without locks.

    Args:
      name: of the dependency, for logs and metrics.
      on_change: told (name, state) whenever the state changes.
      clock: monotonic seconds.
    """

    def __init__(self, name: str, settings: BreakerSettings | None = None,
                 on_change: Callable[[str, State], None] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.opened = 0
        """How often it has opened."""
        self._settings, self._on_change, self._clock = settings or BreakerSettings(), on_change, clock
        self._state: State = "closed"
        self._in_a_row = 0
        self._last = deque[bool](maxlen=WINDOW)
        self._pause = self._settings.pause_s
        self._until = 0.0  # open: when to probe; half open: when the probe counts as lost

    @property
    def state(self) -> State:
        """closed, half_open or open."""
        return self._state

    def allows(self) -> bool:
        """Whether a call may be made now; whoever is told so reports ``ok`` or ``failed``."""
        if self._state == "closed":
            return True
        now = self._clock()
        if now < self._until:
            return False
        self._until = now + self._settings.probe_s
        self._become("half_open")
        return True

    @property
    def pause_s(self) -> float:
        """Seconds until a call may be made; 0: now."""
        return 0.0 if self._state == "closed" else max(0.0, self._until - self._clock())

    def ok(self) -> None:
        """A call went well; what was sent before it opened does not close it."""
        if self._state == "closed":
            self._in_a_row = 0
            self._last.append(True)
        elif self._state == "half_open":
            self._in_a_row, self._pause = 0, self._settings.pause_s
            self._last.clear()
            self._become("closed")

    def failed(self) -> None:
        """A call failed or took too long."""
        if self._state == "open":
            return
        if self._state == "half_open":
            self._pause = min(2 * self._pause, self._settings.max_pause_s)
            self._open()
            return
        self._in_a_row += 1
        self._last.append(False)
        mostly = len(self._last) == WINDOW and 2 * self._last.count(False) >= WINDOW
        if self._in_a_row >= self._settings.failures or mostly:
            self._open()

    def _open(self) -> None:
        self._until = self._clock() + self._pause * (1 + self._settings.jitter * random.random())
        self.opened += 1
        self._become("open")

    def _become(self, state: State) -> None:
        if state != self._state:
            self._state = state
            if self._on_change is not None:
                self._on_change(self.name, state)
