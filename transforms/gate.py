"""The gate before a flip: what is wrong with the lists of a shadow version, as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from schemas.cells import HEADER_BYTES, LAYOUT, RECS

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_FIXED = HEADER_BYTES + 18  # generated_at, expires_at, length of the model version
_LISTS, _ITEMS, _SHORT, _NOT_FINITE, _INCREASING, _OTHER_MODEL, _BROKEN, _EMPTY, _DISTINCT = range(9)


@dataclass(frozen=True)
class Thresholds:
    """What a version must reach.

    Attributes:
      users: share of the snapshot's users that have a list.
      full_lists: share of the lists that are as long as asked, or hold half of the active items.
      coverage: share of the active items (or of the places in all lists, when there are fewer) that stand in some list.
      recall: of retrieval, on sampled users.
      canary: share of the known answers of the bundle's canary queries that its index finds.
    """

    users: float = 0.999
    full_lists: float = 0.95
    coverage: float = 0.005
    recall: float = 0.98
    canary: float = 0.9


@dataclass(frozen=True)
class Expected:
    """What the version's manifest says: users of the snapshot, active items, the model, retrieval recall (None: unknown)."""

    users: int
    items: int
    list_length: int
    model_version: str
    recall: float | None


@dataclass(frozen=True)
class ListStats:
    """What the stored lists are; counts of lists, but ``distinct_items``."""

    lists: int
    entries: int
    empty: int
    short: int
    not_finite: int
    increasing: int
    other_model: int
    broken: int
    distinct_items: int


@dataclass(frozen=True)
class BundleStats:
    """What a version's bundle says of itself, and how its index answers.

    Attributes:
      model_version, index_version, embedding_version: of the lists' model, of the index, of the item vectors.
      items: active ones.
      canary_queries: with known answers; ``canary_recall`` is the share of these that the index finds.
      trouble: why it cannot be opened, "" when it can.
    """

    version: str = ""
    model_version: str = ""
    index_version: str = ""
    embedding_version: str = ""
    items: int = 0
    canary_queries: int = 0
    canary_recall: float = 0.0
    trouble: str = ""


