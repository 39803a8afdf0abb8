"""From a ranked list and what is known of the user now to one page: re-rank, diversify, explore, rules. Pure: no I/O, no clock.

  score(i) = list(i) + preference * match(i) + session * near(i) + boost(i)

- list(i): the list's score, scaled so that its best item is 1 and its last 0 (places, where all scores are equal);
- match(i): cosine between the user's category shares and the item's categories;
- near(i): co-occurrence with the newest items of the session, the weight decaying by half every SESSION_HALF_LIFE items,
  divided by its maximum over the candidates. The items nearest to the session join the candidates with list(i) = 0.

``select`` of kernels.py then fills the page; one item that few have seen may take the exploration slot (explore.py). Without
signals, and with all strengths 0, the page is the list as stored.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from models.inference.idtable import hashes_of
from schemas.cells import REASONS, SOURCES
from schemas.keys import hash64
from schemas.packed import Later, PackedIds, Weighted, take
from serving.ranking import kernels
from serving.ranking import page as compiled
from serving.ranking.listed import BECAUSE_END, ID_END, NEW_DAYS, REASON, SOURCE, ListCell, packed_page, size_of
from serving.ranking.model import Ask, Candidates, Hidden, Packed, Ranked, Rows, Signals
from serving.ranking.newcomer import with_newcomer
from serving.ranking.overlay import Overlay, OverlayRows
from serving.ranking.policy import ContextPolicy
from serving.ranking.rules import BundleRules, ruled, rules_of

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

SESSION_HALF_LIFE = 4.0
"""In items of the session."""
SMOOTHING = 0.01
"""Of the page's category mix, toward the user's (Steck 2018, section 3)."""
EXPLORED = 32
"""Items drawn for the exploration slot, beside those of the list."""
FEATURES = ("list_score", "preference", "session", "boost", "impressions")
"""Numbers of an item that ``Ranked.features`` has."""
_NOBODY: frozenset[str] = frozenset()
_NO_HASHES, _NO_LOWS = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
_NO_SESSION = _NO_HASHES, np.zeros(0, np.float32)


def rank(ask: Ask, candidates: Candidates, signals: Signals, policy: ContextPolicy, bundle: Bundle | None,
         overlay: Overlay | None = None) -> Ranked:
    """One page.

    Args:
      bundle: of the candidates' version; None: the list in its order, without what is hidden, excluded or shown.
      overlay: items newer than the bundle.
    """
    if bundle is None or not size_of(candidates.recs):
        return _as_stored(ask, candidates, signals)
    request = _Request(ask, candidates, signals, policy, bundle, overlay)
    page = request.page()
    if request.rows is None or not policy.explore_slot:
        return page
    return with_newcomer(page, ask, policy, bundle, rules_of(policy, bundle), request.overlay or Overlay(), request.rows,
                         request.left_out)


def list_share(scores: F32) -> F32:
    """list(i) of the module's formula: (n,) in [0, 1]."""
    share = np.zeros(len(scores), np.float32)
    compiled.list_share(np.ascontiguousarray(scores, np.float32), share)
    return share


def _as_stored(ask: Ask, candidates: Candidates, signals: Signals) -> Ranked:
    recs = candidates.recs
    keep = _not_hidden(recs.item_ids, ask, signals)
    kernels.drop_shown(hashes_of(recs.item_ids), ask.shown, keep)
    left = np.flatnonzero(keep)
    at = left[: ask.page_size].tolist()
    base = list_share(np.asarray(recs.scores, np.float32))
    return Ranked([recs.item_ids[i] for i in at], base[at], [recs.sources[i] for i in at], [recs.reasons[i] for i in at],
                  [recs.source_item_ids[i] for i in at], {"list_score": base[at]}, len(left) > len(at))


def _not_hidden(ids: Sequence[str], ask: Ask, signals: Signals) -> npt.NDArray[np.bool_]:
    keep = [i not in signals.hidden for i in ids]
    for others in (ask.exclude, ask.item_ids):
        if others:
            keep = [ok and i not in others for i, ok in zip(ids, keep, strict=True)]
    return np.array(keep, np.bool_)


def _unpacked(left: int, slot: int, split: int, known: bool, numbers: I32, table: F32, text: npt.NDArray[np.uint8]) -> Ranked:
    """The page that ``packed_page`` returned."""
    k = numbers.shape[1]
    return Ranked(Later(partial(_texts, text[:split], numbers[ID_END]), k), table[-1],
                  Later(partial(_names, numbers[SOURCE], SOURCES), k), Later(partial(_names, numbers[REASON], REASONS), k),
                  Later(partial(_texts, text[split:], numbers[BECAUSE_END]), k), Rows(FEATURES, table), left > 0, slot,
                  table[:-1], Packed(numbers, text, split, known))


