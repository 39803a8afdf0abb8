"""The whole path in one go: data into a workspace, the daily run, and what came of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow.compute as pc

from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import daily
from beam_pipelines.options import Config
from beam_pipelines.simulate.world import WorldSpec
from beam_pipelines.typed import program, short
from schemas.workspace import DAY_MICROS, write_atomically
from serving.asking import Asker
from serving.catalogue import Catalogue
from serving.profile import HistoryItem, read_user
from serving.responses import RankedItem
from serving.stores import open_store

MARK = "demo.json"
SIMULATED = "simulated"
SHOWN_USERS, SHOWN_ITEMS = 3, 10
_MIN_HISTORY = 5


@dataclass(frozen=True)
class Loaded:
    """The events stage: counts as the importer or simulator gave them when it ran (``again``: that was an earlier demo)."""

    dataset: str
    read: int
    stored: int
    duplicates: int
    rejected: int
    rejected_by_reason: dict[str, int]
    seconds: float
    peak_rss_mib: float
    again: bool = False


@dataclass(frozen=True)
class UserExample:
    """A user to look at: what they did last, and the top of their list."""

    user_id: str
    history: list[HistoryItem]
    items: list[RankedItem]


@dataclass(frozen=True)
class DemoReport:
    """Everything ``beamrec demo`` prints. ``flags`` are those a command needs to speak about this workspace."""

    workspace: str
    flags: str
    loaded: Loaded
    run: daily.DailyReport
    users: list[UserExample]
    seconds: float
    commands: list[str] = field(default_factory=list)

    def outputs(self, step: str) -> Mapping[str, Any]:
        """What a step of the run reported."""
        return next(s.outputs for s in self.run.steps if s.step == step)


def run(config: Config, data: str | None, spec: WorldSpec, on_step: Callable[[daily.StepResult], None] | None = None,
        on_workspace: Callable[[str], None] | None = None) -> DemoReport:
    """Imports (or simulates), runs, looks.

    Args:
      config: its workspace is used when it is empty or holds the same data; else a folder beside it, named after the data.
      data: path of MovieLens or Globo data; None simulates ``spec``.
      on_step: called after each step of the daily run.
      on_workspace: called with a line about the workspace when it is not the one asked for.

    Raises:
      UserError: no such data.
      beam_pipelines.jobs.daily's errors.
    """
    started = time.monotonic()
    source = str(Path(data).expanduser().resolve()) if data else json.dumps([SIMULATED, spec.json()])
    config, note = _workspace_for(config, data, source)
    if note and on_workspace is not None:
        on_workspace(note)
    loaded = _load(config, data, spec, source)
    as_of = config.workspace.now() // DAY_MICROS * DAY_MICROS
    report = daily.run(config, as_of, on_step=on_step)
    users = _examples(config, as_of)
    root = config.workspace.root
    flags = "" if root == Path("workspace").absolute() else f" --workspace {short(root)}"
    return DemoReport(str(root), flags.strip(), loaded, report, users, time.monotonic() - started,
                      _commands(users, flags, root))


def _commands(users: Sequence[UserExample], flags: str, root: Path) -> list[str]:
    """What to type next; each speaks about this workspace."""
    beamrec = program()
    user = users[0].user_id if users else "ID"
    item = users[0].items[0].item_id if users and users[0].items else "ID"
    query = f"user_id={user}&context=homepage&page_size=20"
    log = f"--log dir:{short(root)}/log"
    return [f"{beamrec} show user {user}{flags}", f"{beamrec} show item {item}{flags}",
            f"{beamrec} serve {log}{flags}", f"{beamrec} stream {log}{flags}   # in a second terminal",
            f"http://127.0.0.1:8000/#/user/{quote(user, safe='')}   # in a browser: click something, and the list changes",
            f"curl 'http://127.0.0.1:8000/v1/recommendations?{query}'", f"{beamrec} run{flags}", f"{beamrec} --help"]


def _workspace_for(config: Config, data: str | None, source: str) -> tuple[Config, str]:
    """The config whose workspace is empty or holds this data, and a line when that is another workspace."""
    asked = config.workspace.root
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(source).name) if data else SIMULATED
    for root in (asked, asked.with_name(f"{asked.name}-{name}")):
        held = _mark(root)
        if held.get("source", source) == source and (held or not (root / "lake").exists()):
            if root == asked:
                return config, ""
            there = Config.of(root)
            moved = replace(config, workspace=there.workspace, lake=there.lake, store=there.store)
            return moved, f"{short(asked)} holds other data, so this goes to {short(root)}"
    raise UserError(f"{short(asked)} and {short(root)} hold other data; name an empty folder with --workspace DIR "
                    "(make demo WORKSPACE=DIR)")


def _mark(root: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((root / MARK).read_text()))
    except (OSError, json.JSONDecodeError):
        return {}


def _load(config: Config, data: str | None, spec: WorldSpec, source: str) -> Loaded:
    root = config.workspace.root
    held = _mark(root)
    if "loaded" in held:
        return Loaded(**{**held["loaded"], "again": True})
    if data:
        from beam_pipelines.importers import detect
        from beam_pipelines.importers import run as importing

        dataset = detect.detect(data)  # first: a wrong path must leave no workspace behind
        write_atomically(root / MARK, json.dumps({"source": source}).encode())
        report = importing.run(config, dataset)
        c = report.counts
        loaded = Loaded(report.dataset, c.read, c.stored, c.duplicates, c.rejected, c.rejected_by_reason, c.seconds,
                        daily.peak_rss_mib())
    else:
        from beam_pipelines.simulate.write import simulate

        write_atomically(root / MARK, json.dumps({"source": source}).encode())
        made = simulate(config, spec)
        loaded = Loaded(SIMULATED, made.read, made.events, made.duplicates, made.rejected, {}, made.seconds,
                        daily.peak_rss_mib())
    write_atomically(root / MARK, json.dumps({"source": source, "loaded": asdict(loaded)}).encode())
    return loaded


def _examples(config: Config, as_of: int) -> list[UserExample]:
    """Three users with a short, a middling and a long history, and their lists."""
    lake = Lake.open(config.lake, config.catalog)
    snapshot = lake.read("user_snapshots", ("user_id", "liked_items", "last_items"), as_of, as_of + DAY_MICROS)
    lengths = pc.list_value_length(pc.struct_field(snapshot["liked_items"], "ids")).fill_null(0).to_numpy()
    ids = snapshot["user_id"].to_numpy(zero_copy_only=False)
    ranked = np.lexsort((ids, lengths))
    ranked = ranked[lengths[ranked] >= min(_MIN_HISTORY, int(lengths.max(initial=0)))]
    chosen = [str(ids[ranked[int(len(ranked) * share)]]) for share in (0.25, 0.5, 0.75)[: len(ranked)]]
    store = open_store(config.store, create=False)
    asker = Asker(config.store, config.workspace.bundles, config.workspace.now)
    try:
        now = config.workspace.now()
        return [UserExample(u, read_user(store, Catalogue(), u, now).history[:SHOWN_ITEMS],
                            list(asker.recommend(u, "homepage", SHOWN_ITEMS, "demo").items))
                for u in dict.fromkeys(chosen)]
    finally:
        asker.close()
        store.close()
