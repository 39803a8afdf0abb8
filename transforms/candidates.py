"""From user vectors and histories to ranked lists, columnar: candidates, blended score, exclusion, reasons.

For each user and item: score = t + item_cf * c / max c + popularity * p, where
- t is the two-tower's dot product, scaled per user so that the best candidate is 1 and the last place of a list is 0 (never
  under ``floor``; 0 for a user without a vector);
- c is the item-CF sum over the user's last items h of weight(h) * cooccurrence(h, item), the weight decaying by half every
  ``half_life`` items of history;
- p is log(1 + popularity), divided by its maximum.
An item that the index did not return counts as lying under the last one it returned; only where that could list it is its
dot product computed. A user without vector and history is ranked by p alone. A list is filled by popularity until it is full
or the catalogue ends.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.cells import REASONS, SOURCES
from transforms.catalogue import F32, I32, I64, Catalogue, lengths_of, offsets_of, positions_of, ragged_of
from transforms.topk import keep_best, sort_best

U8 = npt.NDArray[np.uint8]

REASON_WINDOW = 20
"""About what a reader sees at once."""

_INACTIVE = np.int32(2**31 - 1)
_TWO_TOWER, _ITEM_CF, _POPULAR = (SOURCES.index(n) for n in ("two_tower", "item_cf", "popular"))
_BECAUSE, _TASTE, _IS_POPULAR = (REASONS.index(n) for n in ("because_you_watched", "similar_taste", "popular"))


@dataclass(frozen=True)
class Blend:
    """How candidates are found and scored.

    Attributes:
      list_length: items per list.
      item_cf, popularity: weights beside the two-tower's 1.
      history: last items that item-CF starts from.
      neighbours: co-occurring items of each.
      half_life: in items of history.
      item_cf_candidates, popular_candidates: at most so many enter from these sources.
      floor: of the scaled two-tower score.
      reasons_per_item: ``because_you_watched`` names a history item at most so often in each REASON_WINDOW places.
    """

    list_length: int = 100
    item_cf: float = 0.5
    popularity: float = 0.05
    history: int = 20
    neighbours: int = 50
    half_life: float = 10.0
    item_cf_candidates: int = 100
    popular_candidates: int = 20
    floor: float = -0.5
    reasons_per_item: int = 3


@dataclass(frozen=True)
class Users:
    """A batch of n users. ``history`` and ``consumed`` are positions, newest first: user i's at offsets[i]:offsets[i + 1]."""

    user_ids: pa.StringArray
    history_offsets: I64
    history: I32
    history_weights: F32
    consumed_offsets: I64
    consumed: I32

    def take(self, rows: npt.NDArray[np.integer]) -> Users:
        """These users, in this order."""
        history = _rows_of(self.history_offsets, rows)
        consumed = _rows_of(self.consumed_offsets, rows)
        return Users(self.user_ids.take(pa.array(rows)), offsets_of(np.diff(self.history_offsets)[rows]), self.history[history],
                     self.history_weights[history], offsets_of(np.diff(self.consumed_offsets)[rows]), self.consumed[consumed])


@dataclass(frozen=True)
class Lists:
    """n ranked lists of at most L items, best first.

    Attributes:
      counts: (n,) items in each list.
      positions, scores: (n, L); -1 and 0 behind the end.
      sources, reasons: (n, L) codes of schemas.cells.
      because: (n, L) position of the history item behind ``because_you_watched``, else -1.
    """

    counts: I32
    positions: I32
    scores: F32
    sources: U8
    reasons: U8
    because: I32


def _rows_of(offsets: I64, rows: npt.NDArray[np.integer]) -> I64:
    """Positions of the values of some rows of a ragged column, row after row."""
    lengths = np.diff(offsets)[rows]
    starts = offsets_of(lengths)[:-1]
    return np.arange(int(lengths.sum())) - np.repeat(starts - offsets[:-1][rows], lengths)


