"""Per user and category: the sum of event weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
import pyarrow.compute as pc

from schemas.features import AFFINITY_CAP
from transforms.accumulators.base import Accumulator, Extract, Lists
from transforms.accumulators.events import Events
from transforms.accumulators.frame import LOW, Frame, Ids, Ints, Spec
from transforms.accumulators.kernels import best, sum_groups


class UserAffinity(Accumulator):
    """Weight per (user, category) in 30 whole days; each category of an event gets the event's full weight."""

    NAME, ENTITY, WINDOW = "user_affinity", "user", 30
    SPEC = Spec(sums=("weight",), has_members=True)
    COLUMNS = ("user_id", "item_id", "event_type", "categories")
    TAKES_OUT = True

    def rows(self, events: Events) -> Frame:
        """See Accumulator."""
        categories, row, code = events.categories
        return Frame.build(self.SPEC, events.users, events.user[row], categories, code, {"weight": events.weight[row]})

    def negated(self) -> Self:
        """See Accumulator."""
        frame = self.frame
        return type(self)([replace(frame, values={"weight": -frame.values["weight"]})])

    def prune(self, as_of: int) -> None:
        """Drops what was taken out: every event that counts has a weight above 0."""
        self._frames = [self.frame.where(self.frame.values["weight"] > 0, self.SPEC)]

    def extract(self, as_of: int) -> Extract:
        """category_affinity_30d: share of the user's weight, highest first, ties by category; times are 0."""
        frame = self.frame
        offsets, member, weight = frame.offsets(), frame.keys & LOW, frame.values["weight"]
        rows_of, rows = best(offsets, (weight << 32) | (LOW - string_ranks(frame.members)[member]), AFFINITY_CAP)
        total = sum_groups(frame.keys >> 32, weight, len(frame.entities))
        share = (weight[rows] / total[frame.keys[rows] >> 32]).astype(np.float32)
        lists = Lists(rows_of, frame.members.named(member[rows]), np.zeros(len(rows), np.int64), share)
        return Extract(frame.entities, {"category_affinity_30d": lists})


def string_ranks(ids: Ids) -> Ints:
    """Position of each id among the ids in ascending byte order, (n,)."""
    ranks = np.empty(len(ids), np.int64)
    ranks[pc.sort_indices(ids.ids).to_numpy()] = np.arange(len(ids))
    return ranks
