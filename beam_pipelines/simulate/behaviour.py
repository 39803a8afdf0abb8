"""What happens on one day: sessions, pages of impressions, and the funnel behind each impression, in columns.

Rows are kept as integer codes (``Rows``); nothing is text until ``columns`` makes it so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from beam_pipelines.simulate.world import DEVICES, DIMENSIONS, F32, I32, I64, PAGE, World, examination, generator
from schemas.event_types import CODES
from schemas.workspace import DAY_MICROS

SECOND, MINUTE, HOUR = 1_000_000, 60_000_000, 3_600_000_000
SURFACES = ("homepage", "item", "cart", "email")
REFERRERS = ("direct", "search", "newsletter", "social")
_SEEN_BITS = 27  # of the filter that keeps a user from clicking an item twice: 16 MiB, a false hit only drops a click
_TASTES = 4  # categories a session is in the mood for
_PAGES = 12  # of a session at most
_CHUNK = 65_536  # impressions at a time: temporaries stay in the processor's cache
ORDERED = 1 << 40  # events, sessions and requests are numbered day * ORDERED + position


@dataclass
class Rows:
    """Events as codes, one array each, all of one length.

    Attributes:
      number: unique in the world, day * ORDERED + position; kind: codes of event_types; user, item: indices of the World,
        item -1 for none; at: microseconds; lag: microseconds until ingested; session, request: numbers, -1 for none;
        position: on the page, 0 for none; dwell: ms, -1 for none; value: NaN for none; device, surface, referrer: codes,
        referrer -1 for none.
    """

    number: I64
    kind: npt.NDArray[np.int8]
    user: I32
    item: I32
    at: I64
    lag: I64
    session: I64
    request: I64
    position: npt.NDArray[np.int8]
    dwell: I32
    value: npt.NDArray[np.float32]
    device: npt.NDArray[np.int8]
    surface: npt.NDArray[np.int8]
    referrer: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Rows:
        """The rows of an index or mask."""
        return Rows(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def concat(parts: list[Rows]) -> Rows:
        """All rows, in order."""
        return Rows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


@dataclass
class Day:
    """What a day produced: its rows, rows of later days (delayed outcomes), and how many an outage swallowed."""

    rows: Rows
    later: Rows
    lost: int


class Behaviour:
    """Days of a World, one after the other: only who clicked what carries over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen = np.zeros(1 << (_SEEN_BITS - 3), np.uint8)

    def day(self, day: int) -> Day:
        """Day number ``day`` (0 is the first); call it for 0, 1, 2, ... in turn."""
        rng = generator(self._world.spec, 1000, day)
        start = self._world.spec.first + day * DAY_MICROS
        parts = [self._signups(start), *self._sessions(rng, day, start)]
        if self._world.spec.bots:
            parts.append(self._bots(rng, day, start))
        rows = Rows.concat(parts)
        rows.number = day * ORDERED + np.arange(len(rows))
        rows, lost = self._delays(rng, rows, start)
        today = rows.at < start + DAY_MICROS
        if today.all():
            return Day(rows, rows.take(slice(0, 0)), lost)  # type: ignore[arg-type]
        return Day(rows.take(today), rows.take(~today), lost)

    def _signups(self, start: int) -> Rows:
        world = self._world
        new = np.flatnonzero((world.user_born >= start) & (world.user_born < start + DAY_MICROS))
        return event_rows(len(new), kind="signup", user=new, at=world.user_born[new], device=world.user_device[new])

    def _sessions(self, rng: np.random.Generator, day: int, start: int) -> list[Rows]:
        world, spec = self._world, self._world.spec
        real = slice(0, spec.users)
        weekend = 1.25 if (start // DAY_MICROS + 3) % 7 >= 5 else 0.9
        count = rng.poisson(world.user_activity[real] * weekend)
        count[world.user_born[real] >= start + DAY_MICROS] = 0
        user = np.repeat(np.arange(spec.users, dtype=np.int32), count)
        n = len(user)
        hours = (rng.choice(24, n, p=_HOURS) - world.hours_east[world.user_country[user]]) % 24
        begin = start + hours * HOUR + rng.integers(0, HOUR, n)
        begin = np.maximum(begin, world.user_born[user] + MINUTE)
        on_time = begin < start + DAY_MICROS
        shelves = Shelves.at(world, start)
        if shelves is None or not on_time.any():
            return []
        return self.sessions(rng, day * ORDERED, user[on_time], begin[on_time], shelves)

    def sessions(self, rng: np.random.Generator, first: int, user: I32, begin: I64, shelves: Shelves) -> list[Rows]:
        """What n sessions bring about, in parts; their rows have no number yet.

        Args:
          first: sessions are numbered from here on, requests too; both take less than 12 n numbers.
          user, begin: (n,) whose session it is and when it begins.
          shelves: what there is to show.
        """
        world, n = self._world, len(user)
        device = np.where(rng.random(n) < 0.8, world.user_device[user], rng.integers(0, len(DEVICES), n)).astype(np.int8)
        referrer = rng.choice(len(REFERRERS), n, p=[0.55, 0.25, 0.1, 0.1]).astype(np.int8)
        surface = np.where(referrer == 2, 3, rng.choice(len(SURFACES), n, p=[0.72, 0.22, 0.06, 0])).astype(np.int8)
        shown = PAGE * rng.geometric(0.45, n).clip(1, _PAGES)
        mood = _moods(rng, world, user)
        bounds = np.searchsorted(np.cumsum(shown), np.arange(_CHUNK, int(shown.sum()) + _CHUNK, _CHUNK), side="left")
        parts, done = [], 0
        for last in np.unique(np.minimum(bounds + 1, n)).tolist():
            s = np.arange(done, last)
            parts += self._pages(rng, first, s, user, begin, device, referrer, surface, shown, mood, shelves)
            done = last
        return parts

    def _pages(self, rng: np.random.Generator, first: int, sessions: npt.NDArray[np.intp], user: I32, begin: I64,
               device: npt.NDArray[np.int8], referrer: npt.NDArray[np.int8], surface: npt.NDArray[np.int8],
               shown: npt.NDArray[np.integer], mood: npt.NDArray[np.int8], shelves: Shelves) -> list[Rows]:
        """The impressions of some sessions, and what follows from each."""
        world = self._world
        of = np.repeat(sessions, shown[sessions])
        n = len(of)
        rank = np.arange(n) - np.repeat(np.cumsum(shown[sessions]) - shown[sessions], shown[sessions])
        page, position = rank // PAGE, (rank % PAGE + 1).astype(np.int8)
        item = shelves.draw(rng, mood[of, rng.integers(0, _TASTES, n, dtype=np.int8)])
        at = begin[of] + page * (90 * SECOND) + (rank % PAGE + 1) * (3 * SECOND)
        impressions = Rows(
            number=np.zeros(n, np.int64), kind=np.full(n, CODES["impression"], np.int8), user=user[of], item=item, at=at,
            lag=np.zeros(n, np.int64), session=first + of, request=first + of * _PAGES + page,
            position=position, dwell=np.full(n, -1, np.int32), value=np.full(n, np.nan, np.float32), device=device[of],
            surface=surface[of], referrer=referrer[of])
        looked = np.flatnonzero(rng.random(n, np.float32) < examination(np.arange(1, PAGE + 1))[position - 1])
        chance = world.propensity(impressions.user[looked], item[looked])
        draw = rng.random(len(looked), np.float32)
        clicked, passed = looked[draw < chance], looked[draw > np.float32(0.97)]
        clicked = clicked[self._first_time(impressions.user[clicked], item[clicked])]
        skips = _after(impressions.take(passed), "skip", 2 * SECOND)
        return [impressions, skips, *self._funnel(rng, impressions.take(clicked))]

    def _funnel(self, rng: np.random.Generator, seen: Rows) -> list[Rows]:
        """From clicked impressions: click with dwell, view, save, cart, purchase (at once or delayed), return, rating."""
        world, n = self._world, len(seen)
        affinity = np.einsum("ij,ij->i", world.user_taste[seen.user], world.item_taste[seen.item])
        clicks = _after(seen, "click", 1 * SECOND)
        clicks.dwell = (np.exp(rng.normal(9.0, 0.8, n)) * (1 + affinity.clip(0))).astype(np.int32)
        draw = rng.random(n)
        views = _after(clicks.take(draw < 0.3), "view", 5 * SECOND)
        saves = _after(clicks.take((draw >= 0.3) & (draw < 0.38)), "save", 15 * SECOND)
        carts = _after(clicks.take(rng.random(n) < 0.12 + 0.18 * affinity.clip(0)), "cart", 20 * SECOND)
        buys = carts.take(rng.random(len(carts)) < 0.55)
        k = len(buys)
        at_once = rng.random(k) < 0.65
        wait = np.where(at_once, rng.uniform(60, 900, k), rng.exponential(1.5 * 86_400, k).clip(3_600, 10 * 86_400))
        buys = _after(buys, "purchase", (wait * SECOND).astype(np.int64))
        buys.value = world.item_price[buys.item].astype(np.float32)
        buys.session = np.where(at_once, buys.session, -1)
        returns = buys.take(rng.random(k) < 0.08)
        returns = _after(returns, "return", (rng.uniform(1, 9, len(returns)) * DAY_MICROS).astype(np.int64))
        rated = rng.random(k) < 0.3
        ratings = _after(buys.take(rated), "rating", (rng.uniform(0.2, 5, int(rated.sum())) * DAY_MICROS).astype(np.int64))
        love = np.einsum("ij,ij->i", world.user_taste[ratings.user], world.item_taste[ratings.item])
        ratings.value = np.round(2.6 + 2.2 * love + rng.normal(0, 0.6, len(ratings))).clip(1, 5).astype(np.float32)
        returns.session = np.full(len(returns), -1, np.int64)
        ratings.session = np.full(len(ratings), -1, np.int64)
        return [clicks, views, saves, carts, buys, returns, ratings]

    def _first_time(self, users: I32, items: I32) -> npt.NDArray[np.bool_]:
        """Whether the filter has not met each pair; it has afterwards. Of equal pairs in one call the first counts."""
        mixed = (users.astype(np.uint64) << np.uint64(32) | items.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        bit = mixed >> np.uint64(64 - _SEEN_BITS)
        new = np.zeros(len(bit), bool)
        new[np.unique(bit, return_index=True)[1]] = True
        byte, mask = (bit >> np.uint64(3)).astype(np.intp), np.uint8(1) << (bit & np.uint64(7)).astype(np.uint8)
        new &= self._seen[byte] & mask == 0
        np.bitwise_or.at(self._seen, byte[new], mask[new])
        return new

    def _bots(self, rng: np.random.Generator, day: int, start: int) -> Rows:
        """Each bot clicks some 300 items a day in one go, a second apart, whatever they are."""
        spec = self._world.spec
        alive = self._world.alive_items(start)
        clicks = rng.poisson(300, spec.bots)
        bot = np.repeat(np.arange(spec.bots), clicks)
        n = len(bot)
        rank = np.arange(n) - np.repeat(np.cumsum(clicks) - clicks, clicks)
        at = start + rng.integers(0, 20 * HOUR, spec.bots)[bot] + rank * SECOND
        return event_rows(n, kind="click", user=spec.users + bot, item=rng.choice(alive, n), at=at,
                          dwell=np.full(n, 40, np.int32), session=(day + 1) * ORDERED - 1 - bot, device=np.ones(n, np.int8))

    def _delays(self, rng: np.random.Generator, rows: Rows, start: int) -> tuple[Rows, int]:
        """Sets when each row is ingested; drops what an outage swallows."""
        spec, n = self._world.spec, len(rows)
        rows.lag = (rng.random(n, np.float32) * np.float32(2 * SECOND)).astype(np.int64) + 50_000
        late = np.flatnonzero(rng.random(n, np.float32) < spec.late)
        rows.lag[late] += (rng.exponential(40, len(late)).clip(1, 600) * MINUTE).astype(np.int64)
        lost = np.zeros(n, bool)
        for _ in range(rng.poisson(spec.outages)):
            begin = start + int(rng.integers(0, DAY_MICROS))
            end = begin + int(rng.integers(20, 120)) * MINUTE
            arrives = rows.at + rows.lag
            hit = np.flatnonzero((arrives >= begin) & (arrives < end))
            lost[hit] = rng.random(len(hit)) < 0.2
            rows.lag[hit] = end - rows.at[hit] + rng.integers(0, 5 * MINUTE, len(hit))
        return (rows.take(~lost), int(lost.sum())) if lost.any() else (rows, 0)


class Shelves:
    """Draws items to show: from a category or from all by popularity, or any living item by chance."""

    @classmethod
    def at(cls, world: World, at: int) -> Shelves | None:
        """What can be shown at a moment (microseconds); None when no item is alive."""
        alive = world.alive_items(at)
        return cls(world, alive, at) if len(alive) else None

    def __init__(self, world: World, alive: npt.NDArray[np.intp], at: int) -> None:
        order = alive[np.argsort(world.item_category[alive], kind="stable")]
        age_days = (at - world.item_born[order]) / DAY_MICROS
        weight = world.item_weight[order] * np.exp2(-age_days.clip(0) / 120).clip(0.05)  # interest fades
        slots = max(1 << 18, 1 << (8 * len(order) - 1).bit_length())
        edges = np.round(np.cumsum(weight) / weight.sum() * slots).astype(np.int64)
        self._table = np.repeat(order.astype(np.int32), np.diff(edges, prepend=0))
        ends = np.zeros(len(world.centres) + 1, np.int64)
        category = world.item_category[order]
        for c in range(len(world.centres)):
            members = np.flatnonzero(category == c)
            ends[c + 1] = edges[members[-1]] if len(members) else ends[c]
        self._base, self._size = ends[:-1].astype(np.float64), np.diff(ends).astype(np.float64)
        self._alive = order.astype(np.int32)

    def draw(self, rng: np.random.Generator, category: npt.NDArray[np.int8]) -> I32:
        """One item per category code: 55 % from it, 30 % from all by popularity, 15 % by chance."""
        n = len(category)
        way, point = rng.random(n, np.float32), rng.random(n)
        own = (way < np.float32(0.55)) & (self._size[category] > 0)
        slot = np.where(own, self._base[category] + point * self._size[category], point * len(self._table)).astype(np.int64)
        item = self._table[slot]
        chance = way >= np.float32(0.85)
        item[chance] = self._alive[(point[chance] * len(self._alive)).astype(np.int64)]
        return item


def _moods(rng: np.random.Generator, world: World, user: I32) -> npt.NDArray[np.int8]:
    """Categories a session browses, shape (n, _TASTES), drawn from the softmax of the user's taste for each centre."""
    moods = np.empty((len(user), _TASTES), np.int8)
    for at in range(0, len(user), _CHUNK):
        who = user[at : at + _CHUNK]
        liking: F32 = np.exp(np.float32(5) * (world.user_taste[who].reshape(-1, DIMENSIONS) @ world.centres.T))
        edges = np.cumsum(liking, axis=1)
        edges /= edges[:, -1:]
        for k in range(_TASTES):
            point = rng.random((len(who), 1), np.float32)
            moods[at : at + _CHUNK, k] = (edges[:, :-1] < point).sum(1)
    return moods


def _after(rows: Rows, kind: str, delay: int | I64) -> Rows:
    """The same rows as another event, later; without dwell and value."""
    n = len(rows)
    made = Rows(**{f.name: getattr(rows, f.name) for f in fields(rows)})
    made.kind, made.at = np.full(n, CODES[kind], np.int8), rows.at + delay
    made.dwell, made.value = np.full(n, -1, np.int32), np.full(n, np.nan, np.float32)
    return made


def event_rows(n: int, kind: str, user: npt.NDArray[np.integer], at: I64, item: npt.NDArray[np.integer] | None = None,
               dwell: I32 | None = None, session: I64 | None = None, device: npt.NDArray[np.int8] | None = None) -> Rows:
    """n events of one type; what is not given is absent."""
    none64 = np.full(n, -1, np.int64)
    return Rows(
        number=none64, kind=np.full(n, CODES[kind], np.int8), user=user.astype(np.int32),
        item=np.full(n, -1, np.int32) if item is None else item.astype(np.int32), at=at, lag=np.zeros(n, np.int64),
        session=none64 if session is None else session, request=none64, position=np.zeros(n, np.int8),
        dwell=np.full(n, -1, np.int32) if dwell is None else dwell, value=np.full(n, np.nan, np.float32),
        device=np.zeros(n, np.int8) if device is None else device, surface=np.zeros(n, np.int8),
        referrer=np.full(n, -1, np.int8))


_HOURS = np.array([1.0, 0.6, 0.4, 0.3, 0.3, 0.5, 1, 2, 3, 3.5, 3.5, 3.5, 4, 4, 3.5, 3.5, 4, 4.5, 5.5, 7, 8, 7.5, 5, 2.5])
_HOURS /= _HOURS.sum()
