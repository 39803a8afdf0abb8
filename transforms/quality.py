"""Checks of a snapshot before anything is built on it: each failure is one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.features import FEATURES, SEGMENTS, Feature

_AT_MOST_ONE = ("popularity_share_1d", "popularity_share_7d", "popularity_share_30d")


def check_snapshot(entity: str, rows: pa.Table, as_of: int, groups: Sequence[str]) -> list[str]:
    """Failures of rows of one bucket (or all) of ``user_snapshots`` or ``item_snapshots``; none for good rows.

    Checked: as_of as asked, ids distinct and not empty, numbers finite, not negative and within their meaning, lists
    not above their cap, their times before as_of and falling, their scores positive.
    """
    ids = rows.column(f"{entity}_id")
    failures = []
    if len(rows) and pc.any(pc.not_equal(rows.column("as_of").cast(pa.int64()), as_of)).as_py():
        failures.append(f"{entity} rows of another as_of")
    if pc.count_distinct(ids).as_py() != len(rows):
        failures.append(f"a repeated {entity} id")
    if pc.any(pc.equal(ids, "")).as_py():
        failures.append(f"an empty {entity} id")
    for feature in FEATURES:
        if feature.entity == entity and feature.group in groups:
            column = rows.column(feature.name)
            failures += _check_list(feature, column, as_of) if feature.dtype == "list" else _check_number(feature, column)
    return failures


def _check_number(feature: Feature, column: pa.ChunkedArray) -> list[str]:
    values = column.drop_null().to_numpy()
    failures = []
    if not np.isfinite(values).all():
        failures.append(f"{feature.name}: not finite")
    if (values < 0).any() and not feature.name.startswith("price_"):
        failures.append(f"{feature.name}: negative")
    if feature.name in _AT_MOST_ONE and (values > 1).any():
        failures.append(f"{feature.name}: a share above 1")
    if feature.name == "segment" and not np.isin(values, np.arange(len(SEGMENTS))).all():
        failures.append("segment: not a segment")
    if feature.default is not None and column.null_count:
        failures.append(f"{feature.name}: null")
    return failures


def _check_list(feature: Feature, column: pa.ChunkedArray, as_of: int) -> list[str]:
    failures = []
    for chunk in column.chunks:
        ids, times, scores = (chunk.field(name) for name in ("ids", "times", "scores"))
        lengths = pc.list_value_length(ids).fill_null(0).to_numpy()
        if len(lengths) and lengths.max() > feature.shape[0]:
            failures.append(f"{feature.name}: longer than {feature.shape[0]}")
        owner = np.repeat(np.arange(len(lengths)), lengths)
        flat_times, flat_scores = times.flatten().to_numpy(), scores.flatten().to_numpy()
        if (flat_times >= as_of).any():
            failures.append(f"{feature.name}: a time at or after as_of")
        if ((owner[1:] == owner[:-1]) & (flat_times[1:] > flat_times[:-1])).any():
            failures.append(f"{feature.name}: not newest first")
        if not (np.isfinite(flat_scores) & (flat_scores > 0)).all():
            failures.append(f"{feature.name}: a score that is not above 0")
    return failures
