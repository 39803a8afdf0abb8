"""Ranking quality over the full catalogue: Recall@k, NDCG@k, bootstrap intervals over users, and plain baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.splits import Split
from transforms.examples import consumed, positives

Floats = npt.NDArray[np.float32]
Lists = list[list[str]]
"""Per user, item ids best first."""

POPULAR_DAYS = 30
_DAY_MICROS = 86_400_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over users with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Quality:
    """Quality of one method's lists: recall@20 = hits / min(20, targets), ndcg@10 binary, coverage@20 of the catalogue."""

    recall_20: Interval
    ndcg_10: Interval
    coverage_20: float
    users: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def bootstrap(values: npt.NDArray[np.float64], resamples: int = 2000, seed: int = 7) -> Interval:
    """Mean of per-user values and the 2.5 and 97.5 percentiles of the means of resampled users; NaN without users."""
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def recall(lists: Lists, targets: Sequence[set[str]], k: int) -> npt.NDArray[np.float64]:
    """Per user, targets found in the first k over min(k, targets); (q,)."""
    return np.array([sum(i in wanted for i in ranked[:k]) / min(k, len(wanted))
                     for ranked, wanted in zip(lists, targets, strict=True)], np.float64)


def ndcg(lists: Lists, targets: Sequence[set[str]], k: int) -> npt.NDArray[np.float64]:
    """Per user, binary NDCG at k (Järvelin and Kekäläinen 2002), the ideal list holding min(k, targets) hits; (q,)."""
    gain = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gain)
    return np.array([sum(gain[n] for n, i in enumerate(ranked[:k]) if i in wanted) / ideal[min(k, len(wanted)) - 1]
                     for ranked, wanted in zip(lists, targets, strict=True)], np.float64)


def quality(lists: Lists, targets: Sequence[set[str]], catalogue: int) -> Quality:
    """Quality of lists; ``catalogue`` is the number of items that could have been listed."""
    shown = {item for ranked in lists for item in ranked[:20]}
    return Quality(bootstrap(recall(lists, targets, 20)), bootstrap(ndcg(lists, targets, 10)),
                   len(shown) / max(1, catalogue), len(lists))