class ListScan:
    """Adds up packed lists chunk by chunk; ``stats`` at any time."""

    def __init__(self, expected: Expected) -> None:
        self._model = np.frombuffer(expected.model_version.encode(), np.uint8)
        self._full = min(expected.list_length, max(1, expected.items // 2))  # of few items a user may have consumed half
        self._counts = np.zeros(9, np.int64)
        self._distinct = np.zeros(1 << max(10, (4 * expected.items).bit_length()), np.uint64)

    def add(self, cells: Sequence[bytes]) -> None:
        """Scans cells of kind RECS."""
        offsets = np.concatenate([[0], np.cumsum(np.fromiter(map(len, cells), np.int64, len(cells)))]).astype(np.int64)
        _scan(np.frombuffer(b"".join(cells), np.uint8), offsets, self._model, self._full, self._distinct, self._counts)

    def stats(self) -> ListStats:
        """The counts so far."""
        c = self._counts.tolist()
        return ListStats(c[_LISTS], c[_ITEMS], c[_EMPTY], c[_SHORT], c[_NOT_FINITE], c[_INCREASING], c[_OTHER_MODEL],
                         c[_BROKEN], c[_DISTINCT])


def failures(stats: ListStats, expected: Expected, thresholds: Thresholds) -> list[str]:
    """Why the version must not be served; empty when it may be."""
    lists = max(stats.lists, 1)
    users = stats.lists / max(expected.users, 1)
    full = 1 - stats.short / lists
    coverage = stats.distinct_items / max(1, min(expected.items, stats.entries))
    checks = [
        (stats.lists == 0, "the version has no lists"),
        (users < thresholds.users, f"{users:.1%} of {expected.users} users have a list, wanted {thresholds.users:.1%}"),
        (stats.empty > 0, f"{stats.empty} lists are empty"),
        (full < thresholds.full_lists, f"{full:.1%} of the lists are full, wanted {thresholds.full_lists:.1%}"),
        (coverage < thresholds.coverage, f"the lists hold {coverage:.2%} of the items they could, wanted "
                                         f"{thresholds.coverage:.2%}"),
        (stats.not_finite > 0, f"{stats.not_finite} lists have a score that is not finite"),
        (stats.increasing > 0, f"{stats.increasing} lists have a score above the one before it"),
        (stats.other_model > 0, f"{stats.other_model} lists come from another model than {expected.model_version}"),
        (stats.broken > 0, f"{stats.broken} lists cannot be read"),
        (expected.recall is not None and expected.recall < thresholds.recall,
         f"retrieval found {expected.recall or 0:.1%} of the true best items, wanted {thresholds.recall:.1%}"),
    ]
    return [sentence for wrong, sentence in checks if wrong]


def bundle_failures(bundle: BundleStats, version: str, expected: Expected, thresholds: Thresholds) -> list[str]:
    """Why a version must not be served for its bundle; empty when it may be."""
    if bundle.trouble:
        return [f"its bundle cannot be used: {bundle.trouble}"]
    made = {"lists": expected.model_version, "bundle": bundle.model_version, "index": bundle.index_version,
            "embeddings": bundle.embedding_version}
    named = ", ".join(f"{part} of {model}" for part, model in made.items())
    checks = [
        (bundle.version != version, f"its bundle is of version {bundle.version}"),
        (len(set(made.values())) > 1, f"its parts come from different models: {named}"),
        (bundle.items != expected.items,
         f"its bundle has {bundle.items} active items, its lists were made of {expected.items}"),
        (bundle.canary_queries == 0, "its bundle has no canary queries"),
        (bundle.canary_recall < thresholds.canary, f"its index finds {bundle.canary_recall:.1%} of the canary queries' known "
                                                   f"answers, wanted {thresholds.canary:.1%}"),
    ]
    return [sentence for wrong, sentence in checks if wrong]


@numba.njit(cache=True, nogil=True)
def _u32(raw: U8, at: int) -> int:
    return int(raw[at]) | int(raw[at + 1]) << 8 | int(raw[at + 2]) << 16 | int(raw[at + 3]) << 24


@numba.njit(cache=True, nogil=True)
def _scan(raw: U8, offsets: I64, model: U8, full: int, distinct: U64, counts: I64) -> None:
    for cell in range(len(offsets) - 1):
        start, end = offsets[cell], offsets[cell + 1]
        counts[_LISTS] += 1
        if end - start < _FIXED or raw[start] != LAYOUT or raw[start + 1] != RECS:
            counts[_BROKEN] += 1
            continue
        count = _u32(raw, start + 4)
        model_size = int(raw[start + _FIXED - 2]) | int(raw[start + _FIXED - 1]) << 8
        scores = start + _FIXED + model_size
        ids = scores + 6 * count
        if ids + 4 * count > end:
            counts[_BROKEN] += 1
            continue
        same = model_size == len(model)
        for i in range(min(model_size, len(model))):
            same = same and raw[start + _FIXED + i] == model[i]
        counts[_OTHER_MODEL] += not same
        counts[_ITEMS] += count
        counts[_EMPTY] += count == 0
        counts[_SHORT] += count < full
        finite, sorted_scores = _check_scores(raw[scores : scores + 4 * count].copy().view(np.float32))
        counts[_NOT_FINITE] += not finite
        counts[_INCREASING] += not sorted_scores
        if not _add_ids(raw, ids, count, end, distinct, counts):
            counts[_BROKEN] += 1


@numba.njit(cache=True, nogil=True)
def _check_scores(scores: npt.NDArray[np.float32]) -> tuple[bool, bool]:
    finite, descending = True, True
    for i in range(len(scores)):
        finite = finite and bool(np.isfinite(scores[i]))
        descending = descending and (i == 0 or not scores[i] > scores[i - 1])
    return finite, descending


@numba.njit(cache=True, nogil=True)
def _add_ids(raw: U8, ids: int, count: int, end: int, distinct: U64, counts: I64) -> bool:
    """Puts the ids of a list into a set of FNV-1a hashes; False when they do not fit in the cell."""
    text, before = ids + 4 * count, 0
    for i in range(count):
        after = _u32(raw, ids + 4 * i)
        if after < before or text + after > end:
            return False
        value = np.uint64(14695981039346656037)
        for at in range(text + before, text + after):
            value = (value ^ np.uint64(raw[at])) * np.uint64(1099511628211)
        before = after
        value = value | np.uint64(1)  # 0 marks a free place
        mask = np.uint64(len(distinct) - 1)
        place = (value >> np.uint64(20)) & mask
        while distinct[place] != 0 and distinct[place] != value:
            place = (place + np.uint64(1)) & mask
        if distinct[place] == 0 and counts[_DISTINCT] < len(distinct) // 2:  # never full: a search must end
            distinct[place] = value
            counts[_DISTINCT] += 1
    return True