def _texts(text: npt.NDArray[np.uint8], ends: I32) -> list[str]:
    return PackedIds(text.tobytes(), ends.view(np.uint32)).listed


def _names(codes: I32, names: tuple[str, ...]) -> list[str]:
    return [names[code] for code in codes.tolist()]


def _session_of(session: Sequence[tuple[str, float]], most: int) -> tuple[U64, F32]:
    """Hashes and weights of the newest items."""
    if isinstance(session, Weighted):  # copies: another kind of array would be compiled for, for seconds
        return np.array(session.hashes[:most], np.uint64), np.array(session.weights[:most], np.float32)
    newest = session[:most]
    return hashes_of([item for item, _ in newest]), np.array([weight for _, weight in newest], np.float32)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What stays the same of all requests of a context over a bundle: arguments of the compiled calls, in their order.

    Attributes:
      pool: from ``wanted`` on; choose: from ``preference`` on; explore: from ``draws`` on.
      slots: ranks of exploration for whoever is known, and for whoever is known to the stream alone.
      packed: those behind them of ``packed_page``; None where it cannot be.
    """

    policy: ContextPolicy
    rules: BundleRules
    pool: tuple[Any, ...]
    choose: tuple[float, float]
    select: tuple[Any, ...]
    slots: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    explore: tuple[Any, ...]
    packed: tuple[Any, ...] | None


_plans: weakref.WeakKeyDictionary[Bundle, dict[str, _Plan]] = weakref.WeakKeyDictionary()


def _plan_of(policy: ContextPolicy, bundle: Bundle) -> _Plan:
    known = _plans.get(bundle)
    if known is None:
        known = _plans[bundle] = {}
    plan = known.get(policy.name)
    if plan is None or plan.policy is not policy:
        plan = known[policy.name] = _make_plan(policy, bundle, rules_of(policy, bundle))
    return plan


def _make_plan(policy: ContextPolicy, bundle: Bundle, rules: BundleRules) -> _Plan:
    slot = policy.explore_slot - 1
    one: tuple[int, ...] = () if slot < 0 else (slot,)
    two = (slot // 2, slot) if slot >= 2 else one
    return _Plan(
        policy, rules,
        (policy.session_candidates, SESSION_HALF_LIFE, bundle.hashes, bundle.table, bundle.vectors, rules.rows,
         rules.numbers, bundle.neighbour_offsets, bundle.neighbours, bundle.strengths, rules.blocked),
        (float(policy.preference), float(policy.session)),
        (float(policy.diversity), float(policy.calibration), SMOOTHING, policy.max_per_category),
        (np.array(one, np.int64), np.array(two, np.int64)),
        (EXPLORED, float(rules.rate), rules.explorable),
        None if bundle.id_arrays is None else (bundle.age_days, *bundle.id_arrays))


class _Request:
    """One call of ``rank``."""

    def __init__(self, ask: Ask, candidates: Candidates, signals: Signals, policy: ContextPolicy, bundle: Bundle,
                 overlay: Overlay | None) -> None:
        self.ask, self.recs, self.signals, self.policy, self.bundle = ask, candidates.recs, signals, policy, bundle
        self.overlay = overlay if overlay is not None and overlay.items else None
        self.removed = self.overlay.removed if self.overlay is not None else _NOBODY
        self.rows: OverlayRows | None = self.overlay.over(bundle) if self.overlay is not None else None

    def page(self) -> Ranked:
        ask, policy, bundle, signals, recs = self.ask, self.policy, self.bundle, self.signals, self.recs
        plan = _plan_of(policy, bundle)
        left_out, shown = self.left_out(), ask.shown.astype(np.uint32) if len(ask.shown) else _NO_LOWS
        near = _session_of(signals.session, policy.session_items) if policy.session > 0 else _NO_SESSION
        share, seed = self._share(), hash64(f"{ask.user_id}\x00{ask.request_id}") >> 2
        to_select = (ask.page_size, *plan.select, plan.slots[signals.low_confidence], float(policy.explore_below), seed,
                     *plan.explore)
        if isinstance(recs, ListCell) and plan.packed is not None:
            overlaid = self.rows.hashes if self.rows is not None else _NO_HASHES
            left, slot, split, *packed = packed_page(
                np.frombuffer(recs.cell, np.uint8), recs.at, recs.count, left_out, shown, overlaid, *near, *plan.pool,
                share, *plan.choose, *to_select, *plan.packed)
            if left >= 0:
                return _unpacked(left, slot, split, *packed)
        hashes, dropped = hashes_of(recs.item_ids), compiled.set_of(left_out)
        pool = compiled.pool(hashes, dropped, shown, *near, *plan.pool)
        if self.rows is not None:
            self._lay_over_all(pool, dropped)
        return self._answer(*compiled.choose(pool, np.array(recs.scores, np.float32), share, *plan.choose, len(near[0]) > 0,
                                             *to_select, dropped, shown, bundle.hashes, bundle.vectors, plan.rules.rows,
                                             plan.rules.numbers))

    def left_out(self) -> U64:
        """Hashes of what is hidden, excluded, asked for or removed."""
        hidden, ask = self.signals.hidden, self.ask
        found = hidden.hashes if isinstance(hidden, Hidden) else hashes_of(tuple(hidden)) if hidden else _NO_HASHES
        others = [hashes_of(tuple(ids)) for ids in (ask.exclude, ask.item_ids) if ids]
        if self.overlay is not None and self.removed:
            others.append(self.overlay.removed_hashes)
        return np.concatenate([found, *others]) if others else found

    def _lay_over_all(self, pool: Any, dropped: U64) -> None:
        """Puts what upserts say over the pool (serving.ranking.page.pool)."""
        assert self.rows is not None
        positions, bundle = pool[0], self.bundle
        names = [*self.recs.item_ids, *bundle.ids(positions[len(self.recs.item_ids) :])]
        for at, item_id in enumerate(names):
            row = self.rows.row.get(item_id)
            if row is not None:
                self._lay_over(pool, at, item_id, row, dropped)

    def _lay_over(self, pool: Any, at: int, item_id: str, row: int, dropped: U64) -> None:
        """What the newest upsert of an item says of it; it is active, whatever the bundle says."""
        assert self.rows is not None and self.overlay is not None
        positions, keep, units, categories, _, boosts, *_ = pool
        codes = self.rows.categories[row][: kernels.CATEGORIES]
        categories[at] = -1
        categories[at, : len(codes)] = codes
        if positions[at] < 0:
            units[at] = self.rows.units[row]
        upsert = self.overlay.items[item_id]
        boost, blocked = ruled(self.policy, item_id, upsert.categories, upsert.attributes)
        was_inactive = positions[at] >= 0 and not self.bundle.active[positions[at]]
        keep[at] = ((keep[at] or was_inactive) and not blocked and not compiled.is_in(dropped, np.uint64(hash64(item_id))))
        boosts[at] = boost

    def _share(self) -> F32:
        """The user's share per category code."""
        code, added = self.bundle.category_code, self.rows.category_code if self.rows is not None else {}
        share = np.zeros(len(code) + len(added), np.float32)
        for name, value in self.signals.preference.items():
            at = code.get(name, added.get(name, -1))
            if at >= 0:
                share[at] = value
        return share

    def _answer(self, chosen: I32, positions: I32, led: I32, explored: npt.NDArray[np.bool_], table: F32,
                rest: tuple[int, int]) -> Ranked:
        recs, bundle, listed = self.recs, self.bundle, len(self.recs.item_ids)
        places, size = chosen.tolist(), len(chosen)
        if size and int(chosen.max()) < listed:
            ids, sources = take(recs.item_ids, places), take(recs.sources, places)
            reasons, because = take(recs.reasons, places), take(recs.source_item_ids, places)
        else:
            inside = [at for at, place in enumerate(places) if place < listed]
            beside = [at for at, place in enumerate(places) if place >= listed]
            ids, sources = [""] * size, ["item_cf"] * size
            reasons, because = ["because_you_watched"] * size, [""] * size
            among = [places[at] for at in inside]
            for values, of_list in ((ids, recs.item_ids), (sources, recs.sources), (reasons, recs.reasons),
                                    (because, recs.source_item_ids)):
                for at, value in zip(inside, take(of_list, among), strict=True):
                    values[at] = value
            for at, name in zip(beside, bundle.ids(positions[beside]), strict=True):
                ids[at] = name
        session = self.signals.session
        for at, why in enumerate(led.tolist()):
            if why >= 0:
                reasons[at], because[at] = "because_you_watched", session[why][0]
        if rest[1] >= 0:
            for at in np.flatnonzero(explored).tolist():
                new = bundle.age_days[positions[at]] < NEW_DAYS
                sources[at], reasons[at], because[at] = "exploration", "new" if new else "discovery", ""
        return Ranked(ids, table[-1], sources, reasons, because, dict(zip(FEATURES, table, strict=False)), rest[0] > 0, rest[1],
                      table[:-1])
