"""Stream values of two stores compared: a replay beside the live job, or any two.

Both are scanned in row order and merged, so memory does not grow with them, and a live job may go on meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from beam_pipelines.errors import UserError
from beam_pipelines.jobs.replay import STREAM_GROUPS, Replay, folder, store_uri
from beam_pipelines.options import Config
from schemas.cells import CellError
from schemas.features import DAY, Feature, features_of
from schemas.keys import USER, hash64
from schemas.stream_cells import PANE, RINGS, Listed, extract, extract_rings
from serving.stores import StoreError, open_store
from serving.stores.base import Cell, Store

LIVE = "live"
UNREADABLE = "(unreadable)"
_TELL_ROWS = 5_000
_CHUNK_ROWS = 2_000

Value = float | Listed
_Row = tuple[str, Cell | None, Cell | None]
_COARSE = {"item_cooccurring": PANE}
"""Groups whose cells bear the time when their newest span of this length (microseconds) began, not that of an event."""


@dataclass(frozen=True)
class FeatureDiff:
    """One value that differs.

    Attributes:
      feature: its name, or UNREADABLE for a cell that cannot be decoded.
      row: the item, or of a user the first 8 hex digits of the id's hash.
      a, b: the values; of a list how many entries it has; None where nothing can be read.
      difference: of a number the distance, of a list how many entries differ; None when only one side has a number.
    """

    feature: str
    row: str
    a: float | None
    b: float | None
    difference: float | None


@dataclass
class GroupDiff:
    """What comparing one group found: rows = equal_bytes + equal_values + differing, the rows that can be compared.

    Attributes:
      group: its name.
      only_a, only_b: rows that the other store lacks; they count as holding every default there.
      equal_bytes: the cells are the same.
      equal_values: they are not, but every feature is.
      skipped: rows left out because a cell of them knows of events after the time compared.
      reaches_back: a window of the group begins before a replay did, so the values may differ for that alone.
      largest: the largest differences, by feature.
    """

    group: str
    rows: int = 0
    only_a: int = 0
    only_b: int = 0
    equal_bytes: int = 0
    equal_values: int = 0
    differing: int = 0
    skipped: int = 0
    reaches_back: bool = False
    largest: list[FeatureDiff] = field(default_factory=list)


@dataclass(frozen=True)
class Side:
    """One of the two: ``name`` as asked for, URI of the store, and its manifest where it is a replay."""

    name: str
    uri: str
    replay: Replay | None = None


def side_of(config: Config, text: str) -> Side:
    """A store's URI, the name of a replay, or ``live``; raises UserError."""
    if ":" in text:
        return Side(text, text)
    if text == LIVE:
        return Side(LIVE, config.store)
    found = Replay.read(config.workspace, text)
    if found is None:
        raise UserError(f"no replay {text} in {folder(config.workspace, text).parent}; give one of 'beamrec replay list', "
                        f"{LIVE}, or the URI of a store")
    if found.state != "done":
        raise UserError(f"replay {text} is not finished; run it again with the same flags")
    return Side(text, store_uri(config.workspace, text), found)


def time_compared(sides: Sequence[Side], now: int) -> int:
    """As of when two sides are compared unless told: the earliest end of the replays among them, else ``now``."""
    return min((side.replay.until for side in sides if side.replay is not None), default=now)


def compare(a: Side, b: Side, at: int, groups: Sequence[str] | None = None, top: int = 10,
            tell: Callable[[str, int], None] | None = None) -> list[GroupDiff]:
    """Compares the stream cells of two stores, group by group.

    Args:
      a, b: the stores.
      at: values are those as of this time (microseconds); rows that know of later events are skipped.
      groups: stream groups; None: all.
      top: how many of the largest differences of each group to name.
      tell: called with a group and the number of rows since the last call.

    Raises:
      UserError: no such group, or a store cannot be read.
    """
    names = list(groups or STREAM_GROUPS)
    if unknown := [name for name in names if name not in STREAM_GROUPS]:
        raise UserError(f"no stream group {unknown[0]!r}; one of {', '.join(STREAM_GROUPS)}")
    stores: list[Store] = []
    try:
        for side in (a, b):
            stores.append(open_store(side.uri, create=False))
        begins = [side.replay.start_at for side in (a, b) if side.replay is not None and not side.replay.from_the_beginning]
        found = []
        for name in names:
            out = compare_group(stores[0], stores[1], name, at, top, tell)
            out.reaches_back = at - _window(name) < max(begins, default=0)
            found.append(out)
        return found
    except StoreError as error:
        raise UserError(str(error)) from error
    finally:
        for store in stores:
            store.close()


