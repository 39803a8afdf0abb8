"""A page in two steps: the pool of candidates, then what is chosen from it. Their loops are those of kernels.py and explore.py;
what is hidden or left out is known by hash. listed.py takes both in one compiled call; where something newer is known of a
candidate, rank.py lays it over the pool between them."""

from __future__ import annotations

import math

import numba
import numpy as np

from models.inference.idtable import find
from serving.ranking import kernels
from serving.ranking.explore import draw_places, eligible, thompson
from serving.ranking.kernels import F32, I32, I64, U32, U64, Bools

Pool = tuple[I32, Bools, F32, I32, F32, F32, I32, F32, I32]
Chosen = tuple[I32, I32, I32, Bools, F32, tuple[int, int]]
"""What ``pool`` and ``choose`` return."""

ROWS = 6
"""Rows of the table: list score, preference, session, boost, impressions, score."""


@numba.njit(cache=True, nogil=True)
def set_of(hashes: U64) -> U64:
    """An open-addressing set of hashes; 0 stands for a free place, so no id may hash to it."""
    size = 16
    while size < 2 * len(hashes):
        size *= 2
    places, mask = np.zeros(size, np.uint64), np.uint64(size - 1)
    for h in hashes:
        place = (h >> np.uint64(16)) & mask
        while places[place] != 0 and places[place] != h:
            place = (place + np.uint64(1)) & mask
        places[place] = h
    return places


@numba.njit(cache=True, nogil=True)
def is_in(places: U64, h: np.uint64) -> bool:
    """Whether a set holds a hash."""
    mask = np.uint64(len(places) - 1)
    place = (h >> np.uint64(16)) & mask
    while places[place] != 0:
        if places[place] == h:
            return True
        place = (place + np.uint64(1)) & mask
    return False


@numba.njit(cache=True, nogil=True)
def list_share(scores: F32, out: F32) -> None:
    """list(i) of rank.py: scaled to [0, 1]; places where all scores are equal, or one is no number."""
    n = len(scores)
    if not n:
        return
    low, high, number = scores[0], scores[0], True
    for i in range(n):
        low, high = min(low, scores[i]), max(high, scores[i])
        number = number and scores[i] == scores[i]
    for i in range(n):
        if number and high > low:
            out[i] = (scores[i] - low) / (high - low)
        else:
            out[i] = np.float32(i * (-1.0 / n) + 1.0)


@numba.njit(cache=True, nogil=True)
def pool(hashes: U64, dropped: U64, shown: U32, session_hashes: U64, session_weights: F32, wanted: int, half_life: float,
         own_hashes: U64, table: I32, vectors: F32, rows: I32, numbers: F32, neighbour_offsets: I64, neighbours: I32,
         strengths: F32, blocked: Bools) -> Pool:
    """Candidates of a list, by hash, and up to ``wanted`` items near the session that join them.

    Args:
      hashes: (n,) of the list; dropped: set of what is left out; shown: low halves of what pages before showed.
      session_hashes, session_weights: of the newest items of the session; empty: it does not count.
      rows, numbers, blocked: of serving.ranking.rules.

    Returns:
      positions, keep, units, categories, impressions, boosts of n + joined candidates; items, sums, because of
      kernels.near_session.
    """
    n = len(hashes)
    session = find(own_hashes, table, session_hashes)
    places = kernels.session_slots(session, neighbour_offsets, neighbours, strengths)
    at_list = find(own_hashes, table, hashes)
    kernels.ask_for(at_list, rows)
    kernels.ask_for(at_list, vectors)
    items, sums, because = np.full(places, -1, np.int32), np.zeros(places, np.float32), np.zeros(places, np.int32)
    order = np.empty(places, np.int32)
    joined = np.zeros(0, np.int32)
    if len(session_hashes):
        used = kernels.near_session(session, session_weights, neighbour_offsets, neighbours, strengths, half_life, items, sums,
                                    because, order)
        if used and wanted:
            joined = kernels.session_extras(2 * wanted, items, order[:used], sums, session, at_list, blocked, own_hashes, shown)
    kernels.ask_for(joined[:wanted], rows)
    kernels.ask_for(joined[:wanted], vectors)
    count = 0
    for i in range(len(joined)):
        if count < wanted and not is_in(dropped, own_hashes[joined[i]]):
            joined[count] = joined[i]
            count += 1
    m = n + count
    positions, keep = np.empty(m, np.int32), np.ones(m, np.bool_)
    positions[:n], positions[n:] = at_list, joined[:count]
    for i in range(n):
        if is_in(dropped, hashes[i]):
            keep[i] = False
    kernels.drop_shown(hashes, shown, keep)
    units, categories = np.empty((m, vectors.shape[1]), np.float32), np.empty((m, kernels.CATEGORIES), np.int32)
    seen, boosts = np.empty(m, np.float32), np.empty(m, np.float32)
    kernels.gather(positions, vectors, rows, numbers, units, categories, seen, boosts, keep)
    return positions, keep, units, categories, seen, boosts, items, sums, because


