"""Users as a snapshot would have them now: batch cells of the last night with what the stream knows since. Pure.

A refresh of lists reads these instead of the lake's snapshot, so a list made again in the hour knows the hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from schemas.cells import decode_list, decode_vector
from schemas.event_types import EVENT_TYPES
from schemas.features import CONSUMED_CAP, LAST_ITEMS_CAP, features_of
from schemas.keys import SUPPRESSED
from schemas.stream_cells import decayed_scores
from transforms.examples import USER_STATS

BATCH_GROUPS = ("user_stats", "user_affinity", "user_last_items", "user_liked_items", "user_consumed")
STREAM_GROUPS = ("user_recent", "user_preference", f"{SUPPRESSED}*")
"""What ``user_rows`` wants of the store, by family."""

_OTHER = {t.weight for t in EVENT_TYPES if not t.consumes}
CONSUMING_WEIGHTS = tuple(sorted({t.weight for t in EVENT_TYPES if t.consumes} - _OTHER))
LIKING_WEIGHTS = tuple(sorted({t.weight for t in EVENT_TYPES if t.positive}))
"""A recent item is known with the weight of its last event only: weights that tell the event consumed or liked it."""

Cells = Sequence[Mapping[str, bytes]]
_LISTED = pa.struct([("ids", pa.list_(pa.string())), ("times", pa.list_(pa.int64())), ("scores", pa.list_(pa.float32()))])
_STAT_AT = {f.name: at for at, f in enumerate(features_of("user_stats")) if f.name in USER_STATS}


def user_rows(user_ids: Sequence[str], batch: Cells, stream: Cells, now: int) -> pa.RecordBatch:
    """Rows with the columns of a user snapshot that ranking and the user tower read.

    Args:
      user_ids: n users.
      batch, stream: n mappings from group of BATCH_GROUPS or STREAM_GROUPS to packed cell; what is missing is empty.
      now: microseconds; ``as_of`` of the rows.

    Raises:
      CellError: a cell that cannot be read.
    """
    n = len(user_ids)
    recent = _entries(stream, "user_recent")
    liked = _merged(_entries(batch, "user_liked_items"), recent.filter(_of(LIKING_WEIGHTS)), LAST_ITEMS_CAP)
    consumed = _merged(_entries(batch, "user_consumed"),
                       pl.concat([recent.filter(_of(CONSUMING_WEIGHTS)), _suppressed(stream, now)]),
                       CONSUMED_CAP)
    last = _merged(_entries(batch, "user_last_items"), recent, LAST_ITEMS_CAP)
    stats = _stats(batch)
    columns = {
        "user_id": pa.array(user_ids, pa.string()),
        "as_of": pa.array(np.full(n, now)).cast(pa.timestamp("us", "UTC")),
        **{name: pa.array(stats[:, i], pa.float32(), from_pandas=True) for i, name in enumerate(_STAT_AT)},
        "category_affinity_30d": _affinity(batch, stream, now),
        "last_items": _listed(last, n), "liked_items": _listed(liked, n), "consumed_items": _listed(consumed, n),
    }
    return pa.record_batch(list(columns.values()), names=list(columns))


def _of(weights: Sequence[int]) -> pl.Expr:
    return pl.col("score").cast(pl.Int64).is_in(list(weights))


def _entries(cells: Cells, group: str) -> pl.DataFrame:
    """(user, id, time, score) of a list group; user is a row number."""
    users: list[npt.NDArray[np.int64]] = []
    ids: list[str] = []
    times: list[npt.NDArray[np.int64]] = []
    scores: list[npt.NDArray[np.float32]] = []
    for row, held in enumerate(cells):
        if group in held:
            names, at, score = decode_list(held[group])
            users.append(np.full(len(names), row))
            ids.extend(names)
            times.append(at)
            scores.append(score)
    return _frame(users, ids, times, scores)


def _suppressed(stream: Cells, now: int) -> pl.DataFrame:
    """What the collector suppressed at once, as consumed now."""
    found = [(row, group.removeprefix(SUPPRESSED)) for row, held in enumerate(stream) for group in held
             if group.startswith(SUPPRESSED)]
    rows = np.array([row for row, _ in found], np.int64)
    return _frame([rows], [i for _, i in found], [np.full(len(found), now)], [np.zeros(len(found), np.float32)])


def _frame(users: list[npt.NDArray[np.int64]], ids: list[str], times: list[npt.NDArray[np.int64]],
           scores: list[npt.NDArray[np.float32]]) -> pl.DataFrame:
    return pl.DataFrame({
        "user": np.concatenate([np.zeros(0, np.int64), *users]), "id": pl.Series(ids, dtype=pl.String),
        "time": np.concatenate([np.zeros(0, np.int64), *times]),
        "score": np.concatenate([np.zeros(0, np.float32), *scores]).astype(np.float32)})


def _merged(batch: pl.DataFrame, recent: pl.DataFrame, cap: int) -> pl.DataFrame:
    """Both, each item of a user once with its newest entry, newest first, at most ``cap`` a user; of entries of one time the
    recent one, then by id."""
    both = pl.concat([recent.with_columns(old=pl.lit(0)), batch.with_columns(old=pl.lit(1))])
    ordered = both.sort(["user", "time", "old", "id"], descending=[False, True, False, False])
    once = ordered.unique(["user", "id"], keep="first", maintain_order=True)
    return once.group_by("user", maintain_order=True).head(cap)


def _listed(entries: pl.DataFrame, n: int) -> pa.StructArray:
    """(n,) a list column of a snapshot; empty where a user has no entries."""
    counts = np.bincount(entries["user"].to_numpy(), minlength=n)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    columns = entries["id"].to_arrow().cast(pa.string()), *(pa.array(entries[name].to_numpy()) for name in ("time", "score"))
    parts = [pa.ListArray.from_arrays(offsets, values) for values in columns]
    return pa.StructArray.from_arrays(parts, fields=list(_LISTED))


def _stats(batch: Cells) -> npt.NDArray[np.float32]:
    """(n, len(_STAT_AT)) statistics, NaN for null and for users that batch does not know."""
    found = np.full((len(batch), len(_STAT_AT)), np.nan, np.float32)
    for row, held in enumerate(batch):
        if "user_stats" in held:
            vector = decode_vector(held["user_stats"])
            found[row] = [vector[at] if at < len(vector) else np.nan for at in _STAT_AT.values()]
    return found


def _affinity(batch: Cells, stream: Cells, now: int) -> pa.StructArray:
    """Shares per category of 30 days; of the stream's last hours for who has none yet."""
    rows = []
    for of_batch, of_stream in zip(batch, stream, strict=True):
        ids: list[str] = []
        shares: npt.NDArray[np.floating] = np.zeros(0, np.float32)
        if "user_affinity" in of_batch:
            ids, _, shares = decode_list(of_batch["user_affinity"])
        elif "user_preference" in of_stream:
            ids, weights = decayed_scores(of_stream["user_preference"], now)
            shares = weights / max(int(weights.sum()), 1)
        rows.append({"ids": ids, "times": [0] * len(ids), "scores": shares.tolist()})
    return pa.array(rows, _LISTED)
