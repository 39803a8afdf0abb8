"""Items like an item, items that go with a cart, and a client's own list in a fresher order.

  similarity(i, j) = .5 * co / max co + .4 * max(0, cosine of vectors) + .1 * overlap

co is the co-occurrence of j with i (max: of i's best neighbour), overlap the Jaccard overlap of their categories and the words
of their titles. An item that lacks neighbours, or a vector, gives the weight of that part to the others. The largest part
names the type.
For a cart, what is bought together should not be more of the same:

  fit(j) = sum over items h in the cart of co(h, j) / max, times (1 - .5 * greatest cosine with an item in the cart)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from models.inference.words import WordIndex, items_of_words
from schemas.cells import RankedList
from serving.ranking import kernels
from serving.ranking.model import Ask, Candidates, Ranked, Signals
from serving.ranking.overlay import ItemUpsert, Overlay, content_vector
from serving.ranking.policy import ContextPolicy
from serving.ranking.rank import rank
from serving.ranking.rules import BundleRules, rules_of

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
SimilarityType = Literal["cooccurrence", "vector", "content"]
TYPES: tuple[SimilarityType, ...] = ("cooccurrence", "vector", "content")
WEIGHTS = np.array([0.5, 0.4, 0.1], np.float32)
NEAREST, SAME_WORDS, SAME_CATEGORY = 100, 50, 50
"""Candidates by vector, by the words of the title, and popular ones of the same categories."""
ALIKE_PENALTY = 0.5
_SIMILAR, _TOGETHER = "similar_item", "goes_together"


@dataclass(frozen=True)
class Similar:
    """One item like another. ``shared_attributes``: ``category`` and attribute names with the value both have."""

    item_id: str
    similarity_score: float
    similarity_type: SimilarityType
    shared_attributes: dict[str, str]


class _Shown(msgspec.Struct, frozen=True):
    title: str | None = None
    categories: list[str] = []
    attributes: dict[str, str | None] = {}


_decoder = msgspec.json.Decoder(_Shown)


def similar(bundle: Bundle, item_id: str, policy: ContextPolicy, signals: Signals | None = None, limit: int = 20,
            diversity: float | None = None, overlay: Overlay | None = None) -> list[Similar] | None:
    """Items like an item, best first; None for an item that neither bundle nor overlay knows.

    Args:
      policy: its rules and its diversity hold, where ``diversity`` (0 to 1) does not say otherwise.
      signals: of the user who looks: what is hidden from them is left out.
      overlay: items newer than the bundle; one of them may be asked for.

    Raises:
      BundleError, IndexFormatError: the index cannot be loaded.
    """
    found = _parts(bundle, item_id, overlay)
    if found is None:
        return None
    at, parts, own = found
    rules = rules_of(policy, bundle)
    keep = _allowed(bundle, at, rules, {item_id}, signals, overlay)
    scores = parts.sum(axis=1) + rules.boost[at]
    chosen = _spread(bundle, at, scores, keep, limit, policy.diversity if diversity is None else diversity, rules)
    names = bundle.ids(at[chosen])
    shown = [_decoder.decode(bundle.metadata(p)) for p in at[chosen].tolist()]
    kinds = parts[chosen].argmax(axis=1).tolist()
    return [Similar(name, round(float(min(1.0, scores[c])), 6), TYPES[kind], _shared(own, other))
            for name, c, kind, other in zip(names, chosen.tolist(), kinds, shown, strict=True)]


def around(ask: Ask, policy: ContextPolicy, bundle: Bundle, now: int, overlay: Overlay | None = None,
           length: int = 100) -> RankedList | None:
    """The list to start from in the context ``item`` (what lies around the items asked for) or ``cart`` (what goes with them);
    None when nothing is known of any. Raises as ``similar``."""
    cart = policy.candidates == "cart"
    total: dict[int, float] = {}
    because: dict[int, tuple[float, str]] = {}
    for item_id in ask.item_ids:
        found = _together(bundle, item_id) if cart else _parts(bundle, item_id, overlay)
        if found is None:
            continue
        at, parts, _ = found
        for position, score in zip(at.tolist(), parts.sum(axis=1).tolist(), strict=True):
            if score <= 0:
                continue
            total[position] = total.get(position, 0.0) + score
            if score > because.get(position, (0.0, ""))[0]:
                because[position] = score, item_id
    if not total:
        return None
    at = np.array(list(total), np.int32)
    scores = np.array(list(total.values()), np.float32)
    if cart:
        asked = bundle.units(bundle.positions(list(ask.item_ids)))
        alike = np.clip(bundle.units(at) @ asked.T, 0, 1).max(axis=1, initial=0)
        scores = scores / max(float(scores.max()), 1e-9) * (1 - np.float32(ALIKE_PENALTY) * alike)
    scores = scores.astype(np.float32)
    order = np.lexsort((at, -scores))[:length]
    n = len(order)
    causes = [because.get(p, (0.0, ""))[1] for p in at[order].tolist()]
    return RankedList(bundle.ids(at[order]), scores[order], ["item_cf"] * n, [_TOGETHER if cart else _SIMILAR] * n, causes,
                      bundle.manifest.model_version, now, now + int(policy.cache_seconds * 1_000_000))


def rerank(ids: Sequence[str], ask: Ask, signals: Signals, policy: ContextPolicy, bundle: Bundle | None,
           overlay: Overlay | None = None) -> Ranked:
    """A list that a client holds, best first, in the order of fresh signals: nothing joins it, what is hidden now leaves."""
    n = len(ids)
    recs = RankedList(list(ids), np.linspace(1, 0, n, endpoint=False, dtype=np.float32), ["two_tower"] * n,
                      ["similar_taste"] * n, [""] * n, bundle.manifest.model_version if bundle is not None else "", 0, 0)
    still = replace(policy, explore_slot=0, session_candidates=0, max_per_category=0)
    version = bundle.version if bundle is not None else ""
    return rank(replace(ask, page_size=max(1, n)), Candidates(recs, version, "list", True), signals, still, bundle, overlay)


def _parts(bundle: Bundle, item_id: str, overlay: Overlay | None) -> tuple[I32, F32, _Shown] | None:
    """(positions (n,), the three weighted parts of the similarity (n, 3), what is shown of the item itself)."""
    position = int(bundle.positions([item_id])[0])
    upsert = overlay.items.get(item_id) if overlay is not None else None
    if position < 0 and upsert is None:
        return None
    own = _own(bundle, position, upsert)
    near, strengths = bundle.neighbours_of(position) if position >= 0 else (np.zeros(0, np.int32), np.zeros(0, np.float32))
    unit = bundle.units(np.array([position]))[0]
    if not unit.any() and upsert is not None:
        unit = content_vector(bundle, upsert)
    by_vector = _nearest(bundle, position, unit)
    by_words = [w[:SAME_WORDS] for w in items_of_words(WordIndex(bundle.word_hashes, bundle.word_offsets, bundle.word_items),
                                                       own.title or "")]
    by_category = [_of_category(bundle, name) for name in own.categories] if len(near) + len(by_vector) < NEAREST else []
    at = np.unique(np.concatenate([near, by_vector, *by_words, *by_category])).astype(np.int32)
    at = at[at != position]
    parts = np.zeros((len(at), 3), np.float32)
    if len(near):
        parts[np.searchsorted(at, near), 0] = strengths / max(float(strengths[0]), 1e-9)
    if unit.any():
        parts[:, 1] = np.clip(bundle.units(at) @ unit, 0, 1)
    parts[:, 2] = _overlap(bundle, at, own, by_words)
    usable = np.array([len(near) > 0, unit.any(), True], np.float32) * WEIGHTS
    return at, parts * (usable / usable.sum()), own


def _together(bundle: Bundle, item_id: str) -> tuple[I32, F32, _Shown] | None:
    position = int(bundle.positions([item_id])[0])
    if position < 0:
        return None
    near, strengths = bundle.neighbours_of(position)
    return near, strengths[:, None], _Shown()


def _nearest(bundle: Bundle, position: int, unit: F32) -> I32:
    """Items of the highest dot product with an item's own vector (with its direction, for one beside the bundle)."""
    if not unit.any():
        return np.zeros(0, np.int32)
    query = bundle.vectors[position] if 0 <= position < len(bundle.vectors) else unit
    found, _ = bundle.index.search(np.ascontiguousarray(query)[None, :], min(NEAREST, len(bundle.vectors)),
                                   bundle.manifest.model_version)
    return found[0][found[0] >= 0]


