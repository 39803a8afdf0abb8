"""Runs Kafka, Flink and the Bigtable emulator on this machine, for development and tests.

  make services                                  install them into .services/, once (beamrec services install)
  beamrec services up kafka flink bigtable       start them, wait until they answer, print what to export
  eval "$(beamrec services env)"                 export it
  beamrec services status                        pid, ports, health, uptime, memory and log of every process
  beamrec services down                          end them and everything that they started

services:
  kafka     a broker of one node                                     127.0.0.1:9092
  flink     JobManager (web page), TaskManager, Beam's job server    127.0.0.1:8081, 8099
            and a pool of Python workers                             50000
  bigtable  the emulator; in memory                                  127.0.0.1:8086
  prism     Beam's small runner, without Java                        127.0.0.1:8073

A job for this Flink cluster takes the flags that 'up' prints. Pid files, logs, Kafka's data and Flink's checkpoints are in
WORKSPACE/services (--dir), so 'up' after 'down' goes on with them; to forget them, delete that folder while all is down.
'status' exits with 1 when something that was started, or that you name, is not healthy.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from pathlib import Path

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from beam_pipelines.progress import Stage

ACTIONS = ("up", "down", "status", "env", "install")
_PORT_FLAGS = {
    "kafka": "Kafka", "kafka_controller": "Kafka's controller (default: a free one)", "flink": "Flink's web page",
    "flink_rpc": "Flink's JobManager", "jobs": "Beam's job server for Flink", "workers": "the pool of Python workers",
    "bigtable": "the Bigtable emulator", "prism": "Prism",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``services``."""
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("names", nargs="*", metavar="SERVICE",
                        help="kafka, flink, bigtable, prism (default: all that apply; up: the first three; "
                             "install: also cbt)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="pid files, logs and data (default: WORKSPACE/services)")
    parser.add_argument("--slots", type=int, default=2, help="parallel instances of a job on Flink (default: 2)")
    parser.add_argument("--with-parent", action="store_true", help="end them when the process that called this ends")
    ports = parser.add_argument_group("ports, 0 for a free one")
    for name, what in _PORT_FLAGS.items():
        ports.add_argument(f"--port-{name.replace('_', '-')}", type=int, metavar="PORT", help=what)
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Does one action."""
    config = Config.from_args(args)
    directory = (args.dir or config.workspace.root / "services").absolute()
    if args.action == "install":
        return _install(args, config)

    from beam_pipelines.services import control

    if args.action == "up":
        return _up(args, config, directory)
    if args.action == "down":
        ended = control.down(args.names, directory)
        if args.json:
            print_json({"ended": ended})
        else:
            print(f"ended: {', '.join(ended)}" if ended else "nothing was up")
        return 0
    if args.action == "env":
        control.check(args.names)
        for name in args.names or control.NAMES:
            if (known := control.found(name, directory)) is not None:
                _exports(known.environment)
        return 0
    return _status(args, directory)


def _up(args: argparse.Namespace, config: Config, directory: Path) -> int:
    from beam_pipelines.services import control, flink

    if not 1 <= args.slots <= 64:
        raise UserError(f"--slots is a number from 1 to 64, not {args.slots}")
    ports = {}
    for name, default in control.PORTS.items():
        asked = getattr(args, f"port_{name}")
        ports[name] = default if asked is None else asked
        if not 0 <= ports[name] <= 65535:
            raise UserError(f"--port-{name.replace('_', '-')} is a number from 0 to 65535, not {ports[name]}")
    names = args.names or control.DEFAULT
    with Stage("services up", total=len(names), quiet=config.quiet or args.json) as stage:
        servers = control.up(names, directory, ports, args.slots, os.getppid() if args.with_parent else 0,
                             lambda line: stage.advance(0, line))
        stage.advance(len(names), "")
    if args.json:
        print_json({name: {"address": one.address, "environment": one.environment,
                           **({"pipeline_options": one.pipeline_options()} if isinstance(one, flink.Cluster) else {})}
                    for name, one in servers.items()})
        return 0
    for name, one in servers.items():
        print(f"# {name:<9} {one.address}")
        if isinstance(one, flink.Cluster):
            print(f"#   a job's flags: {' '.join(one.pipeline_options())}")
        _exports(one.environment)
    return 0


def _status(args: argparse.Namespace, directory: Path) -> int:
    from beam_pipelines.services import control

    rows = control.status(args.names, directory)
    missing = [name for name in args.names if name not in {row.service for row in rows}]
    if args.json:
        print_json({"directory": directory, "down": missing, "processes": [dataclasses.asdict(row) for row in rows]})
    else:
        for row in rows:
            ports = " ".join(f"{name}:{port}" for name, port in row.ports.items())
            print(f"{row.part:<12} {row.state:<13} pid {row.pid:<8} up {row.uptime_s:>7.0f} s {row.memory_mib:>5} MiB  "
                  f"{ports:<32} {row.log}")
        for name in missing:
            print(f"{name:<12} down")
        if not rows and not missing:
            print(f"nothing is up in {directory}")
    return 1 if missing or any(row.state != "healthy" for row in rows) else 0


def _install(args: argparse.Namespace, config: Config) -> int:
    from beam_pipelines.services.install import PARTS, Outcome, home, install

    total = len(args.names) or len(PARTS)
    with Stage("services install", total=total, quiet=config.quiet or args.json) as stage:
        def news(outcome: Outcome) -> None:
            stage.advance(1, f"{outcome.name} {outcome.state}")

        outcomes = install(args.names, news)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if args.json:
        print_json({"directory": home(), "parts": [dataclasses.asdict(outcome) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            took = f" in {outcome.seconds:.0f} s" if outcome.state == "installed" else ""
            print(f"{outcome.name:<9} {outcome.state}{took}{': ' if outcome.reason else ''}{outcome.reason}")
    return 2 if failed else 0


def _exports(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}")
