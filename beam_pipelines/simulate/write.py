"""A World's events, catalogue, profiles and truth into a workspace, day by day, so that memory is bounded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa

from beam_pipelines.errors import UserError
from beam_pipelines.io.ingest import ingest, upsert_items, upsert_users
from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from beam_pipelines.simulate.behaviour import SECOND, Behaviour, Rows
from beam_pipelines.simulate.columns import EventColumns, items_table, users_table
from beam_pipelines.simulate.world import World, WorldSpec, generator
from schemas.workspace import DAY_MICROS, write_atomically

WORLD_FILE, TRUTH_FILE = "world.json", "truth.npz"
_AHEAD = 2  # days generated while earlier ones are written
_PROFILES = 250_000  # users upserted at a time

Drawn = tuple[Rows, np.ndarray]
"""Events of a day, and which of them are a second sending."""


@dataclass(frozen=True)
class SimulateReport:
    """What a simulation wrote. ``events`` of the ``read`` (sent) events were stored; ``lost`` ones an outage swallowed.

    ``late`` counts events ingested more than a minute after they happened; ``already`` those stored by an earlier run.
    """

    users: int
    items: int
    days: int
    read: int
    events: int
    duplicates: int
    late: int
    lost: int
    rejected: int
    already: bool
    seconds: float
    events_per_s: float


def spec_of(config: Config) -> WorldSpec | None:
    """The spec of the world in a workspace, None when it holds none."""
    try:
        return WorldSpec(**json.loads((config.workspace.root / WORLD_FILE).read_text()))
    except FileNotFoundError:
        return None


def simulate(config: Config, spec: WorldSpec) -> SimulateReport:
    """Writes a world into the workspace and freezes its clock, unless that runs, at the midnight after the last day.

    Running it again adds nothing; running it with more days adds those days of the same world.

    Raises:
      UserError: the workspace holds other data, another world, or more days.
    """
    started = time.monotonic()
    lake = Lake.open(config.lake, config.catalog)
    before = spec_of(config)
    _check(lake, before, spec)
    world = World.from_seed(spec)
    root = config.workspace.root
    write_atomically(root / WORLD_FILE, json.dumps(replace(spec, days=before.days if before else spec.days).json()).encode())
    held_until = config.workspace.data_until
    done = held_until is not None and held_until >= world.end
    if done:
        return SimulateReport(spec.users, spec.items, spec.days, 0, 0, 0, 0, 0, 0, True, time.monotonic() - started, 0.0)
    # What arrived late on the last day of a shorter run arrives now; earlier days are complete.
    first = max(0, before.days - 1) if before and held_until is not None else 0
    tally = _Tally()
    with Stage("simulate", total=spec.days, quiet=config.quiet) as stage:
        counts = ingest(lake, _ahead(_days(world, first, tally, stage), EventColumns(world)))
    upsert_items(lake, items_table(world))
    for at in range(0, spec.users, _PROFILES):
        upsert_users(lake, users_table(world, at, min(at + _PROFILES, spec.users)))
    _write_truth(config, world)
    write_atomically(root / WORLD_FILE, json.dumps(spec.json()).encode())
    config.workspace.freeze_after(world.end - 1)
    seconds = time.monotonic() - started
    return SimulateReport(spec.users, spec.items, spec.days, counts.read, counts.stored, counts.duplicates, tally.late,
                          tally.lost, counts.rejected, False, seconds, counts.stored / seconds)


def day_tables(world: World) -> Iterator[pa.Table]:
    """Every event of the world as tables of one day each, duplicates included, in the order they are written."""
    columns = EventColumns(world)
    return (columns.table(rows, copies) for rows, copies in _days(world, 0, _Tally(), None))


@dataclass
class _Tally:
    late: int = 0
    lost: int = 0


def _days(world: World, first: int, tally: _Tally, stage: Stage | None) -> Iterator[Drawn]:
    behaviour = Behaviour(world)
    pending: dict[int, list[Rows]] = {}
    for day in range(world.spec.days):
        made = behaviour.day(day)
        due = (made.later.at - world.spec.first) // DAY_MICROS
        for later in np.unique(due).tolist():
            if later < world.spec.days:
                pending.setdefault(later, []).append(made.later.take(due == later))
        rows = Rows.concat([made.rows, *pending.pop(day, [])])
        if stage is not None:
            stage.advance(note=f"{len(rows):,} events a day")
        if day < first:
            continue
        rows, copies = _send_again(world, day, rows)
        arrived = rows.at + rows.lag + copies * (30 * SECOND) < world.end
        if not arrived.all():
            rows, copies = rows.take(arrived), copies[arrived]
        tally.late += int((rows.lag > 60 * SECOND).sum())
        tally.lost += made.lost
        if len(rows):
            yield rows, copies


def _send_again(world: World, day: int, rows: Rows) -> tuple[Rows, np.ndarray]:
    """The rows, then those that are sent a second time, and a mask of the latter."""
    n = len(rows)
    again = np.flatnonzero(generator(world.spec, 2000, day).random(n, np.float32) < world.spec.duplicates)
    copies = np.zeros(n + len(again), bool)
    if not len(again):
        return rows, copies
    copies[n:] = True
    return Rows.concat([rows, rows.take(again)]), copies


def _ahead(drawn: Iterator[Drawn], columns: EventColumns) -> Iterator[pa.Table]:
    """Their tables: days are drawn in one thread and put into columns in another while the caller writes earlier ones."""

    def table(day: Future[Drawn | None]) -> pa.Table | None:
        rows = day.result()
        return None if rows is None else columns.table(*rows)

    with ThreadPoolExecutor(1, "draw") as draw, ThreadPoolExecutor(1, "columns") as arrange:
        waiting = [arrange.submit(table, draw.submit(next, drawn, None)) for _ in range(_AHEAD)]
        while (ready := waiting.pop(0).result()) is not None:
            waiting.append(arrange.submit(table, draw.submit(next, drawn, None)))
            yield ready


def _write_truth(config: Config, world: World) -> None:
    """truth.npz: everything of the world as arrays, for tests outside Python or without this code."""
    arrays = {name: value for name, value in vars(world).items() if isinstance(value, np.ndarray)}
    path = config.workspace.root / TRUTH_FILE
    part = path.with_name(f".{TRUTH_FILE}.part.npz")
    np.savez(part, allow_pickle=False, **arrays)
    part.replace(path)


def _check(lake: Lake, before: WorldSpec | None, spec: WorldSpec) -> None:
    if before is None:
        if lake.snapshot_id("events") is not None:
            raise UserError("this workspace holds other data already; name an empty one with --workspace DIR")
        return
    if replace(before, days=spec.days) != spec:
        changed = ", ".join(f"--{k} {v}" for k, v in asdict(before).items() if v != asdict(spec)[k] and k != "days")
        raise UserError(f"this workspace holds another world ({changed}); name an empty one with --workspace DIR")
    if spec.days < before.days:
        raise UserError(f"this workspace holds {before.days} days of that world already; --days must be at least that")