@numba.njit(cache=True, nogil=True)
def choose(found: Pool, list_scores: F32, share: F32, preference: float, session: float, has_session: bool,
           size: int, diversity: float, calibration: float, smoothing: float, cap: int, slots: I64, below: float, seed: int,
           draws: int, rate: float, explorable: I32, dropped: U64, shown: U32, own_hashes: U64, vectors: F32, rows: I32,
           numbers: F32) -> Chosen:
    """Fills a page from a pool.

    Args:
      found: what ``pool`` returned; list_scores: of its first candidates, those of the list.
      share: the user's share per category code.
      slots: ranks of exploration, ascending; none where the last one lies behind the page.

    Returns:
      places of the pool (behind it: explored items beside it), positions, place in the session of the item that led (-1:
      none), whether explored, the (ROWS, k) table of those on the page, (candidates left, rank of the last explored item).
    """
    positions, keep, units, categories, seen, boosts, items, sums, because = found
    n, many, total = len(positions), len(list_scores), 0.0
    for part in share:
        total += part
    table = np.zeros((ROWS, n + len(slots)), np.float32)
    base, match, near, score = table[0], table[1][:n], table[2][:n], table[5]
    table[3][:n], table[4][:n] = boosts, seen
    list_share(list_scores, base[:many])
    cause = np.full(n, -1, np.int32)
    if preference > 0 and total > 0:
        kernels.preference_match(categories, share, match)
    if has_session:
        kernels.session_of(positions, items, sums, because, near, cause)
        highest = np.float32(0)
        for i in range(n):
            if keep[i]:
                highest = max(highest, near[i])
        if highest > 0:
            for i in range(n):
                near[i] /= highest
    for i in range(n):
        score[i] = base[i] + np.float32(preference) * match[i] + np.float32(session) * near[i] + boosts[i]
    normal = share / np.float32(total) if total > 0 else share
    drawn = np.empty((len(slots), min(draws, len(explorable))), np.int32)
    for number in range(len(slots)):
        drawn[number] = explorable[draw_places(slots[number] + seed, draws, len(explorable))]
        kernels.ask_for(drawn[number], rows)
        kernels.ask_for(drawn[number], vectors)
    chosen = np.empty(size + len(slots), np.int32)
    count = kernels.select(score[:n], keep, units, categories, normal, np.zeros(len(share), np.int64), size, diversity,
                           calibration if total > 0 else 0.0, smoothing, cap, chosen[:size])
    kept = 0
    for i in range(n):
        kept += keep[i]
    left, slot, selected = kept - count, -1, count
    explored, beside = np.zeros(len(chosen), np.bool_), np.full(len(slots), -1, np.int32)
    for number in range(len(slots)):
        rank = slots[number]
        if slots[-1] >= min(size, selected + 1):
            break
        place, item, fit = explore(rank + seed, chosen[:count], n, units, keep, positions, drawn[number], vectors, rows,
                                   numbers, below, own_hashes, shown, dropped, explored[:count], beside, rate)
        if item < 0:
            continue
        if place >= n:
            place = n + number
            beside[number] = item
            score[place], table[4, place] = fit, numbers[item, kernels.SEEN]
        for i in range(count, rank, -1):
            chosen[i], explored[i] = chosen[i - 1], explored[i - 1]
        chosen[rank], explored[rank] = place, True
        count, slot = count + 1, rank
    left += max(0, count - size)
    count = min(count, size)
    out, at, led = np.empty((ROWS, count), np.float32), np.empty(count, np.int32), np.full(count, -1, np.int32)
    for i in range(count):
        place = chosen[i]
        at[i] = positions[place] if place < n else beside[place - n]
        for row in range(ROWS):
            out[row, i] = table[row, place]
        if place < n and cause[place] >= 0 and np.float32(session) * near[place] > base[place]:
            led[i] = cause[place]
    return chosen[:count], at, led, explored[:count], out, (left, slot)


@numba.njit(cache=True, nogil=True)
def explore(seed: int, chosen: I32, n: int, units: F32, keep: Bools, positions: I32, drawn: I32, vectors: F32, rows: I32,
            numbers: F32, below: float, own_hashes: U64, shown: U32, dropped: U64, explored: Bools, beside: I32,
            rate: float) -> tuple[int, int, np.float32]:
    """(place, position, fit) of the item that few have seen; position -1 where there is none."""
    taken, centre = np.zeros(n, np.bool_), np.zeros(units.shape[1], np.float32)
    for place in chosen:
        if place < n:
            taken[place] = True
            for d in range(len(centre)):
                centre[d] += units[place, d]
    square = np.float32(0)
    for d in range(len(centre)):
        square += centre[d] * centre[d]
    centre /= np.float32(max(math.sqrt(square), 1e-9))
    most = n + len(drawn)
    places, items = np.empty(most, np.int32), np.empty(most, np.int32)
    fit, clicks, impressions = np.empty(most, np.float32), np.empty(most, np.float32), np.empty(most, np.float32)
    count = eligible(centre, keep, positions, taken, units, drawn, vectors, rows, numbers, below, own_hashes, shown, places,
                     items, fit, clicks, impressions)
    left = items[:count].copy()
    while True:
        best = thompson(seed, rate, left, fit, clicks, impressions)
        if best < 0:
            return -1, -1, np.float32(0)
        item, known = items[best], is_in(dropped, own_hashes[items[best]])
        for i in range(len(chosen)):  # already explored on this page
            if explored[i]:
                other = positions[chosen[i]] if chosen[i] < n else beside[chosen[i] - n]
                known = known or other == item
        if not known:
            return places[best], item, fit[best]
        left[best] = -1
