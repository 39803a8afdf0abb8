"""Re-ranking in plain Python, row by row, by the formulas of docs/ranking.md: the oracle of the kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def list_share(scores: Sequence[float]) -> list[float]:
    low, high = min(scores), max(scores)
    if high == low:
        return [1 - i / len(scores) for i in range(len(scores))]
    return [(s - low) / (high - low) for s in scores]


def match(preference: dict[str, float], categories: Sequence[str]) -> float:
    norm = math.sqrt(sum(v * v for v in preference.values()))
    if not categories or not norm:
        return 0.0
    return sum(preference.get(c, 0.0) for c in categories) / (norm * math.sqrt(len(categories)))


def near_session(session: Sequence[tuple[str, float]], neighbours: dict[str, dict[str, float]],
                 half_life: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for rank, (item, weight) in enumerate(session):
        for other, strength in neighbours.get(item, {}).items():
            found[other] = found.get(other, 0.0) + weight * 2 ** (-rank / half_life) * strength
    return found


def cosine(a: Vector, b: Vector) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def similarity(a: Vector | None, b: Vector | None, of_a: Sequence[str], of_b: Sequence[str]) -> float:
    if a is not None and b is not None:
        return min(1.0, max(0.0, cosine(a, b)))
    union = set(of_a) | set(of_b)
    return len(set(of_a) & set(of_b)) / len(union) if union else 0.0


def divergence(p: dict[str, float], page: Sequence[Sequence[str]], size: int, smoothing: float) -> float:
    """KL(p || q), q the mix of ``size`` places of which ``page`` has filled some."""
    total = 0.0
    for category, share in p.items():
        if share <= 0:
            continue
        held = sum(categories.count(category) / len(categories) for categories in page if categories)
        total += share * math.log(share / (smoothing * share + (1 - smoothing) * held / size))
    return total


def values(chosen: Sequence[int], scores: Sequence[float], vectors: Sequence[Vector | None],
           categories: Sequence[Sequence[str]],
           p: dict[str, float], strength: float, calibration: float, smoothing: float) -> list[float]:
    """What every candidate is worth as the next of a page that holds ``chosen``."""
    found = []
    page = [categories[j] for j in chosen]
    for i, score in enumerate(scores):
        nearest = max((similarity(vectors[i], vectors[j], categories[i], categories[j]) for j in chosen), default=0.0)
        gain = 0.0
        if calibration and p:
            gain = (divergence(p, page, len(chosen) + 1, smoothing)
                    - divergence(p, [*page, categories[i]], len(chosen) + 1, smoothing))
        found.append((1 - strength) * score - strength * ((1 - calibration) * nearest - calibration * gain))
    return found


_MASK = (1 << 64) - 1


class Stream:
    """splitmix64 in (0, 1)."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def uniform(self) -> float:
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53 + 2.0**-54

    def gamma(self, shape: float) -> float:
        if shape < 1:
            drawn = self.gamma(shape + 1)
            return drawn * self.uniform() ** (1 / shape)
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = math.sqrt(-2 * math.log(self.uniform())) * math.cos(2 * math.pi * self.uniform())
            v = (1 + c * x) ** 3
            if v > 0 and math.log(self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v


def thompson(seed: int, rate: float, fit: Sequence[float], clicks: Sequence[float],
             impressions: Sequence[float]) -> list[float]:
    """The draw of every item."""
    stream, drawn = Stream(seed), []
    for f, c, n in zip(fit, clicks, impressions, strict=True):
        prior = min(0.99, max(1e-6, rate * (0.5 + f)))
        good, bad = stream.gamma(20 * prior + c), stream.gamma(20 * (1 - prior) + max(0.0, n - c))
        drawn.append(good / (good + bad))
    return drawn
