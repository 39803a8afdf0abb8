"""Items that the same users touch within half an hour: pairs of a day, their decayed sums, the best partners of an item.

A user-day is one count: a pair (a, b) counts once per user and day, an item once per user and day. With c the counts
decayed by 2^(-age in days / 30), score(a, b) = c_ab / (sqrt(c_a c_b) + 5): a cosine over user-days, shrunk toward 0 where
it rests on few (the shrinkage of Bell & Koren, "Scalable Collaborative Filtering", ICDM 2007, on a decayed support).

Decay is exact in integers: a day's count is multiplied by a fixed-point landmark weight, round(2^20 * 2^(d / 30)), d its
position in a 256-day epoch; a sum over days is a plain integer sum. At extract one division leads from the landmark to
as_of. Epochs before the last are forgotten: what is older than 256 to 512 days weighs under 0.3 % and counts no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.features import COOCCURRENCE_CAP
from schemas.keys import bucket_of
from schemas.workspace import DAY_MICROS
from transforms.accumulators.affinity import string_ranks
from transforms.accumulators.base import Accumulator, Extract, Globals, Lists
from transforms.accumulators.events import Events
from transforms.accumulators.frame import LOW, Frame, Ids, Ints, Spec, pack_columns, unpack_columns
from transforms.accumulators.kernels import best, pair_codes

GAP = 30 * 60 * 1_000_000
"""Events of a pair lie at most this many microseconds apart."""
REACH = 50
"""An event pairs with at most this many of its user's interactions before it: a cap on heavy users."""
DAY_CAP = 1_000
"""Of a user's day only this many last interactions may be the later event of a pair: a cap on robots."""
HALF_LIFE = 30
"""Days in which a count loses half its weight."""
SHRINKAGE = 5.0
EPOCH = 256
_SCALE = 1 << 20


def epoch_of(day: int) -> int:
    """The landmark epoch of a day number."""
    return day // EPOCH


def landmark_weight(day: int) -> int:
    """The fixed-point weight of a count of that day, relative to its epoch's first day."""
    return round(_SCALE * 2.0 ** (day % EPOCH / HALF_LIFE))


