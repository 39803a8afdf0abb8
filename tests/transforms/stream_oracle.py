"""Values of the stream groups by their definitions, one event at a time, in plain Python: what states are tested against."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from schemas.event_types import EVENT_TYPES, NAMES
from schemas.keys import hash64, hash64_column
from schemas.tables import EVENTS

MINUTE = 60_000_000
HOUR, DAY = 60 * MINUTE, 1440 * MINUTE
PANE, GAP = 5 * MINUTE, 30 * MINUTE
WEIGHT = {t.name: t.weight for t in EVENT_TYPES}
ORIGIN = 19_000 * DAY + 17 * HOUR


@dataclass(frozen=True)
class Event:
    """One event; times are microseconds."""

    id: str
    user: str
    item: str | None
    kind: str
    time: int
    dwell: int | None
    price: float | None
    categories: tuple[str, ...]

    @property
    def interacts(self) -> bool:
        return WEIGHT[self.kind] > 0 and self.item is not None

    @property
    def order(self):
        return self.time, hash64(self.id)


_DRAWN = st.tuples(
    st.integers(0, 2), st.one_of(st.none(), st.integers(0, 5)), st.sampled_from(NAMES),
    st.one_of(st.none(), st.integers(0, 9_000)), st.one_of(st.none(), st.integers(-5, 9)),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([0, 0, 1, MINUTE, 4 * MINUTE, PANE, 20 * MINUTE, GAP - 1, GAP, GAP + 1, 2 * HOUR, 7 * HOUR]))


def _events(drawn) -> list[Event]:
    time, found = ORIGIN, []
    for k, (user, item, kind, dwell, price, categories, step) in enumerate(drawn):
        time += step
        found.append(Event(f"e{k}", f"u{user}", None if item is None else f"i{item}", kind, time, dwell,
                           None if price is None else price / 4, tuple(f"c{c}" for c in categories)))
    return found


def events(max_size=60):
    """Lists of events in order of their time."""
    return st.lists(_DRAWN, min_size=1, max_size=max_size).map(_events)


def batch(chosen: list[Event]) -> pa.RecordBatch:
    """The events as columns."""
    ids = pa.array([e.id for e in chosen], pa.string())
    return pa.RecordBatch.from_pydict({
        "user_id": pa.array([e.user for e in chosen], pa.string()).dictionary_encode(),
        "item_id": pa.array([e.item for e in chosen], pa.string()),
        "event_type": pa.array([e.kind for e in chosen], pa.string()),
        "occurred_at": pa.array([e.time for e in chosen], pa.int64()).cast(EVENTS.schema.field("occurred_at").type),
        "event_hash": pa.array(hash64_column(ids).view(np.int64)),
        "dwell_ms": pa.array([e.dwell for e in chosen], pa.int64()), "price": pa.array([e.price for e in chosen], pa.float64()),
        "categories": pa.array([list(e.categories) for e in chosen], pa.list_(pa.string()))})


def sessions(of_user: list[Event]) -> list[list[Event]]:
    """A user's events, cut where 30 minutes or more pass without one."""
    found: list[list[Event]] = []
    for event in sorted(of_user, key=lambda e: e.order):
        if not found or event.time - found[-1][-1].time >= GAP:
            found.append([])
        found[-1].append(event)
    return found


def _newest(chosen, cap):
    last = {}
    for event in sorted((e for e in chosen if e.interacts), key=lambda e: e.order):
        last[event.item] = event
    best = sorted(last.values(), key=lambda e: e.order, reverse=True)[:cap]
    return [(e.item, e.time, WEIGHT[e.kind]) for e in best]


def _prices(chosen):
    return [e.price for e in chosen if e.price is not None and WEIGHT[e.kind] > 0]


def _categories(event):
    return dict.fromkeys(event.categories) or {"unknown": None}


def _score(part, whole):
    return float(np.float32(part / whole))


def _decay(age):
    return round(2**24 * 2 ** (-age / 12))


