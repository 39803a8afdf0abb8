"""The exploration slot: one item that few have seen, chosen by Thompson sampling, the same for the same request_id.

Each eligible item's chance of a click has a Beta(k p r + clicks, k (1 - p r) + impressions - clicks) posterior: p is the click
rate of all items, k = 20 the pseudo-impressions that ctr_smoothed_30d uses too, and r in [0.5, 1.5] raises or lowers the prior
by how well the item goes with the page. One draw of each; the highest is shown (Chapelle & Li, "An empirical evaluation of
Thompson sampling", NIPS 2011). Draws are Marsaglia & Tsang's gamma ("A simple method for generating gamma variables", ACM TOMS
2000) from a splitmix64 stream, so that a request can be replayed anywhere.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from serving.ranking.kernels import BLOCKED, CLICKS, NORM, SEEN

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

PRIOR = 20.0
DEFAULT_RATE = 0.05
"""Click rate of all items where no impression was ever counted."""


@numba.njit(cache=True, nogil=True)
def thompson(seed: int, rate: float, items: I32, fit: F32, clicks: F32, impressions: F32) -> int:
    """Place of the item of the highest draw; -1 where there is none.

    Args:
      seed: 63 bits; the stream starts there.
      rate: p in (0, 1).
      items: (n,) positions, negative for one that is left out; fit: (n,) in [0, 1], how well each goes with the page.
      clicks, impressions: (n,), clicks <= impressions.
    """
    state = np.empty(1, np.uint64)
    state[0] = seed
    best, highest = -1, -1.0
    for i in range(len(items)):
        if items[i] < 0:
            continue
        prior = min(0.99, max(1e-6, rate * (0.5 + fit[i])))
        good = _gamma(state, PRIOR * prior + clicks[i])
        bad = _gamma(state, PRIOR * (1 - prior) + max(0.0, impressions[i] - clicks[i]))
        draw = good / (good + bad) if good + bad > 0 else 0.0
        if draw > highest:
            best, highest = i, draw
    return best


@numba.njit(cache=True, nogil=True)
def eligible(centre: F32, keep: Bools, positions: I32, taken: Bools, units: F32, drawn: I32, vectors: F32, rows: I32,
             numbers: F32, below: float, hashes: U64, shown: U32, places: I32, items: I32, fit: F32, clicks: F32,
             impressions: F32) -> int:
    """Who may take the slot: candidates that are not on the page and drawn items, all seen fewer than ``below`` times.

    Args:
      centre: (d,) unit mean of the page.
      keep, positions, taken, units: of the n candidates; taken: on the page.
      drawn: positions of items beside them.
      rows, numbers: of serving.ranking.rules.
      places, items, fit: filled with place (n + j for drawn item j), position and cosine to the centre in [0, 1]; clicks,
        impressions: with those of the item.

    Returns:
      How many.
    """
    n, count = len(positions), 0
    for j in range(n + len(drawn)):
        item = positions[j] if j < n else drawn[j - n]
        if item < 0 or numbers[item, SEEN] >= below or (taken[j] or not keep[j] if j < n else rows[item, BLOCKED] != 0):
            continue
        known = False
        if j >= n:
            for i in range(n):
                known |= positions[i] == item
            if len(shown):
                low = np.uint32(hashes[item] & np.uint64(0xFFFFFFFF))
                for i in range(len(shown)):
                    known |= shown[i] == low
        if known:
            continue
        total = np.float32(0)
        if j < n:
            for d in range(len(centre)):
                total += centre[d] * units[j, d]
        elif numbers[item, NORM] > 0:
            for d in range(len(centre)):
                total += centre[d] * vectors[item, d]
            total /= numbers[item, NORM]
        clicks[count], impressions[count] = numbers[item, CLICKS], numbers[item, SEEN]
        places[count], items[count], fit[count] = j, item, min(np.float32(1), max(np.float32(0), total))
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def uniform(state: npt.NDArray[np.uint64]) -> float:
    """The next number in (0, 1) of a splitmix64 stream (Steele, Lea & Flood, OOPSLA 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (float(z >> np.uint64(11)) + 0.5) * 2.0**-53


@numba.njit(cache=True, nogil=True)
def _gamma(state: npt.NDArray[np.uint64], shape: float) -> float:
    """A draw of Gamma(shape, 1)."""
    if shape < 1:  # Gamma(a) is Gamma(a + 1) * U^(1 / a)
        return _gamma_from_one(state, shape + 1) * uniform(state) ** (1 / shape)
    return _gamma_from_one(state, shape)


@numba.njit(cache=True, nogil=True)
def _gamma_from_one(state: npt.NDArray[np.uint64], shape: float) -> float:
    d = shape - 1.0 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        x = math.sqrt(-2 * math.log(uniform(state))) * math.cos(2 * math.pi * uniform(state))  # Box & Muller
        v = (1 + c * x) ** 3
        if v > 0:
            u = uniform(state)
            if u < 1 - 0.0331 * x**4 or math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):  # what the first lets in, so
                return d * v  # does the second, at the price of two logarithms


@numba.njit(cache=True, nogil=True)
def draw_places(seed: int, count: int, among: int) -> npt.NDArray[np.int32]:
    """``count`` distinct numbers under ``among`` (all of them where there are fewer), by the stream of a seed; ascending."""
    if among <= count:
        return np.arange(among).astype(np.int32)
    state = np.empty(1, np.uint64)
    state[0] = seed
    found = np.empty(count, np.int32)
    for i in range(count):  # Floyd's sample
        top = among - count + i
        drawn = min(top, int(uniform(state) * (top + 1)))
        for j in range(i):
            if found[j] == drawn:
                drawn = top
                break
        found[i] = drawn
    return np.sort(found)
