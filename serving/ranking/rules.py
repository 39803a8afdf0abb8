"""Business rules over a bundle: one number per item, made once per bundle, so that a request only looks it up."""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from serving.ranking.explore import DEFAULT_RATE, PRIOR
from serving.ranking.kernels import BLOCKED, BOOST, CATEGORIES, CLICKS, NORM, ROW, SEEN
from serving.ranking.policy import ContextPolicy, Rule


@dataclass(frozen=True, eq=False)
class BundleRules:
    """A context's rules, worked out.

    Attributes:
      boost: (m,) what is added to each item's score; blocked: (m,) never shown.
      explorable: of the items of fewer impressions than the context's ``explore_below`` the most popular, and as many of the
        least shown, the newest first: what nobody has seen is not popular.
      rate: click rate of all items.
      rows: (m, ROW), what ranking reads of an item, see serving.ranking.kernels: 64 bytes, which is one miss of the
        processor's cache where one array for each of them is ten; numbers: the same as float32.
    """

    boost: npt.NDArray[np.float32]
    blocked: npt.NDArray[np.bool_]
    explorable: npt.NDArray[np.int32]
    rate: float
    rows: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.float32]


class Attributes(msgspec.Struct, frozen=True):
    """The part of an item's metadata that rules read."""

    attributes: dict[str, str | None] = {}


EXPLORABLE = 2_000

Key = tuple[tuple[Rule, ...], float]
_decoder = msgspec.json.Decoder(Attributes)
_made: weakref.WeakKeyDictionary[Bundle, dict[Key, BundleRules]] = weakref.WeakKeyDictionary()


def rules_of(policy: ContextPolicy, bundle: Bundle) -> BundleRules:
    """The rules of a context over a bundle; worked out at the first call (0.1 s for 100,000 items), then looked up."""
    known = _made.setdefault(bundle, {})
    key = policy.rules, policy.explore_below
    found = known.get(key)
    if found is None:
        found = known[key] = _apply(*key, bundle)
    return found


def matches(rule: Rule, item_id: str, categories: list[str], attributes: dict[str, str | None]) -> bool:
    """Whether a rule is about an item: what items beside the bundle are asked with."""
    if rule.item is not None:
        return rule.item == item_id
    if rule.category is not None:
        return rule.category in categories
    return rule.attribute is not None and attributes.get(rule.attribute) == rule.value


def ruled(policy: ContextPolicy, item_id: str, categories: Sequence[str], attributes: Mapping[str, str | None]
          ) -> tuple[float, bool]:
    """(what is added to the score, whether it is blocked) of an item beside the bundle."""
    held = [r for r in policy.rules if matches(r, item_id, list(categories), dict(attributes))]
    return sum(r.add for r in held), any(r.kind == "block" for r in held)


def _apply(rules: tuple[Rule, ...], explore_below: float, bundle: Bundle) -> BundleRules:
    boost, blocked = np.zeros(bundle.manifest.items, np.float32), ~bundle.active
    for rule in rules:
        at = _items(rule, bundle)
        if rule.kind == "block":
            blocked[at] = True
        else:
            boost[at] += np.float32(rule.add)
    few = bundle.by_popularity[(bundle.impressions < explore_below)[bundle.by_popularity] & ~blocked[bundle.by_popularity]]
    half = min(len(few), EXPLORABLE // 2)
    rest = few[half:]
    least = rest[np.lexsort((np.nan_to_num(bundle.age_days[rest], nan=0.0), bundle.impressions[rest]))]
    few = np.concatenate([few[:half], least[: EXPLORABLE - half]])
    rates = bundle.click_rate[bundle.click_rate > 0]
    rate = float(rates.mean(dtype=np.float64)) if len(rates) else DEFAULT_RATE
    rate = min(0.5, rate)
    smoothed = np.where(np.isnan(bundle.click_rate), np.float32(rate), bundle.click_rate)
    clicks = np.clip(smoothed * (bundle.impressions + PRIOR) - PRIOR * rate, 0, bundle.impressions).astype(np.float32)
    rows = _rows(bundle)
    numbers = rows.view(np.float32)
    rows[:, BLOCKED], numbers[:, BOOST], numbers[:, CLICKS] = blocked, boost, clicks
    return BundleRules(boost, blocked, np.ascontiguousarray(few, np.int32), rate, rows, numbers)


def _rows(bundle: Bundle) -> npt.NDArray[np.int32]:
    """``BundleRules.rows`` without what rules say; in pages of 2 MiB, where the system has them: few entries of the table of
    pages reach every item."""
    items = bundle.manifest.items
    space = mmap.mmap(-1, max(1, 4 * ROW * items))
    with contextlib.suppress(AttributeError, OSError):
        space.madvise(mmap.MADV_HUGEPAGE)
    rows = np.frombuffer(space, np.int32, ROW * items).reshape(items, ROW)
    numbers, counts = rows.view(np.float32), np.diff(bundle.category_offsets)
    at = np.arange(len(bundle.category_codes)) - np.repeat(bundle.category_offsets[:-1], counts)
    rows[:, :CATEGORIES] = -1
    inside = at < CATEGORIES
    rows[np.repeat(np.arange(items), counts)[inside], at[inside]] = bundle.category_codes[inside]
    numbers[:, NORM], numbers[:, SEEN] = bundle.norms, bundle.impressions
    numbers[len(bundle.vectors) :, NORM] = 0
    return rows


def _items(rule: Rule, bundle: Bundle) -> npt.NDArray[np.integer]:
    if rule.item is not None:
        found = bundle.positions([rule.item])
        return found[found >= 0]
    if rule.category is not None:
        code = bundle.category_code.get(rule.category, -1)
        return np.repeat(np.arange(bundle.manifest.items), np.diff(bundle.category_offsets))[bundle.category_codes == code]
    raw, offsets = bundle.metadata_bytes.tobytes(), bundle.metadata_offsets
    return np.array([i for i in range(bundle.manifest.items)
                     if _decoder.decode(raw[offsets[i] : offsets[i + 1]]).attributes.get(rule.attribute or "") == rule.value],
                    np.int64)