def users_of(batch: pa.RecordBatch, catalogue: Catalogue, blend: Blend) -> Users:
    """The users of a snapshot batch (user_id, last_items, consumed_items); items outside the catalogue are left out."""
    lengths, names, weights = ragged_of(batch.column("last_items"))
    rank = np.arange(len(names)) - np.repeat(offsets_of(lengths)[:-1], lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    head = np.flatnonzero(rank < blend.history)
    found = positions_of(names.take(pa.array(head)), catalogue.item_ids)
    kept = found >= 0
    weights = weights[head] * np.exp2(-rank[head] / blend.half_life).astype(np.float32)
    done = pc.struct_field(batch.column("consumed_items"), "ids")
    consumed_lengths, consumed_names = lengths_of(done), pc.list_flatten(done)
    consumed = positions_of(consumed_names, catalogue.item_ids)  # -1 (unknown) is skipped by the kernel
    return Users(batch.column("user_id").cast(pa.string()), offsets_of(np.bincount(owner[head][kept], minlength=len(lengths))),
                 found[kept], weights[kept], offsets_of(consumed_lengths), consumed)


def fetch_classes(users: Users, catalogue: Catalogue, blend: Blend) -> list[tuple[I64, int]]:
    """(rows, k) groups of users by how many items the index must return so that a list can be filled.

    k covers the list, what the user has consumed, and the share of inactive items; it grows by steps so that one user with
    a long history does not make a whole batch slow.
    """
    consumed = np.diff(users.consumed_offsets)
    share = max(0.05, float(catalogue.active[: len(catalogue.vectors)].mean()))
    groups, low = [], -1
    for extra in (60, 240, 960, max(961, int(consumed.max(initial=0)))):
        rows = np.flatnonzero((consumed > low) & (consumed <= extra))
        low = extra
        if len(rows):
            k = int((blend.list_length + min(extra, int(consumed[rows].max()) + 10)) / share)
            groups.append((rows, min(k, len(catalogue.vectors))))
    return groups


class _Scratch:
    """Working memory of one thread: a row of 16 bytes per item, so that an item costs one cache miss. Nothing is cleared
    between users: what a row says counts only under the number of the user it was written for.

    ``marks`` [m, 4] holds: 4 * user number (consumed), + 1 (a candidate) or + 2 (listed), or _INACTIVE for ever; the user
    number whose item-CF sum stands in the row; that sum (as float32: ``sums`` is the same memory); the item's place in the
    list.
    """

    def __init__(self, active: npt.NDArray[np.bool_]) -> None:
        self._active = active
        self.user = np.zeros(1, np.int32)
        self.marks = np.zeros((len(active), 4), np.int32)
        self.sums = self.marks.view(np.float32)
        self.touched = np.zeros(len(active), np.int32)
        self._clear()

    def _clear(self) -> None:
        self.user[0] = 0
        self.marks[:, :2] = 0
        self.marks[~self._active, 0] = _INACTIVE

    def reserve(self, users: int) -> None:
        """Starts counting users again before their numbers get too large."""
        if self.user[0] + users >= _INACTIVE // 8:
            self._clear()


class Ranker:
    """Ranks batches of users; keeps its working memory between batches. Not for use by several threads at once."""

    def __init__(self, catalogue: Catalogue, blend: Blend, threads: int = 2) -> None:
        self._catalogue, self._blend = catalogue, blend
        self._scratch = [_Scratch(catalogue.active) for _ in range(threads)]

    def rank(self, users: Users, vectors: F32, has_vector: npt.NDArray[np.bool_], found: I32, dots: F32) -> Lists:
        """Ranked lists.

        Args:
          users: n users.
          vectors: (n, d); rows where ``has_vector`` is False are not read.
          found, dots: (n, k) the index's answer, -1 where it found fewer.
        """
        count, length = len(users.user_ids), self._blend.list_length
        lists = Lists(np.zeros(count, np.int32), np.full((count, length), -1, np.int32), np.zeros((count, length), np.float32),
                      np.zeros((count, length), np.uint8), np.zeros((count, length), np.uint8),
                      np.full((count, length), -1, np.int32))
        cuts = np.linspace(0, count, len(self._scratch) + 1).astype(int)
        parts = list(zip(itertools.pairwise(cuts), self._scratch, strict=True))
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(lambda part: self._rank_part(users, vectors, has_vector, found, dots, lists, *part), parts))
        return lists

    def _rank_part(self, users: Users, vectors: F32, has_vector: npt.NDArray[np.bool_], found: I32, dots: F32, lists: Lists,
                   span: tuple[int, int], scratch: _Scratch) -> None:
        c, b, s = self._catalogue, self._blend, scratch
        s.reserve(span[1] - span[0])
        _rank(span[0], span[1], users.history_offsets, users.history, users.history_weights, users.consumed_offsets,
              users.consumed, vectors, has_vector, found, dots, c.vectors, c.popularity, c.by_popularity, c.offsets,
              c.neighbours, c.strengths, b.item_cf, b.popularity, b.neighbours, b.item_cf_candidates, b.popular_candidates,
              b.floor, b.reasons_per_item, s.user, s.marks, s.sums, s.touched, lists.counts, lists.positions, lists.scores,
              lists.sources, lists.reasons, lists.because)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _dot(users: F32, user: int, items: F32, item: int) -> np.float32:
    """By row numbers: a view per row would count references, and two threads would fight for the counter."""
    total = np.float32(0)
    for i in range(users.shape[1]):
        total += users[user, i] * items[item, i]
    return total


