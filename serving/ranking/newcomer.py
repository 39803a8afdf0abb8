"""Items newer than the bundle in the exploration slot, so that they are shown within minutes, to everybody.

Nobody has seen them, so they cannot be among the items that a bundle explores. On SHARE of the pages with such a slot one of
DRAWN of them takes it, chosen as explore.py does: a draw of its click rate's posterior, without impressions yet, its prior
raised or lowered by how well the item's content vector goes with the page.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from models.inference.idtable import hashes_of
from schemas.keys import hash64
from serving.ranking.explore import draw_places, thompson
from serving.ranking.listed import POSITION
from serving.ranking.model import Ask, Ranked
from serving.ranking.overlay import Overlay, OverlayRows
from serving.ranking.policy import ContextPolicy
from serving.ranking.rules import BundleRules, ruled

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]

SHARE = 0.5
DRAWN = 32


def with_newcomer(page: Ranked, ask: Ask, policy: ContextPolicy, bundle: Bundle, rules: BundleRules, overlay: Overlay,
                  laid: OverlayRows, left_out: Callable[[], U64]) -> Ranked:
    """The page, on SHARE of all requests with one of the items that the bundle does not hold in the exploration slot.

    Args:
      laid: ``overlay`` over the bundle.
      left_out: hashes of what is hidden, excluded or asked for.
    """
    slot, size = policy.explore_slot - 1, len(page.item_ids)
    if not len(laid.fresh) or not 0 <= slot < min(ask.page_size, size + 1):
        return page
    seed = hash64(f"{ask.user_id}\x00{ask.request_id}\x00new") >> 2
    if (seed & 0xFFFF) >= SHARE * 0x10000:
        return page
    rows = laid.fresh[draw_places(seed, DRAWN, len(laid.fresh))]
    ids = [laid.ids[row] for row in rows.tolist()]
    hashes, there = hashes_of(ids), set(page.item_ids)
    out = np.isin(hashes, left_out()) | np.isin(hashes.astype(np.uint32), ask.shown)
    held = [ruled(policy, item, overlay.items[item].categories, overlay.items[item].attributes) for item in ids]
    items = np.array([-1 if out[n] or item in there or held[n][1] else n for n, item in enumerate(ids)], np.int32)
    fit = np.clip(laid.units[rows] @ _centre(page, bundle), 0, 1).astype(np.float32)
    unseen = np.zeros(len(ids), np.float32)
    best = thompson(seed, float(rules.rate), items, fit, unseen, unseen)
    return page if best < 0 else _placed(page, ask.page_size, slot, ids[best], float(fit[best]), held[best][0])


def _centre(page: Ranked, bundle: Bundle) -> F32:
    """(d,) unit mean of the page's items."""
    at = page.packed.numbers[POSITION] if page.packed is not None else bundle.positions(page.item_ids)
    total = bundle.units(at).sum(axis=0)
    return (total / max(float(np.sqrt(total @ total)), 1e-9)).astype(np.float32)


def _placed(page: Ranked, size: int, slot: int, item: str, fit: float, boost: float) -> Ranked:
    """The page with an item where the explored one was; without one, at ``slot``, and what is too much leaves."""
    at, taken = (page.explored, 1) if page.explored >= 0 else (slot, 0)
    numbers = {"boost": boost}

    def column(values: F32, value: float) -> F32:
        return np.concatenate([values[:at], np.array([value], np.float32), values[at + taken :]])[:size]

    def row(values: list[str], value: str) -> list[str]:
        return [*values[:at], value, *values[at + taken :]][:size]

    features = {name: column(values, numbers.get(name, 0.0)) for name, values in page.features.items()}
    more = page.more or len(page.item_ids) + 1 - taken > size
    return Ranked(row(list(page.item_ids), item), column(page.scores, fit), row(list(page.sources), "exploration"),
                  row(list(page.reasons), "new"), row(list(page.because), ""), features, more, at,
                  np.array(list(features.values()), np.float32))