def _own(bundle: Bundle, position: int, upsert: ItemUpsert | None) -> _Shown:
    if upsert is not None:
        return _Shown(upsert.title, list(upsert.categories), dict(upsert.attributes))
    return _decoder.decode(bundle.metadata(position))


def _of_category(bundle: Bundle, category: str) -> I32:
    code = bundle.category_code.get(category, -1)
    owner = np.searchsorted(bundle.category_offsets, np.flatnonzero(bundle.category_codes == code), side="right") - 1
    return owner[np.argsort(-bundle.popularity[owner], kind="stable")][:SAME_CATEGORY].astype(np.int32)


def _overlap(bundle: Bundle, at: I32, own: _Shown, by_words: Iterable[I32]) -> F32:
    """Shared categories and title words over all of either; the other item's words count as those that it shares and no more,
    so that a long title costs nothing."""
    codes = {bundle.category_code.get(name, -1) for name in own.categories}
    words = list(by_words)
    shared = np.zeros(len(at), np.float32)
    for items in words:
        shared[np.searchsorted(at, np.intersect1d(items, at))] += 1
    total = np.zeros(len(at), np.float32)
    for row, position in enumerate(at.tolist()):
        theirs = set(bundle.category_codes[bundle.category_offsets[position] : bundle.category_offsets[position + 1]].tolist())
        shared[row] += len(codes & theirs)
        total[row] = len(codes | theirs) + len(words)
    return (shared / np.maximum(total, 1)).astype(np.float32)


