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
from models.inference.words import WordIndex, items_of_words, word_hashes
from schemas.cells import RankedList
from serving.ranking import kernels
from serving.ranking.model import CLIENT, Ask, Candidates, Ranked, Signals
from serving.ranking.overlay import ItemUpsert, Overlay, OverlayRows, content_vector
from serving.ranking.policy import ContextPolicy
from serving.ranking.rank import rank
from serving.ranking.rules import BundleRules, ruled, rules_of

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
SimilarityType = Literal["cooccurrence", "vector", "content"]
TYPES: tuple[SimilarityType, ...] = ("cooccurrence", "vector", "content")
WEIGHTS = np.array([0.5, 0.4, 0.1], np.float32)
NEAREST, SAME_WORDS, SAME_CATEGORY = 100, 50, 50
"""Candidates by vector, by the words of the title, and popular ones of the same categories."""
MOST_ITEMS = 5
"""Items asked for that a list of context item looks around: a millisecond each."""
NEWEST = 20
"""Items newer than the bundle that may join, by vector."""
ALIKE_PENALTY = 0.5
ALIKE_ITEMS = 5
"""Items like one newer than the bundle whose company stands for its own in a cart."""
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
      overlay: items newer than the bundle; one of them may be asked for, and those nearest to the item join.

    Raises:
      BundleError, IndexFormatError: the index cannot be loaded.
    """
    found = _parts(bundle, item_id, overlay)
    if found is None:
        return None
    at, parts, own = found
    near = _Near(bundle, overlay, at)
    rules = rules_of(policy, bundle)
    boost, blocked = near.ruled(policy, rules)
    hidden = {item_id} | (set(signals.hidden) if signals else set()) | (set(overlay.removed) if overlay else set())
    keep = ~blocked & np.array([i not in hidden for i in near.ids], np.bool_)
    scores = parts.sum(axis=1) + boost
    chosen = _spread(near, scores, keep, limit, policy.diversity if diversity is None else diversity, rules)
    kinds = parts[chosen].argmax(axis=1).tolist()
    return [Similar(near.ids[c], round(float(min(1.0, scores[c])), 6), TYPES[kind], _shared(own, near.shown(c)))
            for c, kind in zip(chosen.tolist(), kinds, strict=True)]


def around(ask: Ask, policy: ContextPolicy, bundle: Bundle, now: int, overlay: Overlay | None = None,
           length: int = 100) -> RankedList | None:
    """The list to start from in the context ``item`` (what lies around the first MOST_ITEMS asked for) or ``cart`` (what goes
    with them); None when nothing is known of any. Raises as ``similar``."""
    cart = policy.candidates == "cart"
    total: dict[int, float] = {}
    because: dict[int, tuple[float, str]] = {}
    for item_id in ask.item_ids if cart else ask.item_ids[:MOST_ITEMS]:
        found = _together(bundle, item_id, overlay) if cart else _parts(bundle, item_id, overlay)
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
    n, near = len(order), _Near(bundle, overlay, at[order])
    causes = [because.get(p, (0.0, ""))[1] for p in at[order].tolist()]
    return RankedList(near.ids, scores[order], ["content" if new else "item_cf" for new in near.beside.tolist()],
                      [_TOGETHER if cart else _SIMILAR] * n, causes, bundle.manifest.model_version, now,
                      now + int(policy.cache_seconds * 1_000_000))


def rerank(ids: Sequence[str], ask: Ask, signals: Signals, policy: ContextPolicy, bundle: Bundle | None,
           overlay: Overlay | None = None) -> Ranked:
    """A list that a client holds, best first, in the order of fresh signals: nothing joins it, what is hidden now leaves."""
    n = len(ids)
    recs = RankedList(list(ids), np.linspace(1, 0, n, endpoint=False, dtype=np.float32), [CLIENT] * n,
                      [CLIENT] * n, [""] * n, bundle.manifest.model_version if bundle is not None else "", 0, 0)
    still = replace(policy, explore_slot=0, session_candidates=0, max_per_category=0)
    version = bundle.version if bundle is not None else ""
    return rank(replace(ask, page_size=max(1, n)), Candidates(recs, version, CLIENT, True), signals, still, bundle, overlay)


class _Near:
    """k items near one: those of the bundle by position, those beside it by how many the bundle holds and their row of the
    overlay."""

    def __init__(self, bundle: Bundle, overlay: Overlay | None, at: I32) -> None:
        self.bundle, self.at, self.beside = bundle, at, at >= bundle.manifest.items
        self.positions = np.where(self.beside, -1, at).astype(np.int32)
        self.upserts: dict[int, ItemUpsert] = {}
        self.laid: OverlayRows | None = None
        if overlay is not None and self.beside.any():
            self.laid = overlay.over(bundle)
            self.upserts = {c: overlay.items[self.laid.ids[at[c] - bundle.manifest.items]]
                            for c in np.flatnonzero(self.beside).tolist()}
        names = iter(bundle.ids(at[~self.beside]))
        self.ids = [self.upserts[c].item_id if new else next(names) for c, new in enumerate(self.beside.tolist())]

    def ruled(self, policy: ContextPolicy, rules: BundleRules) -> tuple[F32, npt.NDArray[np.bool_]]:
        """(boost (k,), blocked (k,))."""
        boost, blocked = rules.boost[self.positions], rules.blocked[self.positions]
        for c, upsert in self.upserts.items():
            boost[c], blocked[c] = ruled(policy, upsert.item_id, upsert.categories, upsert.attributes)
        return boost, blocked

    def shown(self, c: int) -> _Shown:
        """What is shown of the item at place c."""
        return _own(self.bundle, int(self.positions[c]), self.upserts.get(c))


def _parts(bundle: Bundle, item_id: str, overlay: Overlay | None) -> tuple[I32, F32, _Shown] | None:
    """(places (n,) of _Near, the three weighted parts of the similarity (n, 3), what is shown of the item itself)."""
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
    if overlay is not None and overlay.items and unit.any():
        rows, more = _newer(bundle, item_id, own, unit, overlay)
        at, parts = np.concatenate([at, bundle.manifest.items + rows]).astype(np.int32), np.concatenate([parts, more])
    usable = np.array([len(near) > 0, unit.any(), True], np.float32) * WEIGHTS
    return at, parts * (usable / usable.sum()), own


def _newer(bundle: Bundle, item_id: str, own: _Shown, unit: F32, overlay: Overlay) -> tuple[I32, F32]:
    """(rows (k,) of the overlay, the three parts (k, 3)) of the NEWEST items beside the bundle that are nearest by vector."""
    laid = overlay.over(bundle)
    cosines = laid.fresh_units @ unit
    best = np.argpartition(-cosines, NEWEST + 1)[: NEWEST + 1] if len(cosines) > NEWEST + 1 else np.arange(len(cosines))
    best = best[np.lexsort((best, -cosines[best]))]
    rows = laid.fresh[best[cosines[best] > 0]]
    rows = rows[[laid.ids[row] != item_id for row in rows.tolist()]][:NEWEST]
    parts = np.zeros((len(rows), 3), np.float32)
    parts[:, 1] = np.clip(laid.units[rows] @ unit, 0, 1)
    words, names = set(word_hashes(own.title or "").tolist()), set(own.categories)
    for place, row in enumerate(rows.tolist()):
        upsert = overlay.items[laid.ids[row]]
        both = len(names & set(upsert.categories)) + len(words & set(word_hashes(upsert.title or "").tolist()))
        parts[place, 2] = both / max(1, len(names | set(upsert.categories)) + len(words))
    return rows, parts


def _together(bundle: Bundle, item_id: str, overlay: Overlay | None) -> tuple[I32, F32, _Shown] | None:
    """What goes with an item; with one beside the bundle, what goes with the items that are most like it."""
    position = int(bundle.positions([item_id])[0])
    if position >= 0:
        near, strengths = bundle.neighbours_of(position)
        return near, strengths[:, None], _Shown()
    upsert = overlay.items.get(item_id) if overlay is not None else None
    if upsert is None:
        return None
    unit = content_vector(bundle, upsert)
    alike = _nearest(bundle, position, unit)[:ALIKE_ITEMS]
    found = [bundle.neighbours_of(p) for p in alike.tolist()]
    cosines = np.clip(bundle.units(alike) @ unit, 0, 1)
    shares = [strengths * cosine / max(1, len(alike)) for (_, strengths), cosine in zip(found, cosines, strict=True)]
    nothing = np.zeros(0, np.int32)
    at, where = np.unique(np.concatenate([nothing, *(near for near, _ in found)]), return_inverse=True)
    sums = np.bincount(where, np.concatenate([nothing, *shares]), len(at)).astype(np.float32)
    return at.astype(np.int32), sums[:, None], _Shown()


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
    codes = np.unique([bundle.category_code.get(name, -1) for name in own.categories])
    words = list(by_words)
    shared = np.zeros(len(at), np.float32)
    for items in words:
        shared[np.searchsorted(at, np.intersect1d(items, at))] += 1
    starts, many = bundle.category_offsets[at], bundle.category_offsets[at + 1] - bundle.category_offsets[at]
    row = np.repeat(np.arange(len(at)), many)
    theirs = bundle.category_codes[np.repeat(starts - np.cumsum(many) + many, many) + np.arange(len(row))]
    both = np.bincount(row[np.isin(theirs, codes)], minlength=len(at))
    return ((shared + both) / np.maximum(len(codes) + many - both + len(words), 1)).astype(np.float32)


def _spread(near: _Near, scores: F32, keep: npt.NDArray[np.bool_], limit: int, diversity: float, rules: BundleRules) -> I32:
    """Places of up to ``limit`` items by MMR."""
    n, bundle = len(near.at), near.bundle
    categories, units = np.empty((n, kernels.CATEGORIES), np.int32), np.empty((n, bundle.manifest.dimensions), np.float32)
    seen, boosts, chosen = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(limit, np.int32)
    kernels.gather(near.positions, bundle.vectors, rules.rows, rules.numbers, units, categories, seen, boosts, keep)
    many = len(bundle.category_names)
    if near.laid is not None:
        rows = near.at[near.beside] - bundle.manifest.items
        units[near.beside] = near.laid.units[rows]
        for c, row in zip(np.flatnonzero(near.beside).tolist(), rows.tolist(), strict=True):
            codes = near.laid.categories[row][: kernels.CATEGORIES]
            categories[c, : len(codes)] = codes
        many += len(near.laid.category_code)
    size = kernels.select(scores, keep, units, categories, np.zeros(many, np.float32), np.zeros(many, np.int64), limit,
                          diversity, 0.0, 0.01, 0, chosen)
    return chosen[:size]


def _shared(own: _Shown, other: _Shown) -> dict[str, str]:
    shared = {"category": ", ".join(name for name in own.categories if name in other.categories)}
    shared |= {name: value for name, value in own.attributes.items() if value and other.attributes.get(name) == value}
    return {name: value for name, value in shared.items() if value}