@numba.njit(cache=True, nogil=True)
def _rank(first: int, end: int, history_offsets: I64, history: I32, history_weights: F32, consumed_offsets: I64,
          consumed: I32, vectors: F32, has_vector: npt.NDArray[np.bool_], found: I32, dots: F32, item_vectors: F32,
          popularity: F32, by_popularity: I32, offsets: I64, neighbours: I32, strengths: F32, cf_weight: float,
          popularity_weight: float, max_neighbours: int, cf_candidates: int, popular_candidates: int, floor: float,
          reason_cap: int, number: I32, marks: I32, sums: F32, touched: I32, out_counts: I32, out_positions: I32,
          out_scores: F32, out_sources: U8, out_reasons: U8, out_because: I32) -> None:
    length = out_positions.shape[1]
    cf_scores, cf_positions = np.empty(cf_candidates, np.float32), np.empty(cf_candidates, np.int32)
    longest = 0
    for user in range(first, end):
        longest = max(longest, history_offsets[user + 1] - history_offsets[user])
    shares, used = np.empty((length, longest), np.float32), np.empty(longest, np.int32)
    for user in range(first, end):
        number[0] += 1
        tag = number[0]
        done, taken, listed = 4 * tag, 4 * tag + 1, 4 * tag + 2
        with_vector = has_vector[user]
        for j in range(consumed_offsets[user], consumed_offsets[user + 1]):
            if consumed[j] >= 0 and marks[consumed[j], 0] != _INACTIVE:
                marks[consumed[j], 0] = done

        touched_count, cf_max = 0, np.float32(0)
        for j in range(history_offsets[user], history_offsets[user + 1]):
            start, weight = offsets[history[j]], history_weights[j]
            for e in range(start, min(offsets[history[j] + 1], start + max_neighbours)):
                item = neighbours[e]
                if marks[item, 0] >= done:
                    continue
                if marks[item, 1] != tag:
                    marks[item, 1] = tag
                    sums[item, 2] = weight * strengths[e]
                    touched[touched_count] = item
                    touched_count += 1
                else:
                    sums[item, 2] += weight * strengths[e]

        retrieved = 0
        highest, lowest = np.float32(0), np.float32(0)
        if with_vector:
            for j in range(found.shape[1]):
                if found[user, j] < 0 or marks[found[user, j], 0] >= done:
                    continue
                marks[found[user, j], 0] = taken
                if retrieved == 0:
                    highest = dots[user, j]
                if retrieved < length:
                    lowest = dots[user, j]
                retrieved += 1
        for j in range(touched_count):
            cf_max = max(cf_max, sums[touched[j], 2])
        scale = np.float32(1) / (highest - lowest) if highest > lowest else np.float32(0)
        cf_scale = np.float32(cf_weight) / cf_max if cf_max > 0 else np.float32(0)

        scores, positions, size = out_scores[user], out_positions[user], 0
        for j in range(found.shape[1] if with_vector else 0):
            item = found[user, j]
            if item < 0 or marks[item, 0] != taken:
                continue
            cf = cf_scale * sums[item, 2] if marks[item, 1] == tag else np.float32(0)
            tower = max(np.float32(floor), (dots[user, j] - lowest) * scale)
            size = keep_best(scores, positions, size, tower + cf + np.float32(popularity_weight) * popularity[item], item)
        # What the index did not return lies under its last answer: a dot product is computed only where that may list it.
        bound = np.float32(1)
        if with_vector and found.shape[1] and found[user, -1] >= 0:
            bound = max(np.float32(floor), (dots[user, -1] - lowest) * scale)
        cf_count = 0
        for j in range(touched_count):
            item = touched[j]
            if marks[item, 0] == taken or not sums[item, 2] > 0 or (size == length and scores[0] > (
                    bound + cf_scale * sums[item, 2] + np.float32(popularity_weight) * popularity[item])):
                continue
            cf_count = keep_best(cf_scores, cf_positions, cf_count, sums[item, 2], item)
        for j in range(cf_count):
            item = cf_positions[j]
            marks[item, 0] = taken
            tower = _tower(item, with_vector, vectors, user, item_vectors, lowest, scale, floor)
            size = keep_best(scores, positions, size,
                             tower + cf_scale * cf_scores[j] + np.float32(popularity_weight) * popularity[item], item)
        known = retrieved > 0 or cf_max > 0
        # Popular items compete while some of them are left, and fill a list that is short.
        left = max(popular_candidates if known else 0, length - size)
        for j in range(len(by_popularity)):
            if left == 0:
                break
            item = by_popularity[j]
            if marks[item, 0] >= done:
                continue
            marks[item, 0] = taken
            left -= 1
            cf = cf_scale * sums[item, 2] if marks[item, 1] == tag else np.float32(0)
            total = popularity[item]
            if with_vector or cf_max > 0:
                total = (_tower(item, with_vector, vectors, user, item_vectors, lowest, scale, floor) + cf
                         + np.float32(popularity_weight) * popularity[item])
            size = keep_best(scores, positions, size, total, item)
        sort_best(scores, positions, size)
        out_counts[user] = size
        for j in range(size):
            marks[positions[j], 0], marks[positions[j], 3] = listed, j
        _share(history_offsets[user], history_offsets[user + 1], history, history_weights, offsets, neighbours, strengths,
               max_neighbours, listed, size, marks, shares)
        for j in range(size):
            item = positions[j]
            if j % REASON_WINDOW == 0:
                used[:] = 0
            cf = cf_scale * sums[item, 2] if marks[item, 1] == tag else np.float32(0)
            tower = scores[j] - cf - popularity_weight * popularity[item]
            cause = -1
            if cf > 0:
                out_sources[user, j] = _TWO_TOWER if with_vector and tower >= cf else _ITEM_CF
                # Without a vector there is no other true reason, so the cap gives way.
                cause = _cause(shares[j], used, history_offsets[user + 1] - history_offsets[user], reason_cap, not with_vector)
            else:
                out_sources[user, j] = _TWO_TOWER if with_vector and tower > 0 else _POPULAR
            if cause >= 0:
                used[cause] += 1
                out_reasons[user, j], out_because[user, j] = _BECAUSE, history[history_offsets[user] + cause]
            elif with_vector and (tower > 0 or cf > 0):
                out_reasons[user, j] = _TASTE
            else:
                out_reasons[user, j] = _IS_POPULAR