def _decayed(weights, t, cap):
    """weights: (id, pane) -> integer. The cap keeps the best at the newest pane."""
    if not weights:
        return []
    newest = max(p for _, p in weights)

    def scores(pane):
        total = Counter()
        for (i, p), w in weights.items():
            if newest - p < 48 and 0 <= pane - p < 48:
                total[i] += _decay(pane - p) * w
        return sorted(((i, s) for i, s in total.items() if s > 0), key=lambda x: (-x[1], x[0].encode()))

    kept = {i for i, _ in scores(newest)[:cap]}
    return [(i, s) for i, s in scores(t // PANE) if i in kept]


def user_features(of_user: list[Event], t: int) -> dict[str, dict]:
    """Features of a user by group; t is not before the last event. Lists are (id, time, score) entries."""
    def count(kind, since):
        return float(sum(e.kind == kind and since <= e.time <= t for e in of_user))

    pane = t // PANE
    found: dict[str, dict] = {
        "user_panes": {k: v for n in NAMES for k, v in ((f"count_{n}_5m", count(n, pane * PANE)),
                                                        (f"count_{n}_1h", count(n, (pane - 11) * PANE)))},
        "user_day": {f"count_{n}_day": count(n, t // DAY * DAY) for n in NAMES},
        "user_recent": {"recent_items": [x for x in _newest(of_user, 50) if t - DAY < x[1] <= t]}}
    last = sessions(of_user)[-1]
    session: dict = {}
    if t - last[-1].time < GAP:
        prices, weights = _prices(last), Counter()
        for event in last:
            if event.interacts:
                weights.update(dict.fromkeys(_categories(event), WEIGHT[event.kind]))
        total = sum(weights.values())
        session = {
            "session_length_s": (last[-1].time - last[0].time) / 1e6, "session_events": float(len(last)),
            "session_dwell_ms": float(sum(e.dwell or 0 for e in last)),
            "session_price_min": min(prices, default=math.nan), "session_price_max": max(prices, default=math.nan),
            "session_price_mean": round(sum(p * 1e6 for p in prices)) / len(prices) / 1e6 if prices else math.nan,
            "session_items": _newest(last, 50),
            "session_categories": [(c, 0, _score(w, total)) for c, w in sorted(weights.items(), key=lambda x: (-x[1], x[0]))]}
    found["user_session"] = session
    weights = Counter()
    for event in of_user:
        if event.interacts:
            for category in _categories(event):
                weights[category, event.time // PANE] += WEIGHT[event.kind]
    decayed = _decayed(weights, t, 64)
    total = sum(s for _, s in decayed)
    found["user_preference"] = {"category_preference": [(i, 0, _score(s, total)) for i, s in decayed]}
    return found


def pair_users(all_events: list[Event], presence_cap: int = 32) -> Counter:
    """(item, other, pane) -> users."""
    found = Counter()
    has = defaultdict(set)
    for event in all_events:
        if event.interacts:
            has[event.user, event.time // PANE].add(event.item)
    has = {k: v for k, v in has.items() if len(v) <= presence_cap}
    for (user, pane), here in has.items():
        window = set().union(*(has.get((user, p), set()) for p in range(pane - 6, pane + 1)))
        found.update({(a, b, pane) for x in here for y in window if x != y for a, b in ((x, y), (y, x))})
    return found


def item_features(all_events: list[Event], item: str, t: int, presence_cap: int = 32, pane_cap: int = 32) -> dict[str, dict]:
    """Features of an item by group."""
    minute = t // MINUTE
    found = {"item_minutes": {f"popularity_{name}": float(sum(
        WEIGHT[e.kind] for e in all_events if e.item == item and (minute - n + 1) * MINUTE <= e.time <= t))
        for name, n in (("1m", 1), ("10m", 10), ("1h", 60))}}
    by_pane = defaultdict(dict)
    for (a, b, pane), users in pair_users(all_events, presence_cap).items():
        if a == item:
            by_pane[pane][b] = users
    weights = {(b, p): n for p, of_pane in by_pane.items()
               for b, n in sorted(of_pane.items(), key=lambda x: (-x[1], x[0].encode()))[:pane_cap]}
    found["item_cooccurring"] = {"recent_cooccurring_items": [(i, 0, _score(s, 2**24)) for i, s in _decayed(weights, t, 200)]}
    return found


def pane_rows(all_events: list[Event]) -> Counter:
    """(user, pane, type) -> events."""
    return Counter((e.user, e.time // PANE, e.kind) for e in all_events)


def session_rows(all_events: list[Event]) -> list[tuple]:
    """(user, start, end, events, dwell_sum, price_sum, price_min, price_max) of every session, sorted."""
    found = []
    for user in {e.user for e in all_events}:
        for one in sessions([e for e in all_events if e.user == user]):
            prices = [round(p * 1e6) for p in _prices(one)]
            found.append((user, one[0].time, one[-1].time, len(one), sum(e.dwell or 0 for e in one), sum(prices),
                          min(prices, default=None), max(prices, default=None)))
    return sorted(found, key=repr)
