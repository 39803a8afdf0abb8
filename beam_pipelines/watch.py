"""Following the features of one user or item in the store: what changed since the last look, drawn or as lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serving.features import FeatureValue, ListEntry

SHOWN_ENTRIES = 5
_FRESH_LOOKS = 3  # for so many looks a changed value stays marked

Look = Mapping[str, FeatureValue]


class Change(msgspec.Struct, frozen=True):
    """A feature whose value differs from that of the last look. ``at`` is when it was seen, RFC 3339 UTC."""

    at: str
    feature: str
    before: float | list[ListEntry] | None
    value: float | list[ListEntry] | None
    source: str
    age_s: float | None


@dataclass(frozen=True)
class Pace:
    """How often to look, and for how long (None: until interrupted), seconds."""

    interval_s: float = 1.0
    seconds: float | None = None


def looks(read: Callable[[], Look], pace: Pace) -> Iterator[tuple[Look, list[Change]]]:
    """What is there and what changed since the look before (at first: nothing), one look per interval.

    Ends after ``pace.seconds`` or with Ctrl-C.
    """
    started = time.monotonic()
    before: Look | None = None
    turn = 0
    try:
        while True:
            now = read()
            yield now, [] if before is None else changes(before, now)
            before, turn = now, turn + 1
            due = started + turn * pace.interval_s
            if pace.seconds is not None and due > started + pace.seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
    except KeyboardInterrupt:
        return


def changes(before: Look, now: Look) -> list[Change]:
    """Features whose value or source differs; that a value has aged is no change."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [Change(at, name, _value(before.get(name)), f.value, f.source, f.age_s) for name, f in now.items()
            if name not in before or (before[name].value, before[name].source) != (f.value, f.source)]


def _value(feature: FeatureValue | None) -> float | list[ListEntry] | None:
    return None if feature is None else feature.value


def follow_lines(read: Callable[[], Look], pace: Pace, write: Callable[[str], None], as_json: bool) -> None:
    """One line per change: JSON, or for people."""
    for _, found in looks(read, pace):
        for change in found:
            write(msgspec.json.encode(change).decode() if as_json else _line(change))


def follow_drawn(read: Callable[[], Look], pace: Pace, console: Console, title: str,
                 hide: Callable[[FeatureValue], bool]) -> None:
    """A table that is drawn again at each look; what changed lately is bold."""
    marked: dict[str, int] = {}
    count = 0
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for features, found in looks(read, pace):
            count += len(found)
            marked = {name: left - 1 for name, left in marked.items() if left > 1} | {c.feature: _FRESH_LOOKS for c in found}
            live.update(_table(title, features, marked, hide, count), refresh=True)


def _table(title: str, features: Look, marked: Mapping[str, int], hide: Callable[[FeatureValue], bool], count: int) -> Group:
    head = Text(f"{title}   {datetime.now(UTC):%H:%M:%S} UTC   {count} changes   Ctrl-C ends", style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("feature", "value", "source", "age"):
        table.add_column(column, justify="right" if column == "age" else "left", overflow="fold")
    for name, feature in features.items():
        if hide(feature) and name not in marked:
            continue
        style = "bold green" if name in marked else ""
        age = "-" if feature.age_s is None else f"{feature.age_s:.0f} s"
        table.add_row(*(Text(cell, style) for cell in (name, said(feature.value), feature.source, age)))
    return Group(head, table)


def _line(change: Change) -> str:
    age = "" if change.age_s is None else f", {change.age_s:.1f} s old"
    if isinstance(change.value, list) or isinstance(change.before, list):
        what = _list_difference(change)
    else:
        what = f"{said(change.before)} -> {said(change.value)}"
    return f"{change.at[11:23]}  {change.feature}  {what}  ({change.source}{age})"


def _list_difference(change: Change) -> str:
    ids = [[e.id for e in v] if isinstance(v, list) else [] for v in (change.before, change.value)]
    new, gone = ([i for i in ids[1] if i not in set(ids[0])], [i for i in ids[0] if i not in set(ids[1])])
    parts = [f"+{i}" for i in new[:SHOWN_ENTRIES]] + [f"-{i}" for i in gone[:SHOWN_ENTRIES]]
    return " ".join(parts) if parts else said(change.value)


def said(value: float | list[ListEntry] | None) -> str:
    """A value for people: lists by their first entries."""
    if value is None:
        return "-"
    if isinstance(value, list):
        entries = [e.id if e.at else f"{e.id} {e.score:.3g}" for e in value[:SHOWN_ENTRIES]]
        return ", ".join(entries) + (f" and {len(value) - SHOWN_ENTRIES} more" if len(value) > SHOWN_ENTRIES else "")
    return f"{value:g}"


