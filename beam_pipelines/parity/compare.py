"""Counts the cells in which the stream, the batch accumulators and plain SQL differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from beam_pipelines.parity.oracle import FEATURES, Oracle
from schemas.features import GROUPS, features_of
from schemas.keys import SUPPRESSED, USER, row_key
from schemas.stream_cells import RINGS, decode_rings, encode_suppression, extract, window_sums
from serving.stores import Store
from transforms.accumulators.events import Events
from transforms.accumulators.stream.base import FAR
from transforms.accumulators.stream.item import ItemState
from transforms.accumulators.stream.user import UserState
from transforms.beam.stream.wire import split

SHIFTS = (0, 7 * 60 * 1_000_000, 35 * 60 * 1_000_000)
"""Features are read at the newest event of each user or item, and so much later: windows slide and sessions end at read.
Lists, which are dearer to read, at the first and the last of these."""

STREAM_GROUPS = tuple(g.name for g in GROUPS if g.source == "stream")
_PARTS = {"user_session": ("user_session", "session_items", "session_categories"), "user_preference": ("category_preference",),
          "user_recent": ("recent_items",), "item_cooccurring": ("recent_cooccurring_items",)}
_ROWS_AT_ONCE = 1000
_LIST_COLUMNS = ("ids", "times", "scores")

CellsById = Mapping[str, tuple[bytes, int]]
"""Packed cells of one group by entity id, each with its timestamp."""


@dataclass
class Difference:
    """What was compared: ``cells`` values, of which ``differing`` differ, are missing or are there twice."""

    cells: int = 0
    differing: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, what: str, compared: int, different: int, example: str = "") -> None:
        """Counts one comparison."""
        self.cells += compared
        self.differing += different
        if different and len(self.examples) < 20:
            self.examples.append(f"{what}: {different:,} of {compared:,} differ{'; ' + example if example else ''}")


def batch_states(batches: Iterable[pa.RecordBatch], buckets: int) -> tuple[list[UserState], list[ItemState]]:
    """Every clean event, each once, in the stream's accumulators, a state a bucket: what batch makes of the lake."""
    users = [UserState((*UserState.GROUPS, *UserState.EXTRAS)) for _ in range(buckets)]
    items = [ItemState() for _ in range(buckets)]
    for batch in batches:
        for bucket, part in split(batch, "user_id", buckets):
            users[bucket].add(Events(part))
            changed = users[bucket].take_pairs()
            for other, pairs in split(changed, "item_id", buckets):
                items[other].add_pairs(pairs)
        for bucket, part in split(batch, "item_id", buckets):
            items[bucket].add(Events(part))
    return users, items


def cells_of(states: Iterable[UserState | ItemState]) -> dict[str, dict[str, tuple[bytes, int]]]:
    """All cells of some states, by group and entity id."""
    found: dict[str, dict[str, tuple[bytes, int]]] = {}
    for state in states:
        for cells in state.cells():
            ids = cells.entities.ids.to_pylist()
            packed = zip(cells.values, cells.timestamps.tolist(), strict=True)
            found.setdefault(cells.group, {}).update(zip(ids, packed, strict=True))
    return found


