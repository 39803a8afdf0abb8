"""Reads one user or item from the store, as a reader of the store sees it.

  beamrec show user 196          history, features with source and age, the ranked list with a reason for each item
  beamrec show item 50           catalogue entry, features, the items seen together with it
  beamrec show user 196 --json   {"user_id", "history", "features", "recommendations", ...}; recommendations is the answer
                                 of GET /v1/recommendations, null before the first publish
  beamrec show user 196 --watch  looks again every second and marks what changed, until Ctrl-C; where the output is no
                                 terminal, or with --json, one line per change

A user that the store does not know gets the popular items, as over HTTP; an unknown item is an error (exit code 2).
A feature comes as value, source and age (how long ago the newest event in it was). The source is stream while the
streaming job is alive, batch while that value is younger than the feature's ttl, else default. A user whom only the
stream knows is marked low_confidence.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import msgspec
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from beam_pipelines.watch import Look, Pace, follow_drawn, follow_lines, said
from schemas.cells import CellError
from schemas.keys import STREAM_JOB
from serving.asking import Asker
from serving.catalogue import Catalogue
from serving.features import FeatureReader, FeatureValue, ListEntry, StreamStatus
from serving.ladder import NothingPublishedError
from serving.profile import ItemProfile, UserProfile, read_item, read_user
from serving.responses import Recommendations
from serving.stores import open_store
from serving.stores.base import Store, StoreError

WIDTH = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``show``."""
    parser.add_argument("kind", choices=("user", "item"), help="what ID names")
    parser.add_argument("id", metavar="ID", help="a user_id or item_id")
    parser.add_argument("--items", type=int, default=20, metavar="N", help="how many items to list (default: 20)")
    parser.add_argument("--surface", default="homepage", help="whose list to show (default: homepage)")
    parser.add_argument("--all", action="store_true", help="also features that are zero or have no value")
    parser.add_argument("--stream", default=STREAM_JOB, metavar="NAME",
                        help=f"name of the streaming job whose values to take (default: {STREAM_JOB})")
    watch = parser.add_argument_group("watching")
    watch.add_argument("--watch", action="store_true", help="look again and again, and show what changed")
    watch.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (default: 1)")
    watch.add_argument("--for", type=float, dest="seconds", metavar="SECONDS", help="watch for so long (default: until Ctrl-C)")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the profile; raises UserError when there is no store or no such item."""
    config = Config.from_args(args)
    if not 1 <= args.items <= 1000:
        raise UserError(f"--items is a number from 1 to 1000, not {args.items}")
    if not 0.05 <= args.interval <= 3600 or (args.seconds is not None and args.seconds < 0):
        raise UserError("--interval is a number of seconds from 0.05 to 3600, --for one of at least 0")
    try:
        store = open_store(config.store, create=False)
    except StoreError as error:
        raise UserError(f"{error}; 'beamrec run' fills a store, --workspace or --store names another") from error
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    try:
        if args.watch:
            _watch(config, store, args, console)
            return 0
        if args.kind == "user":
            document, view = _user(config, store, args)
        else:
            document, view = _item(config, store, args)
    except (StoreError, CellError) as error:
        raise UserError(f"cannot read {config.store}: {error}") from error
    finally:
        store.close()
    if args.json:
        print(msgspec.json.encode(document).decode())
    else:
        console.print(view)
    return 0


def _watch(config: Config, store: Store, args: argparse.Namespace, console: Console) -> None:
    """Follows the features (of a user also the list) until it is time to end."""
    features, now = FeatureReader(args.stream), config.workspace.now
    with _asker(config, args) as lists:

        def look() -> Look:
            found = features.one(store, args.kind, args.id, now()).values
            answer = _recommendations(lists, args) if args.kind == "user" else None
            if answer is None:
                return found
            entries = [ListEntry(i.item_id, i.score) for i in answer.items]
            return {**found, "recommendations": FeatureValue(entries, answer.served_from, None)}

        pace = Pace(args.interval, args.seconds)
        if args.json or not console.is_terminal:
            follow_lines(look, pace, partial(print, flush=True), args.json)
        else:
            follow_drawn(look, pace, console, f"{args.kind.capitalize()} {args.id}", lambda f: not args.all and _is_empty(f))


def _asker(config: Config, args: argparse.Namespace) -> Asker:
    return Asker(config.store, config.workspace.bundles, config.workspace.now, args.stream)


def _recommendations(asker: Asker, args: argparse.Namespace) -> Recommendations | None:
    try:
        return asker.recommend(args.id, args.surface, args.items, "show") if args.id else None
    except NothingPublishedError:
        return None


def _user(config: Config, store: Store, args: argparse.Namespace) -> tuple[dict[str, object], RenderableType]:
    now, features = config.workspace.now(), FeatureReader(args.stream)
    profile = read_user(store, Catalogue(), args.id, now, features)
    with _asker(config, args) as asker:
        answer = _recommendations(asker, args)
    status = features.status(store)
    document: dict[str, object] = {
        "user_id": args.id, "low_confidence": profile.low_confidence, "history": profile.history,
        "features": profile.features, "recommendations": answer, "stream": status}
    title = Text(f"User {args.id}", style="bold")
    if not profile.known:
        title.append("  not known to the store: no events before the last features run", style="yellow")
    elif profile.low_confidence:
        title.append("  low confidence: only the stream knows them, the next features run will", style="yellow")
    return document, Group(title, *_stream(status, now), _history(profile, args.items),
                           _features(profile.features, args.all), _list(answer))


def _item(config: Config, store: Store, args: argparse.Namespace) -> tuple[dict[str, object], RenderableType]:
    now, features = config.workspace.now(), FeatureReader(args.stream)
    profile = read_item(store, Catalogue(), args.id, now, features)
    if not profile.known:
        raise UserError(f"no item {args.id!r} in {config.store}; item ids are those of the imported catalogue or events")
    entry, status = profile.catalogue, features.status(store)
    document: dict[str, object] = {
        "item_id": args.id, "title": entry.title if entry else None, "catalogue": entry, "features": profile.features,
        "cooccurring": profile.cooccurring, "stream": status}
    return document, Group(*_item_head(profile), *_stream(status, now), _features(profile.features, args.all),
                           _neighbours(profile, args.items))


def _stream(status: StreamStatus | None, now: int) -> list[RenderableType]:
    """How fresh the streaming job is, where one ever ran."""
    if status is None:
        return []
    behind = "" if status.watermark is None else f", watermark {_age(max(0.0, (now - status.watermark) / 1e6))} behind"
    return [Text(f"stream heard of {_age(status.age_s(now))} ago{behind}", style="dim")]


def _item_head(profile: ItemProfile) -> list[RenderableType]:
    entry = profile.catalogue
    lines: list[RenderableType] = [Text(f"Item {profile.item_id}", style="bold")]
    if entry is None:
        return [*lines, Text("not in the catalogue", style="yellow")]
    lines[0] = Text(f"Item {profile.item_id}  {entry.title or ''}", style="bold")
    facts = [*([", ".join(entry.categories)] if entry.categories else []),
             *([f"price {entry.price:g}"] if entry.price is not None else []),
             *(f"{name} {value}" for name, value in sorted((entry.attributes or {}).items()) if value is not None)]
    return [*lines, Text(" · ".join(facts), style="dim")] if facts else lines


def _heading(title: str, table: Table) -> RenderableType:
    return Group(Text(f"\n{title}", style="bold"), table)  # a title of the table itself is folded to the table's width


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _history(profile: UserProfile, shown: int) -> RenderableType:
    if not profile.history:
        return Text("\nHistory: none")
    table = _table("when (UTC)", "item", "title", right=("item",))
    for item in profile.history[:shown]:
        table.add_row(_minute(item.at), escape(item.item_id), escape(item.title or ""))
    return _heading(f"History (newest first, {min(shown, len(profile.history))} of the last {len(profile.history)})", table)


def _features(features: dict[str, FeatureValue], everything: bool) -> RenderableType:
    shown = {name: f for name, f in features.items() if everything or not _is_empty(f)}
    hidden = len(features) - len(shown)
    title = f"Features ({len(shown)}" + (f"; {hidden} more are zero or have no value, --all shows them)" if hidden else ")")
    table = _table("feature", "value", "source", "age", right=("age",))
    for name, feature in shown.items():
        table.add_row(name, escape(_value(feature)), feature.source, _age(feature.age_s))
    return _heading(title, table) if shown else Text(f"\n{title}", style="bold")


def _is_empty(feature: FeatureValue) -> bool:
    return feature.source == "default" or feature.value in (0.0, [])


def _value(feature: FeatureValue) -> str:
    return feature.label or said(feature.value)


def _list(answer: Recommendations | None) -> RenderableType:
    if answer is None:
        return Text("\nRecommendations: nothing is published yet ('beamrec run' computes and publishes lists)")
    told = {"list": "own list", "expired_list": "own list, expired", "popular": "popular items: no list of their own"}
    table = _table("#", "item", "title", "score", "from", "why", right=("#", "item", "score"))
    for item in answer.items:
        table.add_row(str(item.rank), escape(item.item_id), escape(item.metadata.title or ""), f"{item.score:.3f}",
                      item.rec_source, escape(item.explanation.reason))
    return _heading(f"Recommendations ({told.get(answer.served_from, answer.served_from)}; model {answer.model_version}, made "
                    f"{_minute(answer.generated_at)} UTC)", table)


def _neighbours(profile: ItemProfile, shown: int) -> RenderableType:
    if not profile.cooccurring:
        return Text("\nSeen together with: nothing yet")
    table = _table("#", "item", "title", "score", right=("#", "item", "score"))
    for rank, item in enumerate(profile.cooccurring[:shown], 1):
        table.add_row(str(rank), escape(item.item_id), escape(item.title or ""), f"{item.score:.3f}")
    return _heading(f"Seen together with ({min(shown, len(profile.cooccurring))} of {len(profile.cooccurring)})", table)


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
