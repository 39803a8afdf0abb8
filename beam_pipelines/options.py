"""Options, parsed once into a frozen Config that every job takes."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from beam_pipelines.errors import UserError
from schemas.workspace import DAY_MICROS, Workspace


@dataclass(frozen=True)
class Config:
    """Where a job reads and writes, and how it runs.

    Attributes:
      workspace: folder that holds everything local, and the clock.
      lake: folder of the lake; ``catalog`` names a pyiceberg catalog instead of the SQLite one in it.
      store: ``sqlite:PATH`` or ``bigtable://PROJECT/INSTANCE``.
      buckets: hash shards of entities, a power of two, at least 8.
      runner: a Beam runner; "direct" is FnApiRunner in this process.
      beam_args: flags passed to Beam unchanged.
      seed: of training and of every random choice.
      quiet: no progress bars.
    """

    workspace: Workspace
    lake: Path
    store: str
    catalog: str | None = None
    buckets: int = 8
    runner: str = "direct"
    beam_args: tuple[str, ...] = field(default=())
    seed: int = 7
    quiet: bool = False

    @classmethod
    def of(cls, workspace: Path | str = "workspace", **overrides: object) -> Config:
        """The config of a workspace with every default; tests and scripts start here."""
        space = Workspace(Path(workspace).absolute())
        values: dict[str, object] = {"workspace": space, "lake": space.lake, "store": f"sqlite:{space.store}", **overrides}
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Config:
        """The config of parsed common flags (``add_common_flags``)."""
        overrides = {
            name: value
            for name in ("store", "catalog", "buckets", "runner", "seed", "quiet")
            if (value := getattr(args, name, None)) is not None
        }
        if getattr(args, "lake", None):
            overrides["lake"] = Path(args.lake).absolute()
        return cls.of(args.workspace, beam_args=tuple(getattr(args, "beam_args", ())), **overrides)


def add_common_flags(parser: argparse.ArgumentParser, runner: str = "direct, in this process") -> None:
    """Adds the flags that every command takes; ``runner``: the default that the help names."""
    shared = parser.add_argument_group("common")
    shared.add_argument("--workspace", default="workspace", metavar="DIR",
                        help="folder that holds everything local (default: ./workspace)")
    shared.add_argument("--lake", metavar="DIR", help="folder of the lake (default: WORKSPACE/lake)")
    shared.add_argument("--catalog", metavar="NAME", help="catalog of your pyiceberg configuration instead of SQLite")
    shared.add_argument("--store", metavar="URI",
                        help="sqlite:PATH or bigtable://PROJECT/INSTANCE (default: sqlite:WORKSPACE/store.db)")
    shared.add_argument("--buckets", type=int, help="hash shards of entities, a power of two, at least 8 (default: 8)")
    shared.add_argument("--runner", help=f"Beam runner (default: {runner})")
    shared.add_argument("--seed", type=int, help="seed of every random choice (default: 7)")
    shared.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    shared.add_argument("--quiet", action="store_true", help="no progress bars")


_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_seconds(text: str) -> float:
    """Seconds of 10, 10s, 5m, 1h or 1d; raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or (found[2] or "s") not in _UNITS:
        raise UserError(f"{text!r} is no length of time; write 10s, 5m, 1h or 1d")
    return float(found[1]) * _UNITS[found[2] or "s"]


def parse_as_of(text: str | None, workspace: Workspace) -> int:
    """The midnight (UTC, microseconds) of a date or time such as 2026-02-01 or 2026-02-01T12:00; None: the clock's.

    Raises:
      UserError: not a date, or later than the workspace's clock.
    """
    now = workspace.now()
    if text is None:
        return now // DAY_MICROS * DAY_MICROS
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"--as-of is a date like 2026-02-01, not {text!r}") from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    as_of = int(moment.timestamp() * 1_000_000) // DAY_MICROS * DAY_MICROS
    if as_of > now:
        today = datetime.fromtimestamp(now // 1_000_000, UTC)
        raise UserError(f"--as-of {text} lies after this workspace's clock, {today:%Y-%m-%d}")
    return as_of


ACTIVE_DAYS = 30.0
"""Who did nothing for so long gets no list ahead of their next request."""


def active_days(workspace: Workspace, asked: float | None = None) -> float:
    """Lists are made ahead for users with an event in so many days; 0: for everybody.

    Default: ACTIVE_DAYS; everybody where the clock stands still, for then it is the data that is old, not its users.
    """
    if asked is not None:
        return asked
    return 0.0 if workspace.is_frozen else ACTIVE_DAYS


@dataclass(frozen=True)
class StreamConfig:
    """What ``beamrec stream`` runs.

    Attributes:
      common: workspace, store, lake, runner and Beam's flags.
      log: URI of the event log.
      name: of the job: its status row, its parts of --audit.
      start: earliest, latest, a time (microseconds) or exact offsets by partition.
      until_end: read what the log holds when the job starts, then end.
      stop: where to end instead, exact offsets by partition; goes with until_end.
      lateness_s: how long after its pane an event still corrects values; whole seconds.
      watermark_delay_s: how far the watermark stays behind the newest event.
      flush_s: how long after a change cells are written, seconds of processing time.
      readers: sources that share the log's partitions.
      user_buckets, item_buckets: hash shards of users and items, powers of two: how parallel the state can get.
      groups: stream feature groups that are computed; None: all.
      audit: folder for rows that are final; None: none.
      idle_s: a partition without events for so long does not hold the watermark; None: it always does.
      store_wait_s: how long a store may be away before a bundle fails (and is tried again by the runner).
      rewrite: what is restored from a checkpoint is written to the store again, all of it.
      metrics_port: port of the submitting process that serves metrics for Prometheus; None: none. metrics_host: its address.
    """

    common: Config
    log: str
    name: str = "stream"
    start: str | int | tuple[tuple[int, int], ...] = "earliest"
    until_end: bool = False
    lateness_s: int = 3600
    watermark_delay_s: float = 10.0
    flush_s: float = 0.5
    readers: int = 2
    user_buckets: int = 4
    item_buckets: int = 2
    groups: tuple[str, ...] | None = None
    audit: Path | None = None
    idle_s: float | None = 10.0
    store_wait_s: float = 300.0
    metrics_port: int | None = None
    stop: tuple[tuple[int, int], ...] | None = None
    metrics_host: str = "127.0.0.1"
    rewrite: bool = False

    @property
    def is_direct(self) -> bool:
        """FnApiRunner in this process: bounded input only, and no timers of processing time."""
        return runner_of(self.common.runner) == "direct"


_ALIASES = {"PrismRunner": "prism", "FlinkRunner": "flink", "DirectRunner": "direct"}


def runner_of(name: str) -> str:
    """prism, flink or direct; takes Beam's names too. Any other name is a runner of Beam itself."""
    return _ALIASES.get(name, name)
