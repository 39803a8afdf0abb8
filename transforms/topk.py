"""Exact top-k by dot product: the oracle of every approximate index, and the index of a small catalogue."""

from __future__ import annotations

import itertools
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
def keep_best(scores: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], size: int, score: float,
              position: int) -> int:
    """Offers one item to a list of the best, whose capacity is its length; returns its new size.

    Once full the arrays are a heap whose root is the worst kept: lowest score, then highest position.
    """
    if size < len(scores):
        scores[size], positions[size] = score, position
        size += 1
        if size == len(scores):
            for root in range(size // 2 - 1, -1, -1):
                _sift_down(scores, positions, root, size)
    elif size and (score > scores[0] or (score == scores[0] and position < positions[0])):
        scores[0], positions[0] = score, position
        _sift_down(scores, positions, 0, size)
    return size


@numba.njit(cache=True, nogil=True)
def sort_best(scores: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], size: int) -> None:
    """Sorts what keep_best kept: score descending, then position ascending."""
    for root in range(size // 2 - 1, -1, -1):
        _sift_down(scores, positions, root, size)
    for last in range(size - 1, 0, -1):  # heap sort: the worst goes to the end
        scores[0], scores[last] = scores[last], scores[0]
        positions[0], positions[last] = positions[last], positions[0]
        _sift_down(scores, positions, 0, last)


@numba.njit(cache=True, nogil=True)
def _select(matrix: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> None:
    for row in range(matrix.shape[0]):
        best, where, size = scores[row], positions[row], 0
        for item in range(matrix.shape[1]):
            if size < len(best) or matrix[row, item] > best[0]:
                size = keep_best(best, where, size, matrix[row, item], item)
        sort_best(best, where, size)


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
    if len(queries) == 1:  # a thread would cost more than it saves
        _select(queries @ vectors.T, positions, scores)
        return positions, scores
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(queries), step):
            matrix = queries[start : start + step] @ vectors.T
            cuts = np.linspace(0, len(matrix), min(threads, len(matrix)) + 1).astype(int)
            parts = [(matrix[a:b], positions[start + a : start + b], scores[start + a : start + b])
                     for a, b in itertools.pairwise(cuts)]
            list(pool.map(lambda part: _select(*part), parts))
    return positions, scores
