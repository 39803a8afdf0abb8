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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from models.inference.idtable import hashes_of
from schemas.keys import hash64
from serving.ranking import kernels
from serving.ranking.explore import draw_places, thompson
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
    hidden, excluded, asked = signals.hidden, ask.exclude, ask.item_ids
    if removed:
        hidden = hidden | removed
    return np.array([i not in hidden and i not in excluded and i not in asked for i in ids], np.bool_)


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
        self.seed = hash64(f"{ask.user_id}\x00{ask.request_id}") >> 1

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
        base = np.zeros(n, np.float32)
        base[:count] = list_share(np.asarray(recs.scores, np.float32))
        share = self._share()
        match, near, cause = np.zeros(n, np.float32), np.zeros(n, np.float32), np.full(n, -1, np.int32)
        if policy.preference > 0 and self.signals.preference:
            kernels.preference_match(pool.categories, share, match)
        if self.session is not None:
            kernels.session_of(positions, *self.near, near, cause)
            highest = near[pool.keep].max(initial=0)
            near = near / highest if highest > 0 else near
        scores = base + np.float32(policy.preference) * match + np.float32(policy.session) * near + pool.boosts
        chosen = self._select(scores, pool, share)
        scored = {"list_score": base, "preference": match, "session": near, "boost": pool.boosts,
                  "impressions": pool.impressions}
        return self._answer(pool, scores, scored, chosen, cause, count)

    def _read_session(self, positions: I32) -> list[tuple[str, int]]:
        """Fills the places of items near the session; (id, position) of those that join the candidates."""
        policy, self.session = self.policy, None
        session = self.signals.session[: policy.session_items]
        if policy.session <= 0 or not session:
            return []
        bundle = self.bundle
        self.session = bundle.positions([i for i, _ in session])
        weights = np.array([w for _, w in session], np.float32)
        items, sums = np.empty(kernels.SESSION_SLOTS, np.int32), np.empty(kernels.SESSION_SLOTS, np.float32)
        because = np.empty(kernels.SESSION_SLOTS, np.int32)
        self.near = items, sums, because
        used = kernels.near_session(self.session, weights, bundle.neighbour_offsets, bundle.neighbours, bundle.strengths,
                                    SESSION_HALF_LIFE, items, sums, because)
        if not used or not policy.session_candidates:
            return []
        best = kernels.session_extras(2 * policy.session_candidates, items, sums, self.session, positions, self.rules.blocked,
                                      bundle.hashes, self.ask.shown)
        names = bundle.ids(best)
        keep = _not_hidden(names, self.ask, self.signals, self.removed)
        found = [(i, p) for i, p, ok in zip(names, best.tolist(), keep.tolist(), strict=True) if ok]
        return found[: policy.session_candidates]

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

    def _answer(self, pool: _Pool, scores: F32, scored: dict[str, F32], chosen: I32, cause: I32, listed: int) -> Ranked:
        recs, policy = self.recs, self.policy
        ids, sources, reasons, because = [], [], [], []
        session = [i for i, _ in self.signals.session]
        led = np.float32(policy.session) * scored["session"] > scored["list_score"]
        for i in chosen.tolist():
            ids.append(pool.ids[i])
            sources.append(recs.sources[i] if i < listed else "item_cf")
            if cause[i] >= 0 and led[i]:
                reasons.append("because_you_watched")
                because.append(session[cause[i]])
            else:
                reasons.append(recs.reasons[i])
                because.append(recs.source_item_ids[i])
        left = int(pool.keep.sum()) - len(chosen)
        page = Ranked(ids, scores[chosen], sources, reasons, because, {name: v[chosen] for name, v in scored.items()}, left > 0)
        for slot in self._slots(len(ids)):
            page = self._explore(page, pool, scores, scored, chosen, slot)
        return page

    def _slots(self, size: int) -> list[int]:
        """Ranks (0-based) of exploration, the declared one last: who is little known gets one at half of it too."""
        slot = self.policy.explore_slot - 1
        if slot < 0 or slot >= min(self.ask.page_size, size + 1):
            return []
        return [slot // 2, slot] if self.signals.low_confidence and slot >= 2 else [slot]

    def _explore(self, page: Ranked, pool: _Pool, scores: F32, scored: dict[str, F32], chosen: I32, slot: int) -> Ranked:
        """The page with an item that few have seen at ``slot``, in the place of its last item where it is full."""
        rules, bundle, seed = self.rules, self.bundle, self.seed + slot
        shown = set(page.item_ids)
        drawn = rules.explorable[draw_places(seed, EXPLORED, len(rules.explorable))]
        few = pool.keep & (pool.positions >= 0) & (pool.impressions < self.policy.explore_below)
        listed = np.flatnonzero(few).astype(np.int32)
        names = bundle.ids(drawn)
        keep = _not_hidden(names, self.ask, self.signals, self.removed)
        if len(self.ask.shown):
            kernels.drop_shown(bundle.hashes[drawn], self.ask.shown, keep)
        other = self._gather(names, drawn, keep)
        ids = [pool.ids[i] for i in listed.tolist()] + names
        eligible = np.concatenate([np.ones(len(listed), np.bool_), other.keep])
        eligible &= np.array([i not in shown for i in ids], np.bool_)
        if not eligible.any():
            return page
        units = np.concatenate([pool.units[listed], other.units])
        positions = np.concatenate([pool.positions[listed], drawn])
        seen = bundle.impressions[positions]
        rates = np.nan_to_num(bundle.click_rate[positions], nan=rules.rate)
        clicks = np.clip(rates * (seen + 20) - np.float32(20 * rules.rate), 0, seen).astype(np.float32)
        centre = pool.units[chosen].sum(axis=0)
        fit = np.clip(units @ (centre / max(float(np.sqrt(centre @ centre)), 1e-9)), 0, 1).astype(np.float32)
        at = thompson(seed, rules.rate, fit, clicks, seen, eligible)
        if at < len(listed):
            i = int(listed[at])
            score, values = scores[i], {name: v[i] for name, v in scored.items()}
        else:
            score, values = fit[at], {name: np.float32(0) for name in scored} | {"impressions": seen[at]}
        is_new = bool(bundle.age_days[positions[at]] < NEW_DAYS)
        return _placed(page, slot, self.ask.page_size, ids[at], score, "new" if is_new else "discovery", values)


def _placed(page: Ranked, slot: int, size: int, item_id: str, score: np.float32, reason: str,
            values: dict[str, np.float32]) -> Ranked:
    """The page with one item put in at ``slot``, cut to ``size``."""
    def put(values: Sequence[str], value: str) -> list[str]:
        return [*values[:slot], value, *values[slot:]][:size]

    features = {name: np.insert(column, slot, values[name])[:size] for name, column in page.features.items()}
    return Ranked(put(page.item_ids, item_id), np.insert(page.scores, slot, score)[:size], put(page.sources, "exploration"),
                  put(page.reasons, reason), put(page.because, ""), features, page.more or len(page.item_ids) == size, slot)
