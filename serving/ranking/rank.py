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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from models.inference.idtable import hashes_of
from schemas.keys import hash64
from serving.ranking import kernels
from serving.ranking.explore import draw_places, eligible, thompson
from serving.ranking.model import Ask, Candidates, Ranked, Signals
from serving.ranking.overlay import Overlay, OverlayRows
from serving.ranking.policy import ContextPolicy
from serving.ranking.rules import BundleRules, matches, rules_of

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

SESSION_HALF_LIFE = 4.0
"""In items of the session."""
SMOOTHING = 0.01
"""Of the page's category mix, toward the user's (Steck 2018, section 3)."""
EXPLORED = 32
"""Items drawn for the exploration slot, beside those of the list."""
NEW_DAYS = 30
FEATURES = ("list_score", "preference", "session", "boost", "impressions")
"""Numbers of an item that ``Ranked.features`` has."""
_SLOTS = 2  # of exploration, at most
_NOBODY: frozenset[str] = frozenset()


def rank(ask: Ask, candidates: Candidates, signals: Signals, policy: ContextPolicy, bundle: Bundle | None,
         overlay: Overlay | None = None) -> Ranked:
    """One page.

    Args:
      bundle: of the candidates' version; None: the list in its order, without what is hidden, excluded or shown.
      overlay: items newer than the bundle.
    """
    if bundle is None or not len(candidates.recs.item_ids):
        return _as_stored(ask, candidates, signals)
    return _Request(ask, candidates, signals, policy, bundle, overlay).page()


def list_share(scores: F32) -> F32:
    """list(i) of the module's formula: (n,) in [0, 1]."""
    n = len(scores)
    low, high = (scores.min(), scores.max()) if n else (0, 0)
    if not high > low:
        return np.linspace(1, 0, n, endpoint=False, dtype=np.float32)
    return ((scores - low) / (high - low)).astype(np.float32)


def _as_stored(ask: Ask, candidates: Candidates, signals: Signals) -> Ranked:
    recs = candidates.recs
    keep = _not_hidden(recs.item_ids, ask, signals)
    kernels.drop_shown(hashes_of(recs.item_ids), ask.shown, keep)
    left = np.flatnonzero(keep)
    at = left[: ask.page_size].tolist()
    base = list_share(np.asarray(recs.scores, np.float32))
    return Ranked([recs.item_ids[i] for i in at], base[at], [recs.sources[i] for i in at], [recs.reasons[i] for i in at],
                  [recs.source_item_ids[i] for i in at], {"list_score": base[at]}, len(left) > len(at))


def _not_hidden(ids: Sequence[str], ask: Ask, signals: Signals, removed: frozenset[str] = _NOBODY) -> npt.NDArray[np.bool_]:
    keep = [i not in signals.hidden for i in ids]
    for others in (ask.exclude, ask.item_ids, removed):
        if others:
            keep = [ok and i not in others for i, ok in zip(ids, keep, strict=True)]
    return np.array(keep, np.bool_)


@dataclass
class _Pool:
    """n candidates: ids, positions in the bundle (-1: none), and their items' data (kernels.gather)."""

    ids: list[str]
    positions: I32
    keep: npt.NDArray[np.bool_]
    units: F32
    categories: I32
    impressions: F32
    boosts: F32


