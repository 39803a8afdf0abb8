"""A list made at a request, for a user who has none: by the formula of the recommend job (transforms.candidates).

1. The user's vector: the user tower over what they liked and their features (models.inference.user_vector); where the bundle
   has no tower, the mean of the liked items' vectors, each counting half as much every ``Blend.half_life`` items of history.
2. Candidates: the index's nearest items, item-CF over the history, popular items: ranked by transforms.candidates.Ranker.
3. Beside those: new items by their content vector and what is trending, scored on the same scale, the cosine between the
   liked items' mean and the item standing in for the two-tower's score.
4. Who is little known: score = confidence * score + (1 - confidence) * prior (prior.py), confidence = n / (n + 3) of n history
   items; 1 for a user whom batch features know. Who is not known at all gets the prior alone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.inference.bundle import Bundle
from schemas.cells import REASONS, SOURCES, RankedList
from schemas.event_types import EVENT_TYPES
from serving.ranking.model import Ask, Signals
from serving.ranking.overlay import Overlay
from serving.ranking.prior import prior
from serving.ranking.rank import list_share
from transforms.candidates import Blend, Lists, Ranker, Users, fetch_classes

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

LIKED_WEIGHT = min(t.weight for t in EVENT_TYPES if t.positive)
"""Items of history whose last event weighs at least this count as liked: what the user tower was trained on."""
SECONDS = 900
"""A list made on demand expires after so long, unless its policy says otherwise."""
SHRINKAGE = 3.0
CONTENT_ITEMS, TRENDING_ITEMS = 10, 10
"""New and trending items that may join a list."""
TRENDING_WEIGHT = 0.3


@dataclass(frozen=True)
class Fresh:
    """What is newer than the bundle: items, and (item id, weight) of what is trending now, best first."""

    overlay: Overlay = field(default_factory=Overlay)
    trending: Sequence[tuple[str, float]] = ()


NOTHING_FRESH = Fresh()


def make(ask: Ask, signals: Signals, bundle: Bundle, now: int, fresh: Fresh = NOTHING_FRESH, blend: Blend | None = None,
         seconds: float = SECONDS) -> RankedList | None:
    """A list for ``ask.user_id``; None where features could not be read or nothing can be said of the user.

    Args:
      now: microseconds; the list expires ``seconds`` later.

    Raises:
      BundleError, IndexFormatError: the index cannot be loaded.
    """
    if signals.missing:
        return None
    blend = blend or Blend()
    signals = _weighed(signals)
    known = signals.history
    positions = bundle.positions([i for i, _ in known])
    if not (positions >= 0).any():
        if not signals.attributes and not signals.low_confidence:
            return None
        return _prior_list(signals, bundle, now, fresh, blend, seconds)
    user = _user(signals, bundle, known, positions, blend)
    lists = _ranked(user, bundle, blend)
    rows = _Rows.of(lists, bundle)
    profile = bundle.units(user.users.history)
    profile = user.users.history_weights @ profile
    rows = _with_fresh(rows, profile, bundle, signals, fresh)
    if signals.low_confidence:
        share = len(known) / (len(known) + SHRINKAGE)
        rows = _blended(rows, share, *prior(bundle, signals.attributes, signals.segment), bundle, signals)
    return rows.listed(bundle, now, seconds, blend.list_length)


def _weighed(signals: Signals) -> Signals:
    """Without items of history that weigh nothing."""
    kept = [at for at, (_, weight) in enumerate(signals.history) if weight > 0]
    if len(kept) == len(signals.history):
        return signals
    days = [signals.history_days[at] for at in kept if at < len(signals.history_days)]
    return replace(signals, history=[signals.history[at] for at in kept], history_days=days)


@dataclass(frozen=True)
class _User:
    users: Users
    vector: F32


def _user(signals: Signals, bundle: Bundle, known: Sequence[tuple[str, float]], positions: I32, blend: Blend) -> _User:
    at = np.flatnonzero(positions[: blend.history] >= 0)
    if not len(at):
        at = np.flatnonzero(positions >= 0)[: blend.history]
    weights = np.array([known[i][1] for i in at.tolist()], np.float32) * np.exp2(-at / blend.half_life).astype(np.float32)
    consumed = bundle.positions(list(signals.hidden))
    consumed = consumed[consumed >= 0]
    users = Users(pa.array([""]), np.array([0, len(at)], np.int64), positions[at], weights,
                  np.array([0, len(consumed)], np.int64), consumed)
    return _User(users, user_vector(signals, bundle, positions, blend))


def user_vector(signals: Signals, bundle: Bundle, positions: I32, blend: Blend) -> F32:
    """(d,) vector of a user whose history lies at ``positions`` (-1: not in the bundle); zeros where nothing is known."""
    weights = np.array([w for _, w in signals.history], np.float32)
    liked = np.flatnonzero((weights >= LIKED_WEIGHT) & (positions >= 0))
    if not len(liked):
        liked = np.flatnonzero(positions >= 0)  # views alone: better than nothing
    if bundle.tower is not None:
        ages = np.array([signals.history_days[i] if i < len(signals.history_days) else 0.0 for i in liked.tolist()], np.float32)
        code = bundle.category_code
        categories = np.array([code.get(name, -1) for name in signals.preference], np.int32)
        shares = np.array(list(signals.preference.values()), np.float32)
        return bundle.tower.vector(positions[liked], ages, categories, shares, signals.values)
    liked = liked[positions[liked] < len(bundle.vectors)]
    if not len(liked):
        return np.zeros(bundle.manifest.dimensions, np.float32)
    decay = weights[liked] * np.exp2(-liked / blend.half_life).astype(np.float32)
    return (decay @ bundle.vectors[positions[liked]] / decay.sum()).astype(np.float32)


_rankers: weakref.WeakKeyDictionary[Bundle, tuple[Blend, Ranker]] = weakref.WeakKeyDictionary()
_ranking = threading.Lock()
"""A Ranker keeps working memory of 16 bytes per item: one per bundle, for one list at a time."""


def _ranked(user: _User, bundle: Bundle, blend: Blend) -> Lists:
    usable = np.array([bool(user.vector.any())])
    vectors = user.vector[None, :]
    found, dots = np.zeros((1, 0), np.int32), np.zeros((1, 0), np.float32)
    if usable[0]:
        k = fetch_classes(user.users, bundle.catalogue, blend)[0][1]
        found, dots = bundle.index.search(vectors, k, bundle.manifest.model_version)
    with _ranking:
        held = _rankers.get(bundle)
        if held is None or held[0] != blend:
            held = _rankers[bundle] = (blend, Ranker(bundle.catalogue, blend, threads=1))
        return held[1].rank(user.users, vectors, usable, found, dots)


@dataclass(frozen=True)
class _Rows:
    """A list under construction: n ids, positions (-1: beside the bundle), scores, codes of schemas.cells, because."""

    ids: list[str]
    positions: I32
    scores: F32
    sources: list[str]
    reasons: list[str]
    because: list[str]

    @classmethod
    def of(cls, lists: Lists, bundle: Bundle) -> _Rows:
        n = int(lists.counts[0])
        because = lists.because[0, :n]
        names = iter(bundle.ids(because[because >= 0]))
        return cls(bundle.ids(lists.positions[0, :n]), lists.positions[0, :n], lists.scores[0, :n].copy(),
                   [SOURCES[c] for c in lists.sources[0, :n].tolist()], [REASONS[c] for c in lists.reasons[0, :n].tolist()],
                   [next(names) if b >= 0 else "" for b in because.tolist()])

    def with_items(self, ids: Sequence[str], positions: I32, scores: F32, source: str, reason: str) -> _Rows:
        """These and more; an item that is there already keeps the higher score."""
        place = {item: at for at, item in enumerate(self.ids)}
        rows = replace(self, ids=list(self.ids), scores=self.scores.copy(), sources=list(self.sources),
                       reasons=list(self.reasons), because=list(self.because))
        more_positions, more_scores = [], []
        for item, position, score in zip(ids, positions.tolist(), scores.tolist(), strict=True):
            at = place.get(item)
            if at is None:
                rows.ids.append(item)
                rows.sources.append(source)
                rows.reasons.append(reason)
                rows.because.append("")
                more_positions.append(position)
                more_scores.append(score)
            elif score > rows.scores[at]:
                rows.scores[at], rows.sources[at], rows.reasons[at], rows.because[at] = score, source, reason, ""
        return replace(rows, positions=np.concatenate([self.positions, np.array(more_positions, np.int32)]),
                       scores=np.concatenate([rows.scores, np.array(more_scores, np.float32)]))

    def listed(self, bundle: Bundle, now: int, seconds: float, length: int) -> RankedList:
        """Best first, ties by the order they came in."""
        best = np.argsort(-self.scores, kind="stable")[:length]
        at = best.tolist()
        return RankedList([self.ids[i] for i in at], self.scores[best], [self.sources[i] for i in at],
                          [self.reasons[i] for i in at], [self.because[i] for i in at], bundle.manifest.model_version,
                          now, now + int(seconds * 1_000_000))


def _with_fresh(rows: _Rows, profile: F32, bundle: Bundle, signals: Signals, fresh: Fresh) -> _Rows:
    """Adds new and trending items; t stands for the two-tower's scaled score: the cosine with the history's mean, scaled as the
    list's own items lie."""
    if not fresh.overlay.items and not fresh.trending:
        return rows
    cosines = bundle.units(rows.positions) @ profile
    cosines = cosines[rows.positions >= 0]
    low, high = (float(cosines.min()), float(cosines.max())) if len(cosines) else (0.0, 1.0)
    reach = float(rows.scores.max(initial=0))

    def scaled(units: F32) -> F32:
        return np.clip((units @ profile - low) / max(high - low, 1e-6), -0.5, 1).astype(np.float32) * np.float32(min(1, reach))

    laid = fresh.overlay.over(bundle)
    new = [int(r) for r in laid.fresh.tolist() if laid.ids[r] not in signals.hidden and laid.units[r].any()]
    if new:
        scores = scaled(laid.units[new])
        best = np.argsort(-scores, kind="stable")[:CONTENT_ITEMS]
        rows = rows.with_items([laid.ids[new[i]] for i in best.tolist()], np.full(len(best), -1, np.int32), scores[best],
                               "content", "new")
    removed = signals.hidden | fresh.overlay.removed
    hot = [(i, w) for i, w in fresh.trending if i not in removed][:TRENDING_ITEMS]
    if hot:
        positions = bundle.positions([i for i, _ in hot])
        weights = np.array([w for _, w in hot], np.float32)
        scores = scaled(bundle.units(positions)) + np.float32(TRENDING_WEIGHT) * weights / max(float(weights.max()), 1e-9)
        keep = (positions < 0) | bundle.active[positions]
        rows = rows.with_items([i for (i, _), k in zip(hot, keep.tolist(), strict=True) if k], positions[keep],
                               scores[keep].astype(np.float32), "trending", "trending")
    return rows


