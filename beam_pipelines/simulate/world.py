"""The truth of a simulated world, recreated exactly from its seed: tastes, qualities, births, deaths, devices.

A user u clicks an item i that they look at with probability ``sigmoid(BIAS + SHARPNESS * <taste_u, taste_i> + quality_i)``
(``World.propensity``), and looks at position p of a page with probability ``p ** -0.6`` (``examination``). What is shown
mixes taste, popularity and chance, so a recommender has to undo position bias and popularity to find the propensity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime

import numpy as np
import numpy.typing as npt

from schemas.workspace import DAY_MICROS

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

DIMENSIONS = 16
BIAS, SHARPNESS = -3.0, 4.0
PAGE = 10  # items on a page
FOUNDING_SHARE = 0.7  # of users and items that are there on the first day
GROWTH_DAYS = 60  # over which the others arrive, whatever the length of the simulation
FIRST_DAY = "2026-01-01"
CATEGORIES = (
    "Mystery", "Comedy", "Drama", "Science Fiction", "Romance", "Thriller", "Documentary", "Animation", "Fantasy", "Western",
    "Musical", "Horror", "Adventure", "War", "History", "Sport", "Family", "Crime", "Travel", "Cooking", "Nature", "Music",
    "Biography", "Satire")
DEVICES = ("mobile", "desktop", "tablet")
SYSTEMS = ("android", "ios", "windows", "macos", "linux")
COUNTRIES = ("DE", "FR", "US", "GB", "BR", "IN", "JP", "ES", "IT", "PL", "NL", "SE")
_HOURS_EAST = np.array([1, 1, -5, 0, -3, 5, 9, 1, 1, 1, 1, 1])
_COUNTRY_SHARES = np.array([14, 12, 20, 10, 8, 10, 6, 6, 5, 4, 3, 2]) / 100
_FIRST = (
    "Blue", "Silent", "Golden", "Hidden", "Broken", "Distant", "Scarlet", "Last", "Velvet", "Frozen", "Wild", "Electric",
    "Quiet", "Paper", "Midnight", "Hollow", "Burning", "Little", "Crooked", "Silver", "Lost", "Copper", "Winter", "Glass",
    "Secret", "Restless", "Painted", "Northern", "Second", "Invisible", "Gentle", "Rusted")
_SECOND = (
    "Harbor", "Garden", "River", "Letter", "Orchard", "Station", "Mirror", "Kingdom", "Lantern", "Summer", "Bridge",
    "Signal", "Mountain", "Stranger", "Island", "Promise", "Engine", "Forest", "Window", "Season", "Crossing", "Shadow",
    "Voyage", "Theatre", "Winter", "Machine", "Village", "Echo", "Compass", "Carnival", "Horizon", "Sparrow")


@dataclass(frozen=True)
class WorldSpec:
    """What a world is made from. Two worlds of one spec are equal; more ``days`` continue the same world.

    Attributes:
      users, items: how many there will ever be (a share arrives during the first GROWTH_DAYS).
      days: days simulated from ``start`` on.
      seed: of everything.
      sessions: mean sessions of a user on a day.
      bots: accounts that click hundreds of items a day without looking.
      outages: expected outages of the collector on a day; some events are lost, the others arrive when it is back.
      duplicates: share of events that are sent twice.
      late: share of events that arrive minutes to hours after they happened.
      start: the first day, as 2026-01-01; it moves everything in time and changes nothing else but weekends.
    """

    users: int = 2_000
    items: int = 1_000
    days: int = 45
    seed: int = 7
    sessions: float = 0.5
    bots: int = 0
    outages: float = 0.0
    duplicates: float = 0.01
    late: float = 0.02
    start: str = FIRST_DAY

    def __post_init__(self) -> None:
        checks = {
            "users must be at least 1": self.users >= 1, "items must be at least 20": self.items >= 20,
            "days must be between 1 and 3650": 1 <= self.days <= 3650, "sessions must be in (0, 50]": 0 < self.sessions <= 50,
            "bots must not be negative": self.bots >= 0, "outages must be in [0, 10]": 0 <= self.outages <= 10,
            "duplicates must be in [0, 0.5]": 0 <= self.duplicates <= 0.5, "late must be in [0, 0.9]": 0 <= self.late <= 0.9,
            "users, bots and items must be at most 100 million": max(self.users + self.bots, self.items) <= 10**8,
            "seed must be at least 0": self.seed >= 0,
        }
        for message, good in checks.items():
            if not good:
                raise ValueError(message)
        try:
            day = date.fromisoformat(self.start)
        except ValueError as error:
            raise ValueError(f"start must be a date like {FIRST_DAY}, not {self.start!r}") from error
        if not date(1980, 1, 1) <= day <= date(2150, 1, 1):
            raise ValueError("start must lie between 1980 and 2150")

    @property
    def first(self) -> int:
        """The midnight at which the first day begins, microseconds."""
        return int(datetime.combine(date.fromisoformat(self.start), datetime.min.time(), UTC).timestamp()) * 1_000_000

    def json(self) -> dict[str, float | int | str]:
        """As in world.json."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("start", FIRST_DAY)}


