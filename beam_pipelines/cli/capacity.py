"""Says what a load needs: cores, brokers, nodes, bytes, what to set, and what it costs in a month.

  beamrec capacity --users 50000000 --items 10000000 --events-per-second 218000
  beamrec capacity --users 100000 --items 20000 --events-per-second 500 --json
  beamrec capacity ... --rate stream_events=80000 --price bigtable_node_hour=0.5 --size event=300

Each line is a formula over the load, over rates (what one core did where the README's figures were measured), over sizes
(bytes of what is written) and over prices (rounded list prices, US dollars): --formulas prints them, --defaults every input.
All can be replaced by what you measured: 'beamrec bench NAME --json' on your machines gives the rates. The peak counts; nodes
and cores are --utilisation busy then, so that one may fail. What it does not know: skew, network between zones, people, and
what the API spends on gRPC over Bigtable, for its rate is that over SQLite (--rate api_requests=N).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import TYPE_CHECKING

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError

if TYPE_CHECKING:
    from beam_pipelines.capacity import Load, Plan

REQUESTS_PER_USER = 20
"""Requests for a list by an active user on a day, where --requests-per-second is not given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``capacity``."""
    need = parser.add_argument_group("the load")
    need.add_argument("--users", type=float, required=True, metavar="N", help="users that are known")
    need.add_argument("--items", type=float, required=True, metavar="N", help="items of the catalogue")
    need.add_argument("--events-per-second", type=float, required=True, metavar="N", help="at the peak")
    need.add_argument("--daily-users", type=float, metavar="N", help="users active on a day (default: a fifth of --users)")
    need.add_argument("--requests-per-second", type=float, metavar="N",
                      help=f"lists asked for at the peak (default: {REQUESTS_PER_USER} a day by each active user)")
    for name, meaning in (("events-per-request", "events a client posts at once"), ("dimensions", "floats of an item's vector"),
                          ("list-length", "items of a list"), ("surfaces", "with lists of their own"),
                          ("versions", "of lists kept"), ("peak-factor", "peak over a day's mean"),
                          ("utilisation", "of a core or node at the peak"), ("replication", "copies of the log"),
                          ("log-days", "events stay in the log"), ("lake-days", "events stay in the lake"),
                          ("nightly-hours", "the batch may take"), ("refresh-minutes", "between lists of users active now")):
        default = _defaults()[name.replace("-", "_")]
        need.add_argument(f"--{name}", type=type(default), default=default, metavar="N",
                          help=f"{meaning} (default: {default:g})")
    for name in ("rate", "size", "price"):
        parser.add_argument(f"--{name}", action="append", default=[], metavar="NAME=NUMBER",
                            help=f"another {name} than the default")
    parser.add_argument("--formulas", action="store_true", help="print the formula of each line")
    parser.add_argument("--defaults", action="store_true", help="print rates, sizes and prices that were used")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    from beam_pipelines import capacity

    load = _load(args)
    try:
        rates = capacity.overridden(capacity.Rates(), args.rate)
        sizes = capacity.overridden(capacity.Sizes(), args.size)
        prices = capacity.overridden(capacity.Prices(), args.price)
    except ValueError as error:
        raise UserError(str(error)) from error
    found = capacity.plan(load, rates, sizes, prices)
    inputs = {name: dataclasses.asdict(each) for name, each in (("rates", rates), ("sizes", sizes), ("prices", prices))}
    if args.json:
        print_json({**dataclasses.asdict(found), **inputs})
        return 0
    _print(found, args.formulas)
    if args.defaults:
        for name, values in inputs.items():
            print(f"\n{name}: " + ", ".join(f"{key}={value:g}" for key, value in values.items()))
    return 0


def _load(args: argparse.Namespace) -> Load:
    from beam_pipelines.capacity import DAY_S, Load

    names = [*_defaults(), "users", "items", "events_per_second"]
    daily = args.daily_users if args.daily_users is not None else max(1.0, args.users / 5)
    requests = args.requests_per_second
    if requests is None:
        requests = daily * REQUESTS_PER_USER / DAY_S * args.peak_factor
    values = {**{name: getattr(args, name) for name in names}, "daily_users": daily, "requests_per_second": requests}
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is a number above 0, not {value:g}")
    if args.utilisation > 1:
        raise UserError(f"--utilisation is a share, at most 1, not {args.utilisation:g}")
    if daily > args.users:
        raise UserError(f"--daily-users {daily:g} is more than --users {args.users:g}")
    whole = {name: int(values[name]) for name in ("users", "items", "daily_users")}
    return Load(**{**values, **whole})


def _defaults() -> dict[str, float]:
    from beam_pipelines.capacity import Load

    return {f.name: f.default for f in dataclasses.fields(Load) if isinstance(f.default, int | float)}


def _print(found: Plan, formulas: bool) -> None:
    from beam_pipelines.capacity import MACHINE_CORES

    load = found.load
    print(f"{load.users:,} users ({load.daily_users:,} a day), {load.items:,} items; at the peak {load.events_per_second:,.0f} "
          f"events/s and {load.requests_per_second:,.0f} requests/s\n")
    width = max(len(n.part) for n in found.needs)
    for need in found.needs:
        amount = f"{need.amount:,.0f}" if need.amount >= 10 or need.amount == int(need.amount) else f"{need.amount:.2g}"
        print(f"{need.part:<{width}}  {amount:>10} {need.unit:<28} {need.usd_per_month:>12,.0f} $/month")
        if formulas:
            print(f"{'':<{width}}    = {need.formula}")
    print(f"{'in all':<{width}}  {found.cores:>10,} {'cores, without log and store':<28} {found.usd_per_month:>12,.0f} $/month")
    if found.one_machine:
        print(f"{'or one machine':<{width}}  {MACHINE_CORES:>10,} {'cores, 64 GB, with its disk':<28} "
              f"{found.machine_usd_per_month:>12,.0f} $/month")
    print()
    for name, value in found.settings.items():
        print(f"{name:<32} {value}")
    print(f"\none machine: {'yes' if found.one_machine else 'no'} ({found.why})")
