"""Per user and day: counts by event type, dwell, prices. Per user: the first event of all."""

from __future__ import annotations

import numpy as np

from schemas.event_types import EVENT_TYPES, NAMES
from schemas.features import COUNT_WINDOWS
from transforms.accumulators.base import Accumulator, Extract
from transforms.accumulators.events import MICRO, Events
from transforms.accumulators.frame import Frame, Ids, Ints, Spec
from transforms.accumulators.kernels import max_groups, min_groups, sum_groups

_NONE_MIN, _NONE_MAX = np.iinfo(np.int64).max, np.iinfo(np.int64).min


class UserDays(Accumulator):
    """Rows per (user, day), so that a window is a choice of rows and nothing has to be taken back out of a minimum."""

    NAME, ENTITY, WINDOW = "user_days", "user", 30
    SPEC = Spec(sums=(*NAMES, "dwell_sum", "dwell_n", "price_sum", "price_n"), minima=("price_min",), maxima=("price_max",))
    COLUMNS = ("user_id", "item_id", "event_type", "occurred_at", "dwell_ms", "price")

    def rows(self, events: Events) -> Frame:
        """See Accumulator."""
        has_dwell, dwell = events.dwell
        has_price, price = events.price
        priced = has_price & events.interacts
        values: dict[str, Ints] = {name: (events.type == code).astype(np.int64) for code, name in enumerate(NAMES)}
        values |= {
            "dwell_sum": dwell, "dwell_n": has_dwell.astype(np.int64),
            "price_sum": np.where(priced, price, 0), "price_n": priced.astype(np.int64),
            "price_min": np.where(priced, price, _NONE_MIN), "price_max": np.where(priced, price, _NONE_MAX),
        }
        day = events.day
        if len(day) and (day == day[0]).all():  # the usual batch holds one day: group by user alone, in a small rectangle
            frame = Frame.build(self.SPEC, events.users, events.user, Ids.empty(), np.zeros_like(day), values)
            return Frame(frame.entities, frame.members, frame.keys | day[0], frame.values)
        return Frame.build(self.SPEC, events.users, events.user, Ids.empty(), day, values)

    def prune(self, as_of: int) -> None:
        """See Accumulator."""
        frame = self.frame
        self._frames = [frame.where((frame.keys & 0xFFFFFFFF) >= as_of - self.WINDOW, self.SPEC)]

    def extract(self, as_of: int) -> Extract:
        """Counts by type and window, mean dwell (7 days), active days, price mean and range (30 days)."""
        frame = self.frame
        age = as_of - (frame.keys & 0xFFFFFFFF)
        frame = frame.where((age >= 1) & (age <= 30), self.SPEC)
        age, user, n = as_of - (frame.keys & 0xFFFFFFFF), frame.keys >> 32, len(frame.entities)
        columns = {}
        for days in COUNT_WINDOWS:
            inside = np.flatnonzero(age <= days)
            for name in NAMES:
                columns[f"count_{name}_{days}d"] = sum_groups(user[inside], frame.values[name][inside], n).astype(float)
            if days == 7:
                dwell = sum_groups(user[inside], frame.values["dwell_sum"][inside], n)
                columns["dwell_mean_7d"] = mean(dwell, sum_groups(user[inside], frame.values["dwell_n"][inside], n))
        active = np.zeros(len(frame), np.int64)
        for kind in EVENT_TYPES:
            if kind.weight > 0:
                active |= frame.values[kind.name] > 0
        columns["active_days_30d"] = sum_groups(user, active, n).astype(float)
        priced = sum_groups(user, frame.values["price_n"], n)
        columns["price_mean_30d"] = mean(sum_groups(user, frame.values["price_sum"], n), priced) / MICRO
        low, high = min_groups(user, frame.values["price_min"], n), max_groups(user, frame.values["price_max"], n)
        columns["price_min_30d"] = np.where(priced > 0, low / MICRO, np.nan)
        columns["price_max_30d"] = np.where(priced > 0, high / MICRO, np.nan)
        return Extract(frame.entities, columns)


class UserSeen(Accumulator):
    """The time of each user's first event of any type."""

    NAME, ENTITY = "user_seen", "user"
    SPEC = Spec(minima=("first",))
    COLUMNS = ("user_id", "occurred_at")

    def rows(self, events: Events) -> Frame:
        """See Accumulator."""
        return Frame.build(self.SPEC, events.users, events.user, Ids.empty(), np.zeros(len(events), np.int64),
                           {"first": events.time})


def mean(total: Ints, count: Ints) -> np.ndarray:
    """total / count, NaN where count is 0."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