@dataclass(frozen=True)
class World:
    """The truth. Users past ``spec.users`` are bots. Times are microseconds since 1970, UTC.

    Attributes:
      user_taste: (users + bots, DIMENSIONS) unit vectors; item_taste: (items, DIMENSIONS) near their category's centre.
      item_quality: (items,) added to the click logit; item_weight: (items,) Zipf popularity, exponent 0.9.
      item_category, item_second: (items,) codes of CATEGORIES, second -1 for none; item_price: (items,) money.
      item_born, item_dies, user_born: microseconds; an item that lives on dies at the largest int64.
      user_activity: (users + bots,) mean sessions a day; user_device, user_country: codes of DEVICES and COUNTRIES.
    """

    spec: WorldSpec
    centres: F32
    user_taste: F32
    user_activity: F32
    user_born: I64
    user_device: npt.NDArray[np.int8]
    user_country: npt.NDArray[np.int8]
    item_taste: F32
    item_quality: F32
    item_weight: F32
    item_category: npt.NDArray[np.int8]
    item_second: npt.NDArray[np.int8]
    item_price: npt.NDArray[np.float64]
    item_year: npt.NDArray[np.int16]
    item_born: I64
    item_dies: I64

    @classmethod
    def from_seed(cls, spec: WorldSpec) -> World:
        """Builds the world of a spec."""
        rng = generator(spec, 0)
        centres = _unit(rng.standard_normal((len(CATEGORIES), DIMENSIONS), np.float32))
        items = generator(spec, 1)
        n = spec.items
        category = items.choice(len(CATEGORIES), n, p=_zipf(len(CATEGORIES), 0.5)).astype(np.int8)
        second = items.integers(0, len(CATEGORIES), n).astype(np.int8)
        second[(items.random(n) < 0.5) | (second == category)] = -1
        blend = centres[category] + np.where(second[:, None] >= 0, np.float32(0.5) * centres[second], np.float32(0))
        weight = _zipf(n, 0.9)[items.permutation(n)].astype(np.float32)
        born = _arrivals(items, n, 900, spec.first)
        lives = (items.exponential(90, n) * DAY_MICROS).astype(np.int64)
        gone = np.maximum(born + lives, spec.first + DAY_MICROS)  # nothing is gone before the first day
        dies = np.where(items.random(n) < 0.2, gone, np.iinfo(np.int64).max)
        users = generator(spec, 2)
        m = spec.users + spec.bots
        favourite = users.choice(len(CATEGORIES), (m, 2), p=_zipf(len(CATEGORIES), 0.5))
        taste = centres[favourite[:, 0]] + np.float32(0.7) * centres[favourite[:, 1]]
        taste += np.float32(0.12) * users.standard_normal((m, DIMENSIONS), np.float32)
        activity = users.gamma(1.2, spec.sessions / 1.2, m).astype(np.float32)
        activity[spec.users :] = 4.0
        return cls(
            spec=spec, centres=centres, user_taste=_unit(taste), user_activity=activity,
            user_born=_arrivals(users, m, 400, spec.first),
            user_device=users.choice(len(DEVICES), m, p=[0.6, 0.3, 0.1]).astype(np.int8),
            user_country=users.choice(len(COUNTRIES), m, p=_COUNTRY_SHARES).astype(np.int8),
            item_taste=_unit(blend + np.float32(0.15) * items.standard_normal((n, DIMENSIONS), np.float32)),
            item_quality=items.normal(0, 0.5, n).astype(np.float32), item_weight=weight, item_category=category,
            item_second=second, item_price=np.round(np.exp(items.normal(2.3, 0.7, n)), 2).astype(np.float64),
            item_year=(2026 - items.gamma(1.5, 12, n)).clip(1925, 2026).astype(np.int16), item_born=born, item_dies=dies)

    @property
    def end(self) -> int:
        """The midnight after the last day, microseconds."""
        return self.spec.first + self.spec.days * DAY_MICROS

    @property
    def hours_east(self) -> I32:
        """Offset of local time per country code."""
        return _HOURS_EAST.astype(np.int32)

    def propensity(self, users: npt.NDArray[np.integer], items: npt.NDArray[np.integer]) -> F32:
        """True probability, shape (n,), that user users[k] clicks item items[k] once they look at it."""
        affinity = np.einsum("ij,ij->i", self.user_taste[users], self.item_taste[items])
        logit = np.float32(BIAS) + np.float32(SHARPNESS) * affinity + self.item_quality[items]
        return np.float32(1) / (np.float32(1) + np.exp(-logit))

    def alive_items(self, at: int) -> npt.NDArray[np.intp]:
        """Indices of the items that can be shown at a moment (microseconds)."""
        return np.flatnonzero((self.item_born <= at) & (at < self.item_dies))

    def user_ids(self, users: npt.NDArray[np.integer]) -> npt.NDArray[np.str_]:
        """Ids of user indices: u000042, or bot0000042."""
        width = max(6, len(str(self.spec.users)))
        ids = np.char.add("u", np.char.zfill(users.astype(str), width))
        if self.spec.bots:
            bots = users >= self.spec.users
            ids = ids.astype(f"<U{width + 4}")
            ids[bots] = np.char.add("bot", np.char.zfill((users[bots] - self.spec.users).astype(str), width))
        return ids

    def item_ids(self, items: npt.NDArray[np.integer]) -> npt.NDArray[np.str_]:
        """Ids of item indices: i00042."""
        return np.char.add("i", np.char.zfill(items.astype(str), max(5, len(str(self.spec.items)))))

    def title(self, item: int) -> str:
        """A readable title, e.g. "Blue Harbor (Mystery, 1987)"."""
        words = item * 2654435761 % (len(_FIRST) * len(_SECOND))  # odd multiplier: the first 1024 items all differ
        name = f"{_FIRST[words % len(_FIRST)]} {_SECOND[words // len(_FIRST)]}"
        volume = item // (len(_FIRST) * len(_SECOND)) + 1
        number = f" {volume}" if volume > 1 else ""
        return f"{name}{number} ({CATEGORIES[self.item_category[item]]}, {self.item_year[item]})"


def examination(positions: npt.NDArray[np.integer]) -> F32:
    """Probability, shape (n,), that a user looks at a 1-based page position."""
    return positions.astype(np.float32) ** np.float32(-0.6)


def generator(spec: WorldSpec, *stream: int) -> np.random.Generator:
    """The random numbers of one named part of the world: independent of every other part and of the number of days."""
    return np.random.default_rng([spec.seed, *stream])


def _unit(vectors: F32) -> F32:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _zipf(n: int, exponent: float) -> npt.NDArray[np.float64]:
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def _arrivals(rng: np.random.Generator, n: int, days_before: int, start: int) -> I64:
    """When each of n arrives: most before ``start``, the others over GROWTH_DAYS; whole seconds."""
    seconds = -rng.integers(1, days_before * 86_400, n)
    later = rng.random(n) >= FOUNDING_SHARE
    seconds[later] = rng.integers(0, GROWTH_DAYS * 86_400, int(later.sum()))
    return (start + seconds * 1_000_000).astype(np.int64)
