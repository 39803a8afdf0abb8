"""Look after the store: make it, see what is in it, delete what nobody can read any more.

  beamrec store create                     tables, families and garbage collection policy; mends what differs, repeatable
  beamrec store inspect                    tables, cells by feature group and by version, sizes, ages, what each surface serves
  beamrec store gc                         what could go: expired stream cells, old suppressions, versions nobody serves
  beamrec store gc --apply                 deletes it
  beamrec store replay FILE                writes refused rows again (see below)

'inspect' counts a small store whole and a large one in a sample (marked ~): 8 of 256 parts of the key range, over which ids are
hashed. Bigtable sends no values for it, so it tells no sizes.

gc is housekeeping: readers check expiry themselves, so nothing depends on it. Stream cells go whose newest event is 2 days old
(the longest window is 24 hours), suppressions after 7 days, and versions of lists that no pointer names, but the newest --keep
of each surface. 'beamrec run' does the same at its end. 'beamrec publish' drops old versions too; what it leaves behind is that
of runs that never published.

Rows that Bigtable refuses for good (too large, a broken key) stop a job, unless the store's URI names a file for them:
--store 'bigtable://P/I?refused=FILE'. Then they are kept there, a line of JSON with the reason each, and the job goes on.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.jobs import store_gc
from beam_pipelines.options import Config, add_common_flags
from serving.stores import Store, StoreError, open_store
from serving.stores.admin import Contents, Held, inspect
from serving.stores.base import Cell, FeatureWrite, ListWrite
from serving.stores.dead import DeadCell, DeadRows, read_dead
from serving.stores.sqlite import SqliteStore

ACTIONS = ("create", "inspect", "gc", "replay")
_CHUNK = 1_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec store``."""
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("file", nargs="?", type=Path, help="replay: the file of refused rows")
    parser.add_argument("--apply", action="store_true", help="gc: delete; else it only says what it would")
    parser.add_argument("--keep", type=int, default=store_gc.KEPT,
                        help=f"gc: versions of each surface that stay though no pointer names them (default: {store_gc.KEPT})")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Does the action; 1 where rows of a replay are refused again."""
    config = Config.from_args(args)
    if (args.file is not None) != (args.action == "replay"):
        raise UserError("'beamrec store replay FILE' takes a file" if args.action == "replay" else
                        f"'beamrec store {args.action}' takes no file")
    if args.keep < 0:
        raise UserError("--keep is 0 or more")
    try:
        if args.action == "gc":
            return _gc(args, config)
        with closing(open_store(config.store, create=args.action == "create", patient=args.action != "inspect")) as store:
            return {"create": _create, "inspect": _inspect, "replay": _replay}[args.action](args, config, store)
    except StoreError as error:
        raise UserError(str(error)) from error


def _create(args: argparse.Namespace, config: Config, store: Store) -> int:
    mended = [] if isinstance(store, SqliteStore) else store.mend()  # type: ignore[attr-defined]
    if args.json:
        print_json({"store": config.store, "mended": mended})
    else:
        print(f"{config.store} is there" + (f"; mended {', '.join(mended)}" if mended else ""))
    return 0


def _inspect(args: argparse.Namespace, config: Config, store: Store) -> int:
    found = inspect(store, config.workspace.now())
    if args.json:
        print_json(asdict(found))
    else:
        for line in _drawn(found):
            print(line)
    return 0


def _gc(args: argparse.Namespace, config: Config) -> int:
    report = store_gc.run(replace(config, quiet=config.quiet or args.json), args.apply, args.keep)
    if args.json:
        print_json(asdict(report))
        return 0
    word = "deleted" if args.apply else "would delete"
    for group, count in report.stream_cells.items():
        print(f"{word} {count:>12,} cells of {group}")
    for version, dropped in report.versions.items():
        print(f"{word} version {version}" + (f": {dropped:,} lists" if dropped is not None else ""))
    if not report.stream_cells and not report.versions:
        print("nothing to delete")
    elif not args.apply:
        print("this was a dry run: --apply deletes")
    return 0


def _replay(args: argparse.Namespace, config: Config, store: Store) -> int:
    """Writes each row again; those refused again are all that is left of the file."""
    rest = args.file.with_name(args.file.name + ".again")
    if rest.exists():
        rest.unlink()
    counts: Counter[str] = Counter()
    rows = read_dead(args.file)
    list(islice(read_dead(args.file), None))  # a file that is none is refused before anything is written
    while part := list(islice(rows, _CHUNK)):
        for table, cell, reason in part:
            try:
                _put(store, table, cell)
                counts["written"] += 1
            except StoreError as error:
                DeadRows(rest).add(table, [(cell, str(error) or reason)])
                counts["refused"] += 1
    if rest.exists():
        os.replace(rest, args.file)
    else:
        args.file.unlink()
    if args.json:
        print_json({"written": counts["written"], "refused": counts["refused"]})
    else:
        print(f"{counts['written']:,} rows written, {counts['refused']:,} refused again" + (
            f" and kept in {args.file}" if counts["refused"] else ""))
    return 1 if counts["refused"] else 0


def _put(store: Store, table: str, cell: DeadCell) -> None:
    row, family, qualifier, timestamp, value = cell
    if table == "features":
        store.write_features([FeatureWrite(row, family, qualifier.decode(), Cell(value, timestamp))])  # type: ignore[arg-type]
    elif table == "recommendations":
        store.write_lists([ListWrite(row, qualifier.decode(), Cell(value, timestamp))])
    else:
        raise StoreError(f"rows of table {table} are not replayed")


def _drawn(found: Contents) -> Iterator[str]:
    yield f"{found.kind} store {found.where}"
    for table, what in found.tables.items():
        yield f"  {table:<16} " + ", ".join(f"{k}: {v:,}" if isinstance(v, int) else f"{k} ({v})" for k, v in what.items())
    for family, groups in found.features.items():
        yield f"features, {family}" + ("" if groups else ": none")
        for name, held in groups.items():
            yield _line(name, held)
    yield "lists" + ("" if found.lists else ": none")
    roles: dict[str, list[str]] = {}
    for surface, active in found.active.items():
        for role in ("champion", "challenger", "previous"):
            if active[role]:
                roles.setdefault(active[role], []).append(f"{role} of {surface}")
    for version, held in found.lists.items():
        yield _line(version, held) + (f"  {', '.join(roles[version])}" if version in roles else "  no surface names it")
    for version in roles.keys() - found.lists.keys():
        yield f"  {version}: {', '.join(roles[version])}, and it has no lists"


def _line(name: str, held: Held) -> str:
    about = "~" if held.sampled else ""
    size = f"  {about}{held.bytes / max(1, held.cells):,.0f} bytes each" if held.bytes else ""
    expired = f"  {about}{held.expired:,} expired" if held.expired else ""
    return f"  {name:<28} {about}{held.cells:>10,} cells{size}  {_time(held.oldest)} to {_time(held.newest)}{expired}"


def _time(micros: int) -> Any:
    return f"{datetime.fromtimestamp(micros / 1e6, UTC):%Y-%m-%d %H:%M}"
