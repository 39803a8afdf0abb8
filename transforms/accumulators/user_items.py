"""Per user and item: the last interaction, the last positive one, the last that consumed it. Lifetime, newest kept."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from schemas.features import CONSUMED_CAP, LAST_ITEMS_CAP
from schemas.workspace import DAY_MICROS
from transforms.accumulators.base import Accumulator, Extract, Lists
from transforms.accumulators.events import Events
from transforms.accumulators.frame import LOW, Frame, Spec
from transforms.accumulators.kernels import max_groups, newest, sum_groups


class _UserItems(Accumulator):
    """Time, tie and weight of the last event of a kind per (user, item); ties go to the larger hash64 of event_id."""

    ENTITY = "user"
    SPEC = Spec(last=("time", "tie", "weight"), has_members=True)
    COLUMNS: ClassVar[tuple[str, ...]] = ("user_id", "item_id", "event_type", "occurred_at", "event_hash")
    FEATURE: ClassVar[str]
    CAP: ClassVar[int]
    KEEP_DAYS: ClassVar[int] = 0

    def chosen(self, events: Events) -> npt.NDArray[np.bool_]:
        """Which events count."""
        raise NotImplementedError

    def rows(self, events: Events) -> Frame:
        """See Accumulator."""
        keep = self.chosen(events)
        values = {"time": events.time[keep], "tie": events.tie[keep], "weight": events.weight[keep]}
        return Frame.build(self.SPEC, events.users, events.user[keep], events.items, events.item[keep], values)

    def prune(self, as_of: int) -> None:
        """Keeps each user's newest CAP items, and those of the last KEEP_DAYS days: the rest can never return."""
        frame = self.frame
        keep = frame.values["time"] >= (as_of - self.KEEP_DAYS) * DAY_MICROS
        keep[newest(frame.offsets(), frame.values["time"], frame.values["tie"].view(np.uint64), self.CAP)[1]] = True
        self._frames = [frame.where(keep, self.SPEC)]

    def extract(self, as_of: int) -> Extract:
        """The newest CAP items of each user, newest first; scores are the weight of the item's last such event."""
        frame = self.frame
        time = frame.values["time"]
        bounds, rows = newest(frame.offsets(), time, frame.values["tie"].view(np.uint64), self.CAP)
        lists = Lists(bounds, frame.members.named(frame.keys[rows] & LOW), time[rows],
                      frame.values["weight"][rows].astype(np.float32))
        return Extract(frame.entities, {self.FEATURE: lists})


class UserLastItems(_UserItems):
    """Events of weight > 0. Items of the last 30 days are all kept: they are counted as distinct items."""

    NAME, FEATURE, CAP, KEEP_DAYS = "user_last_items", "last_items", LAST_ITEMS_CAP, 30

    def chosen(self, events: Events) -> npt.NDArray[np.bool_]:
        """See _UserItems."""
        return events.interacts

    def activity(self, as_of: int) -> Extract:
        """distinct_items_30d and recency_days."""
        frame = self.frame
        user, time, n = frame.keys >> 32, frame.values["time"], len(frame.entities)
        recent = (time >= (as_of - 30) * DAY_MICROS).astype(np.int64)
        return Extract(frame.entities, {
            "distinct_items_30d": sum_groups(user, recent, n).astype(float),
            "recency_days": (as_of * DAY_MICROS - max_groups(user, time, n)) / DAY_MICROS,
        })


class UserLikedItems(_UserItems):
    """Positive events (event_types)."""

    NAME, FEATURE, CAP = "user_liked_items", "liked_items", LAST_ITEMS_CAP
    COLUMNS = (*_UserItems.COLUMNS, "value")

    def chosen(self, events: Events) -> npt.NDArray[np.bool_]:
        """See _UserItems."""
        return events.positive


class UserConsumed(_UserItems):
    """Events that consume the item (event_types)."""

    NAME, FEATURE, CAP = "user_consumed", "consumed_items", CONSUMED_CAP

    def chosen(self, events: Events) -> npt.NDArray[np.bool_]:
        """See _UserItems."""
        return events.consumes
