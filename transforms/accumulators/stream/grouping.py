"""Grouping of gathered rows by (owner, member), and the order of ids as text."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from transforms.accumulators.frame import Ints
from transforms.accumulators.stream.names import Names


def groups_of(owner: Ints, member: Ints) -> tuple[Ints, Ints, Ints]:
    """Groups of rows of one (owner, member).

    Returns:
      the rows in order of their groups (n,); where each group begins in that order (g,); each group's owner (g,).
    """
    key = (owner << 32) | member
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1]))) if len(ranked) else order
    return order, starts, ranked[starts] >> 32


def bounds_of(owner: Ints, n: int) -> Ints:
    """Bounds (n + 1,) of each of n owners in an ascending column of owners."""
    return np.searchsorted(owner, np.arange(n + 1))


def text_ranks(names: Names, codes: Ints) -> Ints:
    """(n,) a number for each code that orders the ids by their UTF-8."""
    distinct, index = np.unique(codes, return_inverse=True)
    ranks = np.empty(len(distinct), np.int64)
    ranks[pc.sort_indices(names.strings(distinct)).to_numpy()] = np.arange(len(distinct))
    return ranks[index]