def final_of(states: Iterable[UserState | ItemState]) -> dict[str, pl.DataFrame]:
    """All panes, sessions and minutes of some states, by table."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for state in states:
        for name, batch in state.final(FAR, -FAR).items():
            parts.setdefault(name, []).append(pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))))
    return {name: pl.concat(frames) for name, frames in parts.items()}


def compare_cells(what: str, ours: CellsById, theirs: CellsById, out: Difference) -> None:
    """Byte by byte, timestamps too."""
    wrong = [i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i)]
    out.add(what, len(ours.keys() | theirs.keys()), len(wrong), f"e.g. {len(wrong)} rows" if wrong else "")


def compare_suppressions(store: Store, oracle: Oracle, out: Difference) -> None:
    """The cells that hide from users what they consumed, beside SQL, byte by byte."""
    expected = {(user, item): (encode_suppression(at), at // 1000 * 1000) for user, item, at in oracle.consumed().iter_rows()}
    users = sorted({user for user, _ in expected})
    found: dict[tuple[str, str], tuple[bytes, int]] = {}
    for start in range(0, len(users), _ROWS_AT_ONCE):
        some = users[start : start + _ROWS_AT_ONCE]
        for user, cells in zip(some, store.read_features([row_key(USER, u) for u in some], "stream", [f"{SUPPRESSED}*"]),
                               strict=True):
            found |= {(user, group.removeprefix(SUPPRESSED)): (cell.value, cell.timestamp) for group, cell in cells.items()}
    wrong = [pair for pair in found.keys() | expected.keys() if found.get(pair) != expected.get(pair)]
    out.add("suppressions of the stream and SQL", len(found.keys() | expected.keys()), len(wrong))


def compare_table(what: str, rows: pl.DataFrame, truth: pl.DataFrame, out: Difference) -> None:
    """Rows of a table of closed panes or sessions, in the columns that the truth has; every row counts, repeats too."""
    key = ["user_id" if "user_id" in truth.columns else "item_id", "start"]
    ours = rows.select(truth.columns).with_columns(pl.col(pl.Datetime).dt.epoch("us"))
    repeated = len(ours) - len(ours.unique(key))
    joined = truth.cast(ours.schema).join(ours, on=key, how="full", suffix="_ours", coalesce=True)
    values = [c for c in truth.columns if c not in key]
    same = pl.all_horizontal(*(pl.col(c).eq(pl.col(f"{c}_ours")) for c in values)).fill_null(value=False)
    wrong = joined.filter(~same)
    out.add(what, len(joined), len(wrong) + repeated, str(wrong.head(1).to_dicts()) if len(wrong) else "")


def compare_features(group: str, cells: CellsById, oracle: Oracle, out: Difference) -> None:
    """Every feature of a group as a reader extracts it from the cells, beside SQL, at all SHIFTS."""
    entity = next(g.entity for g in GROUPS if g.name == group)
    newest = oracle.newest(entity)
    ids = newest["id"].to_list()
    missing = [i for i in ids if i not in cells] if group != "item_cooccurring" else []
    out.add(f"{group}: entities", len(ids), len(missing))
    times = dict(zip(ids, newest["newest"].to_list(), strict=True))
    held = [i for i in ids if i in cells]
    for shift in SHIFTS:
        if group in RINGS:
            at = np.array([times[i] for i in held], np.int64) + shift
            _compare_ring(group, held, cells, at, oracle.feature(group, shift), f"{group} +{shift // 1_000_000}s", out)
            continue
        if shift not in (SHIFTS[0], SHIFTS[-1]):
            continue
        read = {i: extract(group, cells[i][0], max(times[i] + shift, cells[i][1])) for i in held}
        for part in _PARTS[group]:
            _compare_read(part, read, oracle.feature(part, shift), f"{part} +{shift // 1_000_000}s", out)


def _compare_ring(group: str, ids: list[str], cells: CellsById, t: np.ndarray, truth: pl.DataFrame, what: str,
                  out: Difference) -> None:
    ring = RINGS[group]
    if not ids:
        return
    first, counts = decode_rings(group, [cells[i][0] for i in ids])
    # Each ring is read at a time of its own: as if its first pane were that much earlier, at time 0.
    sums = window_sums(first - t // ring.step, counts, 0, ring.windows).reshape(len(ids), -1)
    names = [f.name for f in features_of(group)]
    ours = pl.DataFrame({"id": ids, **{n: sums[:, k] for k, n in enumerate(names)}})
    filled = truth.with_columns(**{n: pl.lit(0) for n in names if n not in truth.columns})
    joined = filled.join(ours, on="id", suffix="_ours")
    for n in names:
        out.add(f"{what} {n}", len(joined), int((joined[n].cast(pl.Int64) != joined[f"{n}_ours"]).sum()))


def _compare_read(part: str, read: Mapping[str, Mapping[str, object]], truth: pl.DataFrame, what: str, out: Difference) -> None:
    """Values of one SQL statement beside the values read; an entity that it leaves out has none (defaults)."""
    rows = {row.pop("id"): row for row in truth.to_dicts()}
    wrong, example = 0, ""
    for entity, values in read.items():
        expected = rows.get(entity)
        if part in FEATURES and not part.startswith("user_"):
            same = _same_list(values.get(part), expected)
        else:
            same = _same_numbers(values, expected)
        if not same:
            wrong += 1
            example = example or f"expected {str(expected)[:300]}, found {str(values.get(part, values))[:300]}"
    out.add(what, len(read), wrong, example)


def _same_numbers(values: Mapping[str, object], expected: Mapping[str, float] | None) -> bool:
    if expected is None:
        return not values
    return all(isinstance(v := values.get(name), float) and abs(v - truth) <= 1e-6 * max(1.0, abs(truth))
               for name, truth in expected.items())


def _same_list(found: object, expected: Mapping[str, list] | None) -> bool:
    if expected is None:
        return not found or not found[0]  # type: ignore[index]
    if not isinstance(found, tuple):
        return False
    ids, times, scores = found
    return (list(ids) == expected["ids"] and ("times" not in expected or times.tolist() == expected["times"])
            and np.allclose(scores, expected["scores"], rtol=1e-6, atol=0))