class Candidates:
    """The catalogue as positions, and what each asked user may no longer be shown.

    Args:
      item_ids: the n items that may be listed.
      split: the split whose users are asked.
    """

    def __init__(self, item_ids: Sequence[str], split: Split) -> None:
        self.ids = pa.array(item_ids, pa.string())
        self.split = split
        gone = consumed(split.visible)
        self._users = pa.array(split.users, pa.string())
        rows, items = self._positions(gone, self._users)
        order = np.argsort(rows, kind="stable")
        self._gone = items[order]
        self._starts = np.searchsorted(rows[order], np.arange(len(split.users) + 1))

    def _positions(self, events: pa.Table, users: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rows = pc.index_in(events["user_id"].combine_chunks().cast(pa.string()), users)
        items = pc.index_in(events["item_id"].combine_chunks().cast(pa.string()), self.ids)
        both = pc.and_(pc.is_valid(rows), pc.is_valid(items))
        keep = both.combine_chunks() if isinstance(both, pa.ChunkedArray) else both
        as_numpy = [c.filter(keep).cast(pa.int64()).to_numpy() for c in (rows, items)]
        return as_numpy[0], as_numpy[1]

    def rank(self, first: int, scores: Floats, k: int) -> Lists:
        """The best k items of users first.. by (b, n) scores, without what they consumed; ties go to the earlier item.

        Items of score -inf are never listed, so a list may be shorter than k.
        """
        scores = scores.astype(np.float64)
        lists = []
        for b in range(len(scores)):
            scores[b, self._gone[self._starts[first + b] : self._starts[first + b + 1]]] = -np.inf
            best = np.argsort(-scores[b], kind="stable")[:k]
            lists.append(self.ids.take(pa.array(best[np.isfinite(scores[b][best])])).to_pylist())
        return lists

    def by_vectors(self, users: Floats, items: Floats, k: int = 100, chunk: int = 512) -> Lists:
        """Exact top k by dot product of (q, d) user and (n, d) item vectors."""
        return [ranked for at in range(0, len(users), chunk) for ranked in self.rank(at, users[at : at + chunk] @ items.T, k)]

    def by_popularity(self, k: int = 100, days: int = POPULAR_DAYS) -> Lists:
        """Most positive events in the ``days`` before train_until; all-time counts break ties."""
        train = positives(_before(self.split.visible, self.split.train_until))
        recent = _from(train, self.split.train_until - days * _DAY_MICROS)
        score = _counts(recent, self.ids) + _counts(train, self.ids) / (1.0 + train.num_rows)
        return [ranked for n in range(len(self.split.users)) for ranked in self.rank(n, score[None, :].astype(np.float32), k)]

    def by_item_cf(self, k: int = 100, chunk: int = 256, max_train_users: int = 50_000) -> Lists:
        """Item-to-item cosine over the users of the train part, summed over what a user consumed (Deshpande and Karypis
        2004, without a neighbour limit). At most ``max_train_users`` users, the first by id.

        Every consuming event counts, liked or not: on MovieLens validation that is the stronger baseline.
        """
        train = consumed(_before(self.split.visible, self.split.train_until))
        trainers = pa.array(sorted(set(train["user_id"].to_pylist()))[:max_train_users], pa.string())
        rows, items = self._positions(train, trainers)
        size, n = len(trainers), len(self.ids)
        pairs = np.unique(rows * n + items)
        rows, items = pairs // n, pairs % n
        norm = 1.0 / np.sqrt(np.maximum(np.bincount(items, minlength=n), 1))
        starts = np.searchsorted(rows, np.arange(size + 1))
        by_item = np.argsort(items, kind="stable")
        item_starts = np.searchsorted(items[by_item], np.arange(n + 1))
        asked_rows, asked_items = self._positions(consumed(self.split.visible), self._users)
        asked = np.unique(asked_rows * n + asked_items)
        begins = np.searchsorted(asked // n, np.arange(len(self.split.users) + 1))
        lists: Lists = []
        for at in range(0, len(self.split.users), chunk):
            upto = min(at + chunk, len(self.split.users))
            scores = _item_cf_scores(asked % n, begins[at : upto + 1], items, starts, rows[by_item], item_starts,
                                     norm, np.zeros((upto - at, n)), size)
            lists += self.rank(at, scores.astype(np.float32), k)
        return lists


def _before(events: pa.Table, moment: int) -> pa.Table:
    return events.filter(pc.less(events["occurred_at"].cast(pa.int64()), moment))


def _from(events: pa.Table, moment: int) -> pa.Table:
    return events.filter(pc.greater_equal(events["occurred_at"].cast(pa.int64()), moment))


def _counts(events: pa.Table, ids: pa.Array) -> npt.NDArray[np.float64]:
    at = pc.drop_null(pc.index_in(events["item_id"].combine_chunks().cast(pa.string()), ids))
    return np.bincount(at.to_numpy(), minlength=len(ids)).astype(np.float64)


@numba.njit(cache=True)
def _item_cf_scores(asked, begins, items, starts, users, item_starts, norm, out, size):  # type: ignore[no-untyped-def]
    """out[b, j] = sum over asked items i of cosine(i, j): through the users who liked i, so no item x item matrix is made."""
    weight = np.zeros(size)
    for b in range(len(begins) - 1):
        weight[:] = 0.0
        for a in range(begins[b], begins[b + 1]):
            i = asked[a]
            for u in range(item_starts[i], item_starts[i + 1]):
                weight[users[u]] += norm[i]
        for u in range(size):
            if weight[u] != 0.0:
                for p in range(starts[u], starts[u + 1]):
                    out[b, items[p]] += weight[u]
        for j in range(out.shape[1]):
            out[b, j] *= norm[j]
    return out