class Interactions:
    """Events of weight > 0 of one day, in (user, time, tie) order: what pairs are made from. Shuffled by user bucket."""

    def __init__(self, users: Ids, items: Ids, user: Ints, item: Ints, time: Ints, tie: Ints) -> None:
        order = np.lexsort((tie.view(np.uint64), time, user))
        self.users, self.items = users, items
        self.user, self.item, self.time, self.tie = user[order], item[order], time[order], tie[order]

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, events: Events) -> Interactions:
        """Those of a batch."""
        keep = events.interacts
        users, user = events.users.only(events.user[keep])
        items, item = events.items.only(events.item[keep])
        return cls(users, items, user, item, events.time[keep], events.tie[keep])

    @classmethod
    def concat(cls, parts: Iterable[Interactions]) -> Interactions:
        """All rows of the parts."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        if not parts:
            none = np.empty(0, np.int64)
            return cls(Ids.empty(), Ids.empty(), none, none, none, none)
        users, at = Ids.union([p.users for p in parts])
        items, item_at = Ids.union([p.items for p in parts])
        return cls(users, items, np.concatenate([a[p.user] for p, a in zip(parts, at, strict=True)]),
                   np.concatenate([a[p.item] for p, a in zip(parts, item_at, strict=True)]),
                   np.concatenate([p.time for p in parts]), np.concatenate([p.tie for p in parts]))

    def _rows(self, keep: npt.NDArray[np.bool_]) -> Interactions:
        users, user = self.users.only(self.user[keep])
        items, item = self.items.only(self.item[keep])
        return Interactions(users, items, user, item, self.time[keep], self.tie[keep])

    def split(self, buckets: int) -> list[tuple[int, Interactions]]:
        """(bucket, its users' rows) of every user bucket that has rows."""
        bucket = bucket_of(self.users.hashes, buckets)[self.user]
        return [(int(b), self._rows(bucket == b)) for b in np.unique(bucket)]

    def tail(self, day: int) -> Interactions:
        """What the next day still needs: the last half hour of the day, at most REACH rows of each user."""
        after = np.searchsorted(self.user, self.user, side="right") - np.arange(len(self))
        return self._rows((self.time >= (day + 1) * DAY_MICROS - GAP) & (after <= REACH))

    def to_bytes(self) -> bytes:
        """Packed by ``pack_columns``."""
        return pack_columns({
            "user_hash": pa.array(self.users.hashes), "user_id": self.users.ids,
            "item_hash": pa.array(self.items.hashes), "item_id": self.items.ids,
            "user": pa.array(self.user.astype(np.int32)), "item": pa.array(self.item.astype(np.int32)),
            "time": pa.array(self.time), "tie": pa.array(self.tie),
        })

    @classmethod
    def from_bytes(cls, data: bytes | pa.Buffer) -> Interactions:
        """The rows of ``to_bytes``; raises ValueError on anything else."""
        try:
            c = unpack_columns(data)
            return cls(Ids(c["user_hash"].to_numpy(), c["user_id"]), Ids(c["item_hash"].to_numpy(), c["item_id"]),
                       c["user"].to_numpy().astype(np.int64), c["item"].to_numpy().astype(np.int64),
                       c["time"].to_numpy(), c["tie"].to_numpy())
        except (pa.ArrowInvalid, KeyError, StopIteration) as error:
            raise ValueError(f"not packed interactions: {error}") from error


class _Decayed(Accumulator):
    """Counts of user-days times their landmark weight: ``now`` of epoch ``epoch``, ``before`` of the one before it."""

    ENTITY = "item"
    COLUMNS = ("user_id", "item_id", "event_type", "occurred_at", "event_hash")

    def __init__(self, frames: Iterable[Frame] = (), epoch: int = 0) -> None:
        super().__init__(frames)
        self.epoch = epoch

    def advance(self, epoch: int) -> None:
        """Moves the landmark to a later epoch; what lies before the one before it is forgotten."""
        if epoch <= self.epoch:
            return
        moved = []
        for frame in self._frames:
            now = np.zeros(len(frame), np.int64)
            before = frame.values["now"] if epoch == self.epoch + 1 else now
            moved.append(Frame(frame.entities, frame.members, frame.keys, {"now": now, "before": before})
                         .where(before > 0, self.SPEC))
        self._frames, self.epoch = moved, epoch

    def merge(self, *others: Self) -> Self:
        """See Accumulator."""
        epoch = max(self.epoch, *(o.epoch for o in others)) if others else self.epoch
        self.advance(epoch)
        for other in others:
            moved = type(self)(other._frames, other.epoch)
            moved.advance(epoch)
            self._frames.extend(moved._frames)
        return self

    def copy(self) -> Self:
        """See Accumulator."""
        return type(self)([self.frame], self.epoch)

    def prune(self, as_of: int) -> None:
        """See Accumulator."""
        self.advance(epoch_of(as_of))

    def split(self, buckets: int) -> list[tuple[int, Self]]:
        """See Accumulator."""
        return [(b, type(self)([part], self.epoch)) for b, part in self.frame.split(self.SPEC, buckets)]

    def bucket(self, bucket: int, buckets: int) -> Self:
        """See Accumulator."""
        return type(self)([self.frame.bucket(self.SPEC, bucket, buckets)], self.epoch)

    def to_bytes(self) -> bytes:
        """See Accumulator; the epoch goes before the frame."""
        return int(self.epoch).to_bytes(8, "little") + super().to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes | pa.Buffer) -> Self:
        """See Accumulator."""
        whole = pa.py_buffer(data)
        if whole.size < 8:
            raise ValueError("a packed accumulator with an epoch has at least 8 bytes")
        return cls([Frame.from_bytes(cls.SPEC, whole[8:])], int.from_bytes(whole[:8].to_pybytes(), "little"))

    def decayed(self, as_of: int) -> npt.NDArray[np.float64]:
        """(n,) counts of the frame's rows, each halved every HALF_LIFE days up to as_of (a day number)."""
        self.advance(epoch_of(as_of))
        values = self.frame.values
        landmark = _SCALE * 2.0 ** ((as_of - self.epoch * EPOCH) / HALF_LIFE)
        return (values["now"] + values["before"] * 2.0 ** (-EPOCH / HALF_LIFE)) / landmark


