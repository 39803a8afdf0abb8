"""Per item and day: weight, clicks, impressions, dwell. Per item: the first event and impressions of all time."""

from __future__ import annotations

import numpy as np

from schemas.event_types import CODES
from schemas.features import COUNT_WINDOWS
from schemas.workspace import DAY_MICROS
from transforms.accumulators.base import Accumulator, Extract, Globals
from transforms.accumulators.events import Events
from transforms.accumulators.frame import LOW, Frame, Ids, Spec
from transforms.accumulators.kernels import sum_groups
from transforms.accumulators.user_stats import mean

CTR_PRIOR = 20
"""Impressions' worth of the mean click-through that each item starts with."""


class ItemDays(Accumulator):
    """Rows per (item, day)."""

    NAME, ENTITY, WINDOW = "item_days", "item", 30
    SPEC = Spec(sums=("weight", "clicks", "impressions", "dwell_sum", "dwell_n"))
    COLUMNS = ("item_id", "event_type", "occurred_at", "dwell_ms")

    def rows(self, events: Events) -> Frame:
        """See Accumulator."""
        keep = events.item >= 0
        has_dwell, dwell = events.dwell
        values = {
            "weight": events.weight[keep], "clicks": (events.type == CODES["click"])[keep].astype(np.int64),
            "impressions": (events.type == CODES["impression"])[keep].astype(np.int64),
            "dwell_sum": dwell[keep], "dwell_n": has_dwell[keep].astype(np.int64),
        }
        day, item = events.day[keep], events.item[keep]
        if len(day) and (day == day[0]).all():
            frame = Frame.build(self.SPEC, events.items, item, Ids.empty(), np.zeros_like(day), values)
            return Frame(frame.entities, frame.members, frame.keys | day[0], frame.values)
        return Frame.build(self.SPEC, events.items, item, Ids.empty(), day, values)

    def prune(self, as_of: int) -> None:
        """See Accumulator."""
        self._frames = [self.frame.where((self.frame.keys & LOW) >= as_of - self.WINDOW, self.SPEC)]

    def totals(self, as_of: int) -> Globals:
        """Sums over these items."""
        age = as_of - (self.frame.keys & LOW)
        values = self.frame.values
        month = (age >= 1) & (age <= 30)
        return Globals(
            tuple(int(values["weight"][(age >= 1) & (age <= days)].sum()) for days in COUNT_WINDOWS),
            int(values["clicks"][month].sum()), int(values["impressions"][month].sum()))

    def extract(self, as_of: int, totals: Globals) -> Extract:
        """Popularity, its shares, smoothed click-through and mean dwell."""
        age = as_of - (self.frame.keys & LOW)
        frame = self.frame.where((age >= 1) & (age <= 30), self.SPEC)
        age, item, n = as_of - (frame.keys & LOW), frame.keys >> 32, len(frame.entities)
        columns = {}
        for days, total in zip(COUNT_WINDOWS, totals.popularity, strict=True):
            inside = np.flatnonzero(age <= days)
            popularity = sum_groups(item[inside], frame.values["weight"][inside], n)
            columns[f"popularity_{days}d"] = popularity.astype(float)
            columns[f"popularity_share_{days}d"] = popularity / max(total, 1)
        sums = {c: sum_groups(item, v, n) for c, v in frame.values.items()}
        prior = totals.clicks / totals.impressions if totals.impressions else 0.0
        smoothed = (sums["clicks"] + CTR_PRIOR * prior) / (sums["impressions"] + CTR_PRIOR)
        columns["ctr_smoothed_30d"] = np.where(sums["impressions"] > 0, smoothed, np.nan)
        columns["dwell_mean_30d"] = mean(sums["dwell_sum"], sums["dwell_n"])
        return Extract(frame.entities, columns)


class ItemSeen(Accumulator):
    """The time of each item's first event of any type, and its impressions in all."""

    NAME, ENTITY = "item_seen", "item"
    SPEC = Spec(sums=("impressions",), minima=("first",))
    COLUMNS = ("item_id", "event_type", "occurred_at")

    def rows(self, events: Events) -> Frame:
        """See Accumulator."""
        keep = events.item >= 0
        shown = (events.type == CODES["impression"])[keep].astype(np.int64)
        return Frame.build(self.SPEC, events.items, events.item[keep], Ids.empty(), np.zeros(len(shown), np.int64),
                           {"impressions": shown, "first": events.time[keep]})

    def extract(self, as_of: int) -> Extract:
        """impressions_total and age_days."""
        frame = self.frame
        return Extract(frame.entities, {
            "impressions_total": frame.values["impressions"].astype(float),
            "age_days": (as_of * DAY_MICROS - frame.values["first"]) / DAY_MICROS,
        })
