"""``beamrec``: parses the command line, imports the one module it needs and runs it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from beam_pipelines import interrupt
from beam_pipelines.errors import KeptPrevious, UserError
from serving.stores import StoreUriError

INTRO = """beamrec turns user events into ranked recommendations.

First steps (everything local lives in ./workspace; --workspace DIR names another place):
  beamrec simulate                       make a seeded world of users, items and events
  beamrec import movielens PATH          or read real data: MovieLens 100K or latest
  beamrec run                            features, model, index, lists, publish: only what is not done yet
  beamrec show user ID                   history, features with their ages, the list with reasons
  beamrec serve                          GET /v1/recommendations?user_id=ID
"""


@dataclass(frozen=True)
class Command:
    """A subcommand: ``module`` has add_arguments(parser) and run(args) -> exit code."""

    name: str
    module: str
    help: str
    chapter: str


COMMANDS: tuple[Command, ...] = (
    Command("simulate", "simulate", "make a seeded world with known truth and write its events to the lake", "events in"),
    Command("import", "import_data", "import movielens or globo data into the lake", "events in"),
    Command("lake", "lake", "write an event log into the lake, a commit a minute", "events in"),
    Command("collect", "collect", "take events over HTTP into the event log: POST /v1/events", "events in"),
    Command("stream", "stream", "keep stream features fresh to the second from an event log", "jobs"),
    Command("replay", "replay", "run the streaming job again over a part of its log, beside production", "jobs"),
    Command("run", "daily", "the daily run: every step below, each skipped when already done, resumed after a crash", "jobs"),
    Command("features", "features", "compute batch features as of a time; 'features list' prints the registry", "jobs"),
    Command("train", "train", "build examples, run tf.Transform, train and export the two-tower model", "jobs"),
    Command("index", "index", "build the item index of a model", "jobs"),
    Command("recommend", "recommend", "write every user's list under a shadow version", "jobs"),
    Command("publish", "publish", "check a shadow version and make it active", "jobs"),
    Command("rollback", "rollback", "make the previous version active again", "jobs"),
    Command("show", "show", "read one user or item from the store", "read"),
    Command("serve", "serve", "the API and its page: lists, similar items, features, events, versions", "read"),
    Command("keys", "keys", "keys of the API and what each may do: add, list, revoke", "read"),
    Command("log", "log", "an event log in a folder: trim what is old and in the lake", "servers"),
    Command("store", "store", "make the store, see what is in it, delete what nobody can read any more", "servers"),
    Command("services", "services", "run Kafka, Flink and the Bigtable emulator here: up, down, status, install", "servers"),
    Command("evaluate", "evaluate", "train and judge on a published time split of MovieLens", "measure"),
    Command("diff", "diff", "compare the stream values of a replay with the live ones, or of any two stores", "measure"),
    Command("parity", "parity", "prove that stream, batch and plain SQL give the same values", "measure"),
    Command("capacity", "capacity", "what a load needs: cores, brokers, nodes, bytes, settings and money", "measure"),
    Command("bench", "bench", "measure speed, beside other engines where there are some", "measure"),
    Command("demo", "demo", "the whole path in one command, with a report", "measure"),
)


def _overview() -> str:
    lines = [INTRO]
    for chapter in dict.fromkeys(c.chapter for c in COMMANDS):
        lines.append(f"{chapter}:")
        lines += [f"  {c.name:<10} {c.help}" for c in COMMANDS if c.chapter == chapter]
        lines.append("")
    lines.append("'beamrec COMMAND --help' explains each. Every command takes --json, --workspace and --quiet,\n"
                 "prints progress on stderr, and exits with 2 and one line when its input is wrong.")
    return "\n".join(lines)


def build_parser(command: Command) -> argparse.ArgumentParser:
    """The parser of one subcommand, from its module."""
    module = importlib.import_module(f"beam_pipelines.cli.{command.module}")
    parser = argparse.ArgumentParser(prog=f"beamrec {command.name}", description=module.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 2 wrong input, 3 previous recommendations kept, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"beamrec {version('beamrec')}")
        return 0
    command = next((c for c in COMMANDS if c.name == words[0]), None)
    if command is None:
        print(f"beamrec: no command {words[0]!r}; one of: {', '.join(c.name for c in COMMANDS)}", file=sys.stderr)
        return 2
    if argv is None:
        interrupt.handle()
    try:
        args = build_parser(command).parse_args(words[1:])
        code = int(args.run(args) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_gone():
            raise
        return 0
    except (UserError, StoreUriError) as error:
        print(f"beamrec {command.name}: {error}", file=sys.stderr)
        return 2
    except KeptPrevious as outcome:
        print(f"beamrec {command.name}: {outcome}", file=sys.stderr)
        return 3
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("beam_pipelines", "models", "transforms", "serving", "schemas", "benchmarks"):
            raise
        print(f"beamrec {command.name}: needs {error.name}; pip install 'beamrec[all]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"beamrec {command.name}: interrupted; run it again to go on", file=sys.stderr)
        return 130


def _reader_gone() -> bool:
    """Whether nobody reads stdout any more (``beamrec features list | head``); what is left to print goes nowhere then.

    SIGPIPE stays ignored: its default would also end a command whose peer closes a connection.
    """
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(state & select.POLLERR for _, state in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, default=str))


if __name__ == "__main__":
    sys.exit(main())
