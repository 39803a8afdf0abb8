"""Exact top-k by dot product: the oracle of every approximate index, and the index of a small catalogue."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import numpy.typing as npt

_SCORES_PER_BLOCK = 8_000_000
"""A block of the score matrix stays near 32 MB, whatever the catalogue."""


@numba.njit(cache=True, nogil=True)
def _sift_down(scores: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], root: int, size: int) -> None:
    while True:
        child = 2 * root + 1
        if child >= size:
            return
        other = child + 1
        if other < size and (scores[other] < scores[child] or (
                scores[other] == scores[child] and positions[other] > positions[child])):
            child = other
        if scores[child] > scores[root] or (scores[child] == scores[root] and positions[child] < positions[root]):
            return
        scores[root], scores[child] = scores[child], scores[root]
        positions[root], positions[child] = positions[child], positions[root]
        root = child


@numba.njit(cache=True, nogil=True)
def _select(matrix: npt.NDArray[np.float32], k: int, positions: npt.NDArray[np.int32],
            scores: npt.NDArray[np.float32]) -> None:
    """Per row the k best (score descending, then position ascending), through a heap whose root is the worst kept."""
    rows, items = matrix.shape
    for row in range(rows):
        best, where, size = scores[row], positions[row], 0
        for item in range(items):
            value = matrix[row, item]
            if size < k:
                best[size], where[size] = value, item
                size += 1
                if size == k:
                    for root in range(k // 2 - 1, -1, -1):
                        _sift_down(best, where, root, k)
            elif value > best[0]:
                best[0], where[0] = value, item
                _sift_down(best, where, 0, k)
        if size < k:
            for root in range(size // 2 - 1, -1, -1):
                _sift_down(best, where, root, size)
        for last in range(size - 1, 0, -1):  # heap sort: the worst goes to the end
            best[0], best[last] = best[last], best[0]
            where[0], where[last] = where[last], where[0]
            _sift_down(best, where, 0, last)


def exact_top_k(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int,
                threads: int = 2) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The k items of highest dot product for each query; ties go to the lower position.

    Args:
      queries: (n, d).
      vectors: (m, d).
      k: how many; more than m leaves the tail of each row at position -1, score -inf.
      threads: for the selection; the product uses BLAS's own.

    Returns:
      (positions (n, k) int32, scores (n, k) float32), best first.
    """
    positions = np.full((len(queries), k), -1, np.int32)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    if k == 0 or len(vectors) == 0 or len(queries) == 0:
        return positions, scores
    step = max(1, _SCORES_PER_BLOCK // len(vectors))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(queries), step):
            matrix = queries[start : start + step] @ vectors.T
            cuts = np.linspace(0, len(matrix), min(threads, len(matrix)) + 1).astype(int)
            parts = [(matrix[a:b], k, positions[start + a : start + b], scores[start + a : start + b])
                     for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
            list(pool.map(lambda part: _select(*part), parts))
    return positions, scores