class _Request:
    """One call of ``rank``."""

    def __init__(self, ask: Ask, candidates: Candidates, signals: Signals, policy: ContextPolicy, bundle: Bundle,
                 overlay: Overlay | None) -> None:
        self.ask, self.recs, self.signals, self.policy, self.bundle = ask, candidates.recs, signals, policy, bundle
        self.overlay = overlay if overlay is not None and overlay.items else None
        self.removed = self.overlay.removed if self.overlay is not None else _NOBODY
        self.rows: OverlayRows | None = self.overlay.over(bundle) if self.overlay is not None else None
        self.rules: BundleRules = rules_of(policy, bundle)
        self.explored: set[str] = set()
        self.seed = hash64(f"{ask.user_id}\x00{ask.request_id}") >> 2

    def page(self) -> Ranked:
        recs, ask, policy = self.recs, self.ask, self.policy
        listed = list(recs.item_ids)
        hashes = hashes_of(listed)
        positions = self.bundle.find(hashes)
        keep = _not_hidden(listed, ask, self.signals, self.removed)
        if len(ask.shown):
            kernels.drop_shown(hashes, ask.shown, keep)
        extra = self._read_session(positions)
        ids = listed + [i for i, _ in extra]
        count, n = len(listed), len(ids)
        if extra:
            positions = np.concatenate([positions, np.array([p for _, p in extra], np.int32)])
            keep = np.concatenate([keep, np.ones(len(extra), np.bool_)])
        pool = self._gather(ids, positions, keep)
        share, cause = self._share(), np.full(n, -1, np.int32)
        self.table = np.zeros((len(FEATURES) + 1, n + _SLOTS), np.float32)
        scored = dict(zip((*FEATURES, "score"), self.table, strict=True))
        base, match, near, score = (scored[f][:n] for f in ("list_score", "preference", "session", "score"))
        scored["boost"][:n], scored["impressions"][:n] = pool.boosts, pool.impressions
        base[:count] = list_share(np.asarray(recs.scores, np.float32))
        if policy.preference > 0 and self.signals.preference:
            kernels.preference_match(pool.categories, share, match)
        if self.session is not None:
            kernels.session_of(positions, *self.near, near, cause)
            highest = near[pool.keep].max(initial=0)
            if highest > 0:
                near /= highest
        score[:] = base + np.float32(policy.preference) * match + np.float32(policy.session) * near + pool.boosts
        return self._answer(pool, scored, self._select(score, pool, share), cause, count)

    def _read_session(self, positions: I32) -> list[tuple[str, int]]:
        """Fills the places of items near the session; (id, position) of those that join the candidates."""
        policy, self.session = self.policy, None
        session = self.signals.session[: policy.session_items]
        if policy.session <= 0 or not session:
            return []
        bundle = self.bundle
        self.session = bundle.positions([i for i, _ in session])
        weights = np.array([w for _, w in session], np.float32)
        places = kernels.session_slots(len(session))
        items, sums, because = np.empty(places, np.int32), np.empty(places, np.float32), np.empty(places, np.int32)
        self.near = items, sums, because
        used = kernels.near_session(self.session, weights, bundle.neighbour_offsets, bundle.neighbours, bundle.strengths,
                                    SESSION_HALF_LIFE, items, sums, because)
        if not used or not policy.session_candidates:
            return []
        best = kernels.session_extras(2 * policy.session_candidates, items, sums, self.session, positions, self.rules.blocked,
                                      bundle.hashes, self.ask.shown)
        found: list[tuple[str, int]] = []
        while len(best) and (missing := policy.session_candidates - len(found)) > 0:
            names = bundle.ids(best[:missing])
            keep = _not_hidden(names, self.ask, self.signals, self.removed).tolist()
            found += [(i, p) for i, p, ok in zip(names, best[:missing].tolist(), keep, strict=True) if ok]
            best = best[missing:]
        return found

    def _gather(self, ids: list[str], positions: I32, keep: npt.NDArray[np.bool_]) -> _Pool:
        bundle, n = self.bundle, len(ids)
        pool = _Pool(ids, positions, keep, np.empty((n, bundle.manifest.dimensions), np.float32),
                     np.empty((n, kernels.CATEGORIES), np.int32), np.empty(n, np.float32), np.empty(n, np.float32))
        kernels.gather(positions, bundle.vectors, bundle.norms, bundle.category_offsets, bundle.category_codes,
                       bundle.impressions, self.rules.boost, self.rules.blocked, pool.units, pool.categories,
                       pool.impressions, pool.boosts, pool.keep)
        if self.rows is not None:
            for at, item_id in enumerate(ids):
                row = self.rows.row.get(item_id)
                if row is not None:
                    self._lay_over(pool, at, item_id, row)
        return pool

    def _lay_over(self, pool: _Pool, at: int, item_id: str, row: int) -> None:
        """What the newest upsert of an item says of it; it is active, whatever the bundle says."""
        assert self.rows is not None and self.overlay is not None
        codes = self.rows.categories[row][: kernels.CATEGORIES]
        pool.categories[at] = -1
        pool.categories[at, : len(codes)] = codes
        if pool.positions[at] < 0:
            pool.units[at] = self.rows.units[row]
        upsert = self.overlay.items[item_id]
        held = [r for r in self.policy.rules if matches(r, item_id, list(upsert.categories), dict(upsert.attributes))]
        was_inactive = pool.positions[at] >= 0 and not self.bundle.active[pool.positions[at]]
        pool.keep[at] = ((pool.keep[at] or was_inactive) and not any(r.kind == "block" for r in held)
                         and _not_hidden([item_id], self.ask, self.signals, self.removed)[0])
        pool.boosts[at] = sum(r.add for r in held)

    def _share(self) -> F32:
        """The user's share per category code."""
        code, added = self.bundle.category_code, self.rows.category_code if self.rows is not None else {}
        share = np.zeros(len(code) + len(added), np.float32)
        for name, value in self.signals.preference.items():
            at = code.get(name, added.get(name, -1))
            if at >= 0:
                share[at] = value
        return share

    def _select(self, scores: F32, pool: _Pool, share: F32) -> I32:
        policy = self.policy
        total = float(share.sum())
        calibration = policy.calibration if total > 0 else 0.0
        chosen = np.empty(self.ask.page_size, np.int32)
        size = kernels.select(scores, pool.keep, pool.units, pool.categories, share / np.float32(total or 1),
                              np.zeros(len(share), np.int64), self.ask.page_size, policy.diversity, calibration, SMOOTHING,
                              policy.max_per_category, chosen)
        return chosen[:size]

    def _answer(self, pool: _Pool, scored: dict[str, F32], chosen: I32, cause: I32, listed: int) -> Ranked:
        recs = self.recs
        session = [i for i, _ in self.signals.session]
        led = (np.float32(self.policy.session) * scored["session"] > scored["list_score"]).tolist()
        rows: list[tuple[str, str, str, str]] = []
        for i in chosen.tolist():
            source = recs.sources[i] if i < listed else "item_cf"
            if cause[i] >= 0 and led[i]:
                rows.append((pool.ids[i], source, "because_you_watched", session[cause[i]]))
            else:
                rows.append((pool.ids[i], source, recs.reasons[i], recs.source_item_ids[i]))
        places, left, slot = chosen.tolist(), int(np.count_nonzero(pool.keep)) - len(chosen), -1
        for number, rank in enumerate(self._slots(len(rows))):
            found = self._explored(pool, scored, places, rank, number)
            if found is not None:
                rows.insert(rank, found)
                slot = rank
        size = self.ask.page_size
        left, rows, at = left + max(0, len(rows) - size), rows[:size], np.array(places[:size], np.int64)
        ids, sources, reasons, because = zip(*rows, strict=True) if rows else ((), (), (), ())
        numbers = self.table[:, at]
        features = dict(zip(FEATURES, numbers, strict=False))
        return Ranked(ids, numbers[-1], sources, reasons, because, features, left > 0, slot)

    def _slots(self, size: int) -> list[int]:
        """Ranks (0-based) of exploration, the declared one last: who is little known gets one at half of it too."""
        slot = self.policy.explore_slot - 1
        if slot < 0 or slot >= min(self.ask.page_size, size + 1):
            return []
        return [slot // 2, slot] if self.signals.low_confidence and slot >= 2 else [slot]

    def _explored(self, pool: _Pool, scored: dict[str, F32], places: list[int], rank: int,
                  number: int) -> tuple[str, str, str, str] | None:
        """The item that few have seen for a slot, None where there is none; puts its place into ``places``."""
        rules, bundle, seed = self.rules, self.bundle, self.seed + rank
        drawn = rules.explorable[draw_places(seed, EXPLORED, len(rules.explorable))]
        n = len(pool.ids)
        taken = np.zeros(n, np.bool_)
        on_page = [i for i in places if i < n]
        taken[on_page] = True
        centre = pool.units[on_page].sum(axis=0)
        centre /= np.float32(max(math.sqrt(float(centre @ centre)), 1e-9))
        at, items, fit = (np.empty(n + len(drawn), kind) for kind in (np.int32, np.int32, np.float32))
        count = eligible(centre, pool.keep, pool.positions, taken, pool.units, drawn, bundle.vectors, bundle.norms,
                         rules.blocked, bundle.impressions, self.policy.explore_below, bundle.hashes, self.ask.shown,
                         at, items, fit)
        left = items[:count].copy()
        while (best := thompson(seed, rules.rate, left, fit, rules.clicks, bundle.impressions)) >= 0:
            place, item = int(at[best]), int(items[best])
            name = pool.ids[place] if place < n else bundle.ids(np.array([item]))[0]
            if name not in self.explored and _not_hidden([name], self.ask, self.signals, self.removed)[0]:
                break
            left[best] = -1
        else:
            return None
        self.explored.add(name)
        if place >= n:  # its values stand in a row of their own, behind the candidates'
            place = n + number
            scored["score"][place], scored["impressions"][place] = fit[best], bundle.impressions[item]
        places.insert(rank, place)
        return name, "exploration", "new" if bundle.age_days[item] < NEW_DAYS else "discovery", ""
