"""Time splits of events for evaluation: what the model may learn from, what is known of each user, what to predict.

Every split is over the whole catalogue, by time, never by random rows. Times are microseconds; ties keep the order given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from transforms.examples import positives


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
      train_until: the model may learn from ``visible`` events before this moment.
      visible: events (the columns given) known at query time, of all users; training uses those before train_until.
      users: (q,) ids that are asked for.
      moments: (q,) microseconds: just after the last visible event of the user.
      targets: per user, the ids to find.
    """

    train_until: int
    visible: pa.Table
    users: list[str]
    moments: npt.NDArray[np.int64]
    targets: list[set[str]]


def cut_at_share(events: pa.Table, share: float = 0.8) -> int:
    """The moment of the event at that share of all events in time order."""
    times = np.sort(events["occurred_at"].cast(pa.int64()).to_numpy())
    return int(times[int(len(times) * share)])


def time_split(events: pa.Table, at: int) -> Split:
    """Everything before ``at`` is known; a user's new positives after it are the targets."""
    times = events["occurred_at"].cast(pa.int64()).to_numpy()
    before = events.filter(pa.array(times < at))
    seen = _pairs(before)
    later = _pairs(positives(events.filter(pa.array(times >= at)))).join(seen, on=["user_id", "item_id"], how="anti")
    return _split(before, _targets(later), at)


def fold_split(events: pa.Table, at: int) -> Split:
    """The model knows what came before ``at``; the first half (floor) of each user's events after it is input, the
    positives of the other half are targets: a trained model and fresh events, the production case."""
    frame = _order(events)
    late = frame.filter(pl.col("t") >= at).with_columns(
        place=pl.int_range(pl.len()).over("user_id"), of=pl.len().over("user_id"))
    hidden = late.filter(pl.col("place") >= pl.col("of") // 2)["row"]
    visible = events.take(np.setdiff1d(np.arange(events.num_rows), hidden.to_numpy()))
    return _split(visible, _targets(_pairs(positives(events.take(hidden.to_numpy())))), at)


def last_out_split(events: pa.Table, least: int = 5, nth: int = 1) -> Split:
    """Each user's nth last positive is the target and only what came before it is known; users with ``least`` positives."""
    frame = _order(events)
    liked = frame.join(_order_of(positives_mask(events)), on="row", how="semi").with_columns(
        place=pl.int_range(pl.len()).over("user_id"), of=pl.len().over("user_id"))
    held = liked.filter((pl.col("of") >= least) & (pl.col("place") == pl.col("of") - nth))
    cut = frame.join(held.select("user_id", cut="order"), on="user_id", how="left")
    kept = cut.filter(pl.col("cut").is_null() | (pl.col("order") < pl.col("cut")))["row"].sort()
    visible = events.take(kept.to_numpy())
    last = visible["occurred_at"].cast(pa.int64()).to_numpy().max(initial=0)
    return _split(visible, _targets(_pairs(events.take(held["row"].to_numpy()))), int(last) + 1)


def positives_mask(events: pa.Table) -> npt.NDArray[np.int64]:
    """Row numbers of the positive events."""
    numbered = events.append_column("row", pa.array(np.arange(events.num_rows)))
    return positives(numbered)["row"].to_numpy()


def _order_of(rows: npt.NDArray[np.int64]) -> pl.DataFrame:
    return pl.DataFrame({"row": rows})


def _order(events: pa.Table) -> pl.DataFrame:
    """row, user_id, t and order (rank by time, ties as given), sorted by order."""
    frame = pl.DataFrame({"user_id": events["user_id"].cast(pa.string()), "t": events["occurred_at"].cast(pa.int64())})
    return frame.with_row_index("row").cast({"row": pl.Int64}).sort("t", maintain_order=True).with_row_index("order")


def _pairs(events: pa.Table) -> pl.DataFrame:
    frame = pl.DataFrame({"user_id": events["user_id"].cast(pa.string()), "item_id": events["item_id"].cast(pa.string())})
    return frame.unique(maintain_order=True)


def _targets(pairs: pl.DataFrame) -> dict[str, set[str]]:
    grouped = pairs.group_by("user_id", maintain_order=True).agg("item_id")
    return {user: set(items) for user, items in grouped.iter_rows()}


def _split(visible: pa.Table, targets: dict[str, set[str]], at: int) -> Split:
    liked = positives(visible)
    frame = pl.DataFrame({"user_id": visible["user_id"].cast(pa.string()), "t": visible["occurred_at"].cast(pa.int64())})
    last = dict(frame.group_by("user_id").agg(pl.col("t").max()).iter_rows())
    known = set(liked["user_id"].to_pylist())
    users = sorted(user for user in targets if user in known)
    moments = np.array([last[user] + 1 for user in users], np.int64)
    return Split(at, visible, users, moments, [targets[user] for user in users])