@numba.njit(cache=True, nogil=True)
def _share(start: int, end: int, history: I32, history_weights: F32, offsets: I64, neighbours: I32, strengths: F32,
           max_neighbours: int, listed: int, size: int, marks: I32, shares: F32) -> None:
    """Fills shares [place in the list, history item]: what each history item gave to the item-CF sum of a listed item."""
    for place in range(size):
        for j in range(end - start):
            shares[place, j] = 0
    for j in range(start, end):
        column = j - start
        for other in range(start, j):  # an item that stands in a history twice is one reason
            if history[other] == history[j]:
                column = other - start
                break
        first = offsets[history[j]]
        for e in range(first, min(offsets[history[j] + 1], first + max_neighbours)):
            item = neighbours[e]
            if marks[item, 0] == listed:
                shares[marks[item, 3], column] += history_weights[j] * strengths[e]


@numba.njit(cache=True, nogil=True)
def _cause(shares: F32, used: I32, count: int, cap: int, must: bool) -> int:
    """The history item that gave most of those used less than ``cap`` times; -1 when there is none, unless it ``must``."""
    best = any_best = -1
    for j in range(count):
        if shares[j] > 0:
            if any_best < 0 or shares[j] > shares[any_best]:
                any_best = j
            if used[j] < cap and (best < 0 or shares[j] > shares[best]):
                best = j
    return any_best if best < 0 and must else best


@numba.njit(cache=True, nogil=True, inline="always")
def _tower(item: int, with_vector: bool, vectors: F32, user: int, item_vectors: F32, lowest: float, scale: float,
           floor: float) -> np.float32:
    """The scaled two-tower score of an item that the index did not return."""
    if not with_vector:
        return np.float32(0)
    if item >= len(item_vectors):
        return np.float32(floor)
    return max(np.float32(floor), np.float32((_dot(vectors, user, item_vectors, item) - lowest) * scale))
