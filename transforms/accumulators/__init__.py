"""Mergeable aggregates, one small module each: the same class adds events, is shuffled, stored, merged and extracted.

To add one: subclass ``base.Accumulator`` in a module here, list it in ACCUMULATORS, and use it in ``transforms.snapshots``.
"""

from __future__ import annotations

from transforms.accumulators.affinity import UserAffinity
from transforms.accumulators.base import Accumulator
from transforms.accumulators.cooccurrence import ItemCooccurrence, ItemUserDays
from transforms.accumulators.item_stats import ItemDays, ItemSeen
from transforms.accumulators.user_items import UserConsumed, UserLastItems, UserLikedItems
from transforms.accumulators.user_stats import UserDays, UserSeen

ACCUMULATORS: dict[str, type[Accumulator]] = {a.NAME: a for a in (
    UserDays, UserSeen, UserAffinity, UserLastItems, UserLikedItems, UserConsumed,
    ItemDays, ItemSeen, ItemUserDays, ItemCooccurrence)}
GROUP_ACCUMULATORS: dict[str, tuple[str, ...]] = {
    "user_stats": ("user_days", "user_seen", "user_last_items"),
    "user_affinity": ("user_affinity",),
    "user_last_items": ("user_last_items",),
    "user_liked_items": ("user_liked_items",),
    "user_consumed": ("user_consumed",),
    "item_stats": ("item_days", "item_seen"),
    "item_cooccurrence": ("item_user_days", "item_cooccurrence"),
}
"""Which accumulators each batch feature group is extracted from."""