class ItemUserDays(_Decayed):
    """Per item: its user-days."""

    NAME = "item_user_days"
    SPEC = Spec(sums=("now", "before"))

    def counts(self, as_of: int) -> Globals:
        """The decayed counts of these items."""
        count = self.decayed(as_of)
        return Globals(item_hash=self.frame.entities.hashes, item_count=count)


class ItemCooccurrence(_Decayed):
    """Per item and other item: the user-days that hold the pair."""

    NAME = "item_cooccurrence"
    SPEC = Spec(sums=("now", "before"), has_members=True)

    def extract(self, as_of: int, totals: Globals) -> Extract:
        """cooccurring_items: best first by (score as float32, id); times are 0. ``totals`` has every item's count."""
        pair = self.decayed(as_of)
        frame = self.frame
        item, member = frame.keys >> 32, frame.keys & LOW
        count_a = _look_up(totals, frame.entities.hashes)
        count_b = _look_up(totals, frame.members.hashes)
        score = (pair / (np.sqrt(count_a[item] * count_b[member]) + SHRINKAGE)).astype(np.float32)
        rank = (score.view(np.int32).astype(np.int64) << 32) | (LOW - string_ranks(frame.members)[member])
        bounds, rows = best(frame.offsets(), rank, COOCCURRENCE_CAP)
        lists = Lists(bounds, frame.members.named(member[rows]), np.zeros(len(rows), np.int64), score[rows])
        return Extract(frame.entities, {"cooccurring_items": lists})


def _look_up(totals: Globals, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    if len(totals.item_hash) == 0:
        return np.zeros(len(hashes))
    at = np.minimum(np.searchsorted(totals.item_hash, hashes), len(totals.item_hash) - 1)
    # An item whose only user-day fell into a forgotten epoch has no count, though a pair of the next day may name it.
    return np.where(totals.item_hash[at] == hashes, totals.item_count[at], 0.0)


def pairs_of_day(day: int, of_day: Interactions, before: Interactions) -> tuple[ItemUserDays, ItemCooccurrence]:
    """User-days and pairs of one day, of users all of whose interactions of that day are given.

    Args:
      day: day number.
      of_day: the day's interactions.
      before: the tail of the day before (Interactions.tail), of the same users or more.
    """
    both = Interactions.concat([of_day, before])
    start = day * DAY_MICROS
    offsets = np.searchsorted(both.user, np.arange(len(both.users) + 1))
    first = np.maximum(offsets[:-1], offsets[1:] - DAY_CAP)
    room = np.empty(max(1024, 8 * len(both)), np.int64)
    while (filled := pair_codes(offsets, both.item, both.time, both.time >= start, first, REACH, GAP, room)) < 0:
        room = np.empty(max(2 * len(room), -filled), np.int64)
    codes = room[:filled]
    weight, epoch = landmark_weight(day), epoch_of(day)

    def counted(values: Ints) -> dict[str, Ints]:
        return {"now": values * weight, "before": np.zeros(len(values), np.int64)}

    pairs = Frame.build(ItemCooccurrence.SPEC, both.items, codes >> 32, both.items, codes & LOW,
                        counted(np.ones(len(codes), np.int64)))
    own = np.unique((of_day.user << 32) | of_day.item) & LOW
    items = Frame.build(ItemUserDays.SPEC, of_day.items, own, Ids.empty(), np.zeros(len(own), np.int64),
                        counted(np.ones(len(own), np.int64)))
    return ItemUserDays([items], epoch), ItemCooccurrence([pairs], epoch)