def _blended(rows: _Rows, confidence: float, positions: I32, scores: F32, bundle: Bundle, signals: Signals) -> _Rows:
    """confidence * list + (1 - confidence) * prior, over the items of both."""
    expected = dict(zip(positions.tolist(), scores.tolist(), strict=True))
    own = np.array([expected.pop(p, 0.0) for p in rows.positions.tolist()], np.float32)
    mixed = np.float32(confidence) * list_share(rows.scores) + np.float32(1 - confidence) * own
    rows = replace(rows, scores=mixed.astype(np.float32))
    rest = np.array(list(expected), np.int32)
    names = bundle.ids(rest)
    keep = np.array([i not in signals.hidden for i in names], np.bool_)
    return rows.with_items([i for i, k in zip(names, keep.tolist(), strict=True) if k], rest[keep],
                           np.float32(1 - confidence) * np.array(list(expected.values()), np.float32)[keep],
                           "popular", "popular")


def _prior_list(signals: Signals, bundle: Bundle, now: int, fresh: Fresh, blend: Blend, seconds: float) -> RankedList:
    positions, scores = prior(bundle, signals.attributes, signals.segment)
    names = bundle.ids(positions)
    removed = signals.hidden | fresh.overlay.removed
    keep = np.array([i not in removed for i in names], np.bool_)
    n = int(keep.sum())
    rows = _Rows([i for i, k in zip(names, keep.tolist(), strict=True) if k], positions[keep], scores[keep], ["popular"] * n,
                 ["popular"] * n, [""] * n)
    if fresh.overlay.items or fresh.trending:
        rows = _with_fresh(rows, scores[keep] @ bundle.units(positions[keep]), bundle, signals, fresh)
    return rows.listed(bundle, now, seconds, blend.list_length)
