"""The events of a World as they happen now: sessions that begin all the time, each event due at its moment.

The process is stationary from its first second: sessions of the past minutes are drawn too, and what they still bring about
comes when it is due. Users and items are those of the world's history; of those who are yet to sign up one does now and
then. What would happen more than HORIZON after a session began (purchases days later) is left out.
"""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from beam_pipelines.simulate.behaviour import MINUTE, SECOND, Behaviour, Rows, Shelves, event_rows
from beam_pipelines.simulate.world import I32, World, generator

HORIZON = 20 * MINUTE
SLOT = 2 * SECOND
"""Sessions are drawn, and events sorted, for so much time at once."""
_PILOT = 2_000  # sessions from which the events per session are told
_WARM, _WARM_EVENTS = 15 * MINUTE, 5_000_000  # past sessions: with very high rates fewer, the first minutes are thinner
_NEWCOMERS = 0.002  # of sessions are those of somebody who signs up
_LATE_MEAN = 3 * MINUTE
_ADAPT = 0.05
_AGAIN = 10 * SECOND  # until a copy is sent


class LiveWorld:
    """Draws what happens; call ``due`` for later and later moments.

    Args:
      world: its users and items are shown as at the end of its days.
      rate: events per second to aim at.
      start: the first moment, microseconds. Another start gives other events and other ids.
    """

    def __init__(self, world: World, rate: float, start: int) -> None:
        if not 0 < rate <= 10_000_000:
            raise ValueError(f"rate must be above 0 and at most 10,000,000, not {rate:g}")
        shelves = Shelves.at(world, world.end)
        known = np.flatnonzero(world.user_born[: world.spec.users] < world.end)
        if shelves is None or not len(known):
            raise ValueError("nobody or nothing is alive in this world any more")
        self._world, self._rate, self._shelves = world, rate, shelves
        self._rng = generator(world.spec, 3000, start)
        self._behaviour = Behaviour(world)
        self._known = known.astype(np.int32)
        self._edges = np.cumsum(world.user_activity[known].astype(np.float64) + 1e-9)
        born = world.user_born[: world.spec.users]
        unborn = np.flatnonzero(born >= world.end)
        self._newcomers = list(unborn[np.argsort(born[unborn], kind="stable")][::-1])
        self._number = (1 << 62) + start  # ids of history lie far below; a later start leaves this one's ids behind
        self._session = (1 << 61) + start
        self._slots: dict[int, list[Rows]] = {}
        self._drawn_until = self._done_until = start
        pilot = Rows.concat(Behaviour(world).sessions(self._rng, 0, self._users(_PILOT), np.zeros(_PILOT, np.int64), shelves))
        self._per_session = max(1.0, float((pilot.at < HORIZON).sum()) / _PILOT)
        warm = int(min(_WARM, _WARM_EVENTS / rate * SECOND))
        for begin in range(start - warm, start, 10 * SLOT):
            self._draw(begin, min(begin + 10 * SLOT, start), start)

    def due(self, until: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """The events to be sent from the last call's moment up to ``until``, in that order, and which of them are copies.

        An event that comes late was due earlier by its ``lag``: ``at`` is when it happened.
        """
        while self._drawn_until < until:
            self._draw(self._drawn_until, self._drawn_until + SLOT, self._drawn_until)
            self._drawn_until += SLOT
        slots = range(self._done_until // SLOT, (until - 1) // SLOT + 1)
        parts = [part for slot in slots for part in self._slots.get(slot, [])]
        for slot in range(self._done_until // SLOT, until // SLOT):
            self._slots.pop(slot, None)
        rows = Rows.concat(parts) if parts else event_rows(0, "view", np.zeros(0, np.int32), np.zeros(0, np.int64))
        sent = rows.at + rows.lag
        rows = rows.take(np.flatnonzero((sent >= self._done_until) & (sent < until)))
        rows = rows.take(np.argsort(rows.at + rows.lag, kind="stable"))
        self._done_until = until
        copies = rows.number < 0
        rows.number = np.abs(rows.number)
        return rows, copies

    def _draw(self, begin: int, end: int, earliest: int) -> None:
        """Puts what sessions that begin in [begin, end) bring about from ``earliest`` on into the slots it is due in."""
        rng = self._rng
        n = int(rng.poisson(self._rate / self._per_session * (end - begin) / SECOND))
        users, starts = self._users(n), rng.integers(begin, end, n)
        fresh = np.flatnonzero((rng.random(n) < _NEWCOMERS) & (starts >= earliest))[: len(self._newcomers)]
        users[fresh] = [self._newcomers.pop() for _ in fresh]
        parts = [event_rows(len(fresh), "signup", users[fresh], starts[fresh], device=self._world.user_device[users[fresh]])]
        parts += self._behaviour.sessions(rng, self._session, users, starts, self._shelves) if n else []
        self._session += 12 * n
        rows = Rows.concat(parts)
        rows.number = self._number + np.arange(len(rows))
        self._number += len(rows)
        rows = rows.take(np.flatnonzero(rows.at < begin + HORIZON))
        if n:  # nobody clicks an item twice, so sessions become a little shorter
            self._per_session += _ADAPT * (len(rows) / n - self._per_session)
        rows = self._delayed(rows)
        self._put(rows.take(np.flatnonzero(rows.at + rows.lag >= earliest)))

    def _delayed(self, rows: Rows) -> Rows:
        """Some come late and some a second time (with a negative number), as the world's spec says."""
        rng, spec, n = self._rng, self._world.spec, len(rows)
        rows.lag = np.where(rng.random(n) < spec.late, rng.exponential(_LATE_MEAN, n), 0).astype(np.int64).clip(0, HORIZON)
        again = rows.take(np.flatnonzero(rng.random(n) < spec.duplicates))
        again.number, again.lag = -again.number, again.lag + _AGAIN
        return Rows.concat([rows, again])

    def _put(self, rows: Rows) -> None:
        slot = (rows.at + rows.lag) // SLOT
        order = np.argsort(slot, kind="stable")
        rows, slot = rows.take(order), slot[order]
        bounds = [*np.flatnonzero(np.diff(slot, prepend=-1)).tolist(), len(slot)]
        for a, b in itertools.pairwise(bounds):
            part = Rows(*(getattr(rows, f.name)[a:b].copy() for f in fields(Rows)))  # a view would keep all rows
            self._slots.setdefault(int(slot[a]), []).append(part)

    def _users(self, n: int) -> I32:
        """Users by how active they are."""
        point = self._rng.random(n) * self._edges[-1]
        return self._known[np.searchsorted(self._edges, point, side="right").clip(max=len(self._known) - 1)]