def _allowed(bundle: Bundle, at: I32, rules: BundleRules, leave_out: set[str], signals: Signals | None,
             overlay: Overlay | None) -> npt.NDArray[np.bool_]:
    hidden = leave_out | (set(signals.hidden) if signals else set()) | (set(overlay.removed) if overlay else set())
    return ~rules.blocked[at] & np.array([i not in hidden for i in bundle.ids(at)], np.bool_)


def _spread(bundle: Bundle, at: I32, scores: F32, keep: npt.NDArray[np.bool_], limit: int, diversity: float,
            rules: BundleRules) -> I32:
    """Places of up to ``limit`` items by MMR."""
    n = len(at)
    categories, units = np.empty((n, kernels.CATEGORIES), np.int32), np.empty((n, bundle.manifest.dimensions), np.float32)
    seen, boosts, chosen = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(limit, np.int32)
    kernels.gather(at, bundle.vectors, bundle.norms, bundle.category_offsets, bundle.category_codes, bundle.impressions,
                   rules.boost, rules.blocked, units, categories, seen, boosts, keep)
    size = kernels.select(scores, keep, units, categories, np.zeros(len(bundle.category_names), np.float32),
                          np.zeros(len(bundle.category_names), np.int64), limit, diversity, 0.0, 0.01, 0, chosen)
    return chosen[:size]


def _shared(own: _Shown, other: _Shown) -> dict[str, str]:
    shared = {"category": ", ".join(name for name in own.categories if name in other.categories)}
    shared |= {name: value for name, value in own.attributes.items() if value and other.attributes.get(name) == value}
    return {name: value for name, value in shared.items() if value}