def compare_group(a: Store, b: Store, group: str, at: int, top: int = 10,
                  tell: Callable[[str, int], None] | None = None) -> GroupDiff:
    """Compares the cells of one stream group; see ``compare``."""
    out, waiting = GroupDiff(group), list[_Row]()

    def settle() -> None:
        differing, named = (_ring_differences if group in RINGS else _differences)(group, waiting, at, top)
        out.differing += differing
        out.equal_values += len(waiting) - differing
        # The sort is stable: of equal differences the first in row order stays.
        out.largest = sorted([*out.largest, *named], key=_size, reverse=True)[:top]
        waiting.clear()

    for seen, (row, ours, theirs) in enumerate(joined(a.scan_features("stream", group), b.scan_features("stream", group)), 1):
        if tell is not None and seen % _TELL_ROWS == 0:
            tell(group, _TELL_ROWS)
        same = ours is not None and theirs is not None and ours.value == theirs.value
        slack = 0 if same else max(_COARSE.get(group, 0) - 1, 0)
        if max(cell.timestamp for cell in (ours, theirs) if cell is not None) + slack > at:
            out.skipped += 1
            continue
        out.rows += 1
        out.only_a += theirs is None
        out.only_b += ours is None
        if same:
            out.equal_bytes += 1
            continue
        waiting.append((row, ours, theirs))
        if len(waiting) == _CHUNK_ROWS:
            settle()
    settle()
    return out


def joined(a: Iterator[tuple[str, Cell]], b: Iterator[tuple[str, Cell]]) -> Iterator[tuple[str, Cell | None, Cell | None]]:
    """Merges two scans in row order: each row once, with the cell of either side."""
    left, right = next(a, None), next(b, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            yield left[0], left[1], None
            left = next(a, None)
        elif left is None or right[0] < left[0]:
            yield right[0], None, right[1]
            right = next(b, None)
        else:
            yield left[0], left[1], right[1]
            left, right = next(a, None), next(b, None)


def masked(row: str) -> str:
    """What may be shown of a row: an item's id, of a user 8 hex digits of the hash."""
    _, _, rest = row.partition("#")
    kind, _, entity = rest.partition("#")
    return f"{hash64(entity):016x}"[:8] if kind == USER else entity


def _window(group: str) -> int:
    """How far values of a group look back, microseconds; a session has no bound, but hardly one is longer than a day."""
    return 1_000_000 * max(feature.window or DAY for feature in features_of(group))


def _differences(group: str, rows: Sequence[_Row], at: int, top: int) -> tuple[int, list[FeatureDiff]]:
    """How many rows differ, and the ``top`` largest differences."""
    features, differing, found = features_of(group), 0, list[FeatureDiff]()
    for row, a, b in rows:
        before = len(found)
        try:
            ours, theirs = (extract(group, cell.value, at) if cell is not None else {} for cell in (a, b))
        except CellError:
            found.append(FeatureDiff(UNREADABLE, masked(row), None, None, None))
            differing += 1
            continue
        for feature in features:
            left, right = _value(ours, feature), _value(theirs, feature)
            size = _distance(left, right)
            if size is None or size > 0:
                found.append(FeatureDiff(feature.name, masked(row), _said(left), _said(right), size))
        differing += len(found) > before
    return differing, sorted(found, key=_size, reverse=True)[:top]


def _ring_differences(group: str, rows: Sequence[_Row], at: int, top: int) -> tuple[int, list[FeatureDiff]]:
    """The same of counts, all rows at once: their features are numbers, 0 where there is no cell."""
    features = features_of(group)
    sides = np.zeros((2, len(rows), len(features)), np.int64)
    try:
        for side in (0, 1):
            held = [i for i, row in enumerate(rows) if row[side + 1] is not None]
            if held:
                values = extract_rings(group, [rows[i][side + 1].value for i in held], at)  # type: ignore[union-attr]
                sides[side, held, : values.shape[1]] = values
    except CellError:  # one of them; row by row it is found
        return _differences(group, rows, at, top)
    size = np.abs(sides[0] - sides[1])
    largest = np.argsort(-size, axis=None, kind="stable")[: min(top, np.count_nonzero(size))]
    found = [FeatureDiff(features[f].name, masked(rows[r][0]), float(sides[0, r, f]), float(sides[1, r, f]), float(size[r, f]))
             for r, f in zip(*(index.tolist() for index in np.unravel_index(largest, size.shape)), strict=True)]
    return int((size > 0).any(axis=1).sum()), found


def _size(found: FeatureDiff) -> float:
    return math.inf if found.difference is None else found.difference


def _value(found: dict[str, Any], feature: Feature) -> Value | None:
    value: Value | None = found.get(feature.name)
    if feature.dtype == "list":
        return value
    return feature.default if value is None or math.isnan(value) else value  # type: ignore[arg-type]


def _distance(a: Value | None, b: Value | None) -> float | None:
    """How far two values lie apart; None for a number and none."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        left, right = _entries(a), _entries(b)
        known = dict.fromkeys((*left, *right))
        differing = sum(left.get(entry) != right.get(entry) for entry in known)
        return float(differing or sum(x != y for x, y in zip(left, right, strict=True)))
    if a is None or b is None:
        return 0.0 if a is b else None
    return abs(a - b)


def _entries(value: Value | None) -> dict[str, tuple[int, float]]:
    if not isinstance(value, tuple):
        return {}
    ids, times, scores = value
    return dict(zip(ids, zip(times.tolist(), scores.tolist(), strict=True), strict=True))


def _said(value: Value | None) -> float | None:
    return float(len(value[0])) if isinstance(value, tuple) else value
