"""What a worker counts. Plain numbers: one process, one event loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.inference.bundle import Bundle
from schemas import metric_names as names
from serving.collector.metrics import Histogram, labelled

SHOWN_SECONDS, MAX_SHOWN_ITEMS, MAX_SHOWN_BUNDLES = 3600.0, 1_000_000, 4
CONTEXTS = frozenset(("homepage", "item", "cart", "email", "similar"))
"""Contexts that are told apart; a name comes from outside, so others are one."""
_MAX_VERSIONS = 64
_PAGES = 64
"""Pages that are counted at once."""
Summary = tuple[int, float, float]


class _OfBundle:
    """How often each item of a bundle was shown."""

    def __init__(self, item_ids: pa.StringArray) -> None:
        self.item_ids = item_ids
        self._times = np.zeros(len(item_ids), np.int64)
        self._pages: list[npt.NDArray[np.int32]] = []

    def add(self, positions: npt.NDArray[np.int32]) -> None:
        """Counts a page: at once with others, for by then the counts have long left the processor's cache."""
        self._pages.append(positions)
        if len(self._pages) >= _PAGES:
            self.times()

    def times(self) -> npt.NDArray[np.int64]:
        """Times shown, by position."""
        if self._pages:
            np.add.at(self._times, np.concatenate(self._pages), 1)
            self._pages.clear()
        return self._times


class _Hour:
    """How often each item was shown: those of a bundle by their position, others by id."""

    def __init__(self) -> None:
        self.by_id: Counter[str] = Counter()
        self.by_version: dict[str, _OfBundle] = {}

    def add(self, bundle: Bundle, positions: npt.NDArray[np.int32]) -> bool:
        """Counts a page of a bundle's items; False where there are too many bundles for that."""
        found = self.by_version.get(bundle.version)
        if found is None:
            if len(self.by_version) >= MAX_SHOWN_BUNDLES or bundle.manifest.items > MAX_SHOWN_ITEMS:
                return False
            found = self.by_version[bundle.version] = _OfBundle(bundle.item_ids)
        found.add(positions)
        return True

    def counts(self) -> Counter[str]:
        """Times shown, by item."""
        found = Counter(self.by_id)
        for of_bundle in self.by_version.values():
            times = of_bundle.times()
            shown = np.flatnonzero(times)
            found.update(dict(zip(of_bundle.item_ids.take(pa.array(shown)).to_pylist(), times[shown].tolist(), strict=True)))
        return found


class Shown:
    """How often each item was shown, in this hour and the one before."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since = now()
        self._this, self._last = _Hour(), _Hour()
        self._kept: tuple[float, Summary | None] = -SHOWN_SECONDS, None

    def add(self, item_ids: Iterable[str], bundle: Bundle | None = None,
            positions: npt.NDArray[np.int32] | None = None) -> None:
        """Counts a page; ``positions``: of all its items in the bundle, where they are known."""
        now = self._now()
        if now - self._since > SHOWN_SECONDS or len(self._this.by_id) > MAX_SHOWN_ITEMS:
            self._last, self._this = (self._this if now - self._since < 2 * SHOWN_SECONDS else _Hour()), _Hour()
            self._since = now
        if bundle is None or positions is None or not self._this.add(bundle, positions):
            self._this.by_id.update(item_ids)

    def counts(self) -> Counter[str]:
        """Times shown, by item."""
        return self._this.counts() + self._last.counts()

    def times(self) -> npt.NDArray[np.int64]:
        """Times shown of each item that was."""
        hours = self._this, self._last
        versions = {version for hour in hours for version in hour.by_version}
        if len(versions) == 1 and not any(hour.by_id for hour in hours):  # no id is looked at
            parts = [found.times() for hour in hours for found in hour.by_version.values()]
            times: npt.NDArray[np.int64] = np.sum(parts, axis=0)
            return times[times > 0]
        counts = self.counts()
        return np.fromiter(counts.values(), np.int64, len(counts))

    def kept(self, oldest_s: float, make: Callable[[], Summary | None]) -> Summary | None:
        """What was made of the counts before, if that is not too long ago."""
        now = time.monotonic()
        if self._kept[1] is None or now - self._kept[0] > oldest_s:
            self._kept = now, make()
        return self._kept[1]


def coverage_and_gini(shown: npt.ArrayLike, catalogue: int) -> tuple[float, float]:
    """(share of ``catalogue`` active items that were shown, Gini coefficient of how often each of them was).

    Gini: sum over items in ascending order of (2 i - n - 1) x_i / (n sum x), i from 1 (Damgaard & Weiner 2000); items never
    shown count as 0.
    """
    counts = np.sort(np.asarray(shown, np.float64))
    n = max(catalogue, len(counts))
    total = counts.sum()
    if not n or not total:
        return 0.0, 0.0
    rank = np.arange(n - len(counts) + 1, n + 1)
    return len(counts) / n, float(((2 * rank - n - 1) * counts).sum() / (n * total))


class ServeCounters:
    """Counts of one worker's answers."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.tiers: Counter[tuple[str, str]] = Counter()
        self.versions: Counter[str] = Counter()
        self.seconds = Histogram()
        self.steps: dict[str, Histogram] = {}
        self.explored = self.without_signals = self.short = 0
        self.truth: Counter[str] = Counter()
        self.shown = Shown()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests[route, status] += 1
        self.seconds.add(seconds)

    def listed(self, context: str, tier: str, version: str, explored: bool, signals: bool, short: bool) -> None:
        """A list was answered."""
        self.tiers[context if context in CONTEXTS else "other", tier] += 1
        self.versions[version if version in self.versions or len(self.versions) < _MAX_VERSIONS else "other"] += 1
        self.explored += explored
        self.without_signals += not signals
        self.short += short

    def step(self, name: str, seconds: float) -> None:
        """A step of a request took so long."""
        found = self.steps.get(name)
        if found is None:
            found = self.steps[name] = Histogram()
        found.add(seconds)

    def lines(self) -> list[str]:
        """The Prometheus text format."""
        lines = [*labelled(names.SERVE_REQUESTS, ("route", "status"), self.requests),
                 *labelled(names.SERVE_TIERS, ("context", "tier"), self.tiers),
                 *labelled(names.SERVE_VERSIONS, ("version",), {(v,): n for v, n in self.versions.items()}),
                 *labelled(names.SERVE_TRUTH, ("outcome",), {(k,): n for k, n in self.truth.items()})]
        for name, value in ((names.SERVE_EXPLORED, self.explored), (names.SERVE_WITHOUT_SIGNALS, self.without_signals),
                            (names.SERVE_SHORT, self.short)):
            lines += [f"# TYPE {name} counter", f"{name} {value}"]
        lines += self.seconds.lines(names.SERVE_SECONDS)
        lines.append(f"# TYPE {names.SERVE_STEP_SECONDS} histogram")
        for step, found in self.steps.items():
            lines += found.samples(names.SERVE_STEP_SECONDS, f'step="{step}"')
        return lines
