"""Keep features fresh to the second: read an event log without end, write what changed to the store.

  beamrec stream --log dir:PATH                        on Prism, started for the job; Ctrl-C ends it
  beamrec stream --log kafka://127.0.0.1:9092/events --runner flink
                                                       on the Flink cluster of 'beamrec services up kafka flink', which runs
                                                       it on after Ctrl-C
  beamrec stream --log URI --until-end                 what the log holds now, then end
  beamrec stream --status                              watermark, events, copies, late ones, cells written, freshness; on
                                                       Flink also how often it was started again, and what it failed of
  beamrec stream --print-flags [FLAGS]                 all that decides values, speed and freshness, and end
  beamrec stream --drain                               stop the job on Flink with a savepoint
  beamrec stream --log URI --runner flink --resume     go on from the newest complete checkpoint or savepoint
  beamrec stream --log URI --runner flink --resume-or-start    whatever there is: follow it, go on from it, or start anew

Events are validated, freed of copies (the same event_id within the allowed lateness) and counted in 5-minute panes of event
time: counts, sessions, preference and recent items of users; popularity and co-occurrence of items. A second after an entity
changed, its whole cells are written, so readers slide windows and end sessions without a write. An event more than --lateness
after its pane is left to the batch: it is in the lake, and counted here by type and surface.

Runners: prism (one machine, no Java), flink (checkpoints, --resume, --drain), direct (in this process, with --until-end), or
any runner of Beam; flags after -- go to Beam: beamrec stream --log URI --runner DataflowRunner -- --project P --region R

The status row is written every second; 'beamrec show' and the API take stream values only while it is young. With --audit, the
panes, sessions and minutes that can change no more go to DIR as Parquet, each once; a job with --until-end puts them into the
lake (tables stream_panes, stream_sessions, stream_minutes) when it ends.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, StreamConfig, add_common_flags, parse_seconds, runner_of
from beam_pipelines.stream_status import line, report, told
from schemas.features import GROUPS
from schemas.metric_names import EVENTS_READ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec stream``."""
    parser.add_argument("--log", metavar="URI", help="dir:PATH or kafka://HOST:PORT/TOPIC[?client=FILE]")
    parser.add_argument("--name", default="stream", help="of the job: its status row and checkpoints (default: stream)")
    parser.add_argument("--from", dest="start", default="earliest", metavar="WHERE",
                        help="earliest, latest, a date or time, or a JSON file of {partition: offset} (default: earliest)")
    parser.add_argument("--until-end", action="store_true", help="read what the log holds now, then end")
    parser.add_argument("--lateness", default="1h", metavar="T", help="how late an event still corrects values (default: 1h)")
    parser.add_argument("--watermark-delay", default="10s", metavar="T",
                        help="how far event time stays behind the newest event (default: 10s)")
    parser.add_argument("--flush", default="0.5s", metavar="T",
                        help="from a change to its write (default: 0.5s)")
    parser.add_argument("--readers", type=int, default=2, help="parallel readers of the log (default: 2)")
    parser.add_argument("--user-buckets", type=int, default=StreamConfig.user_buckets,
                        help="hash shards of users' state (default: 4)")
    parser.add_argument("--item-buckets", type=int, default=StreamConfig.item_buckets,
                        help="hash shards of items' state (default: 2)")
    parser.add_argument("--groups", nargs="+", metavar="GROUP",
                        help="stream feature groups to compute (default: all, and items that users are done with)")
    parser.add_argument("--audit", metavar="DIR",
                        help="write final panes, sessions and minutes there, as Parquet; after --until-end into the lake")
    parser.add_argument("--store-wait", default="5m", metavar="T", help="how long a store may be away (default: 5m)")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve metrics for Prometheus while the job runs")
    parser.add_argument("--metrics-host", default="127.0.0.1", metavar="ADDRESS",
                        help="where they are served (default: 127.0.0.1; 0.0.0.0 for all)")
    flink = parser.add_argument_group("Flink")
    flink.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint or savepoint")
    flink.add_argument("--resume-or-start", action="store_true", help="the same where there is one that this version can read, "
                       "else start anew, and follow the job where it runs already: for a supervisor that always gives the same "
                       "command")
    flink.add_argument("--rewrite", action="store_true", help="with --resume: write again all that the checkpoint holds (done "
                       "anyway when the store has nothing of the job)")
    flink.add_argument("--drain", action="store_true", help="stop the running job with a savepoint")
    flink.add_argument("--detach", action="store_true", help="return once it is submitted; it runs on")
    flink.add_argument("--job-endpoint", metavar="HOST:PORT", help="Beam's job server, when not of 'beamrec services'")
    flink.add_argument("--checkpoints", metavar="DIR",
                       help="where the cluster keeps checkpoints, when not of 'beamrec services'")
    flink.add_argument("--checkpoint-every", default="10s", metavar="T", help="between checkpoints (default: 10s)")
    parser.add_argument("--services", metavar="DIR", help="folder of 'beamrec services' (default: WORKSPACE/services)")
    parser.add_argument("--status", action="store_true", help="print the status row of the job and end")
    parser.add_argument("--print-flags", action="store_true", help="print the flags that this command would run with, and end")
    parser.add_argument("beam_args", nargs="*", metavar="-- BEAM FLAGS", help="flags for Beam, after --")
    add_common_flags(parser, runner="prism")


def start_of(text: str) -> Any:
    """What --from says, as StreamConfig.start; raises UserError."""
    from beam_pipelines.cli.features import parse_time

    if text in ("earliest", "latest"):
        return text
    if text.endswith(".json"):
        try:
            return tuple(sorted((int(p), int(o)) for p, o in json.loads(Path(text).read_text()).items()))
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"--from {text}: a JSON object of partitions and offsets is needed: {error}") from error
    return parse_time(text)


def config_of(args: argparse.Namespace) -> StreamConfig:
    """The parsed flags."""
    common = Config.from_args(argparse.Namespace(**{**vars(args), "runner": runner_of(args.runner or "prism")}))
    for name in ("user_buckets", "item_buckets"):
        if (n := getattr(args, name)) < 1 or n & (n - 1):
            raise UserError(f"--{name.replace('_', '-')} is a power of two, not {n}")
    known = [group.name for group in GROUPS if group.source == "stream"]
    if args.groups and (unknown := [name for name in args.groups if name not in known]):
        raise UserError(f"--groups: no stream group {', '.join(unknown)}; there are {', '.join(known)}")
    lateness = parse_seconds(args.lateness)
    if lateness != int(lateness):
        raise UserError("--lateness is in whole seconds")
    return StreamConfig(
        common, absolute_log(args.log) if args.log else "", args.name, start_of(args.start), args.until_end, int(lateness),
        parse_seconds(args.watermark_delay), parse_seconds(args.flush), args.readers, args.user_buckets, args.item_buckets,
        tuple(args.groups) if args.groups else None, Path(args.audit).absolute() if args.audit else None,
        store_wait_s=parse_seconds(args.store_wait), rewrite=args.rewrite, metrics_port=args.metrics_port,
        metrics_host=args.metrics_host)


def absolute_log(log: str) -> str:
    """A local log's path means the same in every worker."""
    if not log.startswith("dir:"):
        return log
    path, _, query = log.removeprefix("dir:").partition("?")
    return f"dir:{Path(path).absolute()}" + (f"?{query}" if query else "")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    config = config_of(args)
    if args.print_flags:
        return _print_flags(args, config)
    if args.status:
        return _status(args, config)
    if args.drain:
        return _drain(args, config)
    if not args.log:
        raise UserError("--log is needed: dir:PATH or kafka://HOST:PORT/TOPIC")
    if args.detach and args.metrics_port is not None:
        raise UserError("metrics are served by this command, which --detach ends: leave --detach or --metrics-port away")
    return _run(args, config)


def _run(args: argparse.Namespace, config: StreamConfig) -> int:
    import logging

    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs.stream_metrics import serving_metrics
    from beam_pipelines.jobs.stream_run import Resume, launched
    from beam_pipelines.progress import Stage
    from beam_pipelines.runner import quiet_logs
    from serving.eventlog import LogError, open_log

    quiet_logs()
    logging.basicConfig(level=logging.WARNING)
    try:
        open_log(config.log).close()
    except LogError as error:
        raise UserError(str(error)) from error
    began = time.time()
    checkpoints = Path(args.checkpoints) if args.checkpoints else None
    resume: Resume = "if possible" if args.resume_or_start else args.resume
    with launched(config, resume, _services(args), args.job_endpoint, checkpoints, parse_seconds(args.checkpoint_every)) as job:
        if args.detach:
            print_json({"job": config.name, "flink_job": job.flink_job}) if args.json else print(f"{config.name} runs on")
            return 0
        with Stage(f"stream {config.name}", quiet=config.common.quiet) as stage, serving_metrics(
                config.metrics_port, job, config.metrics_host):
            seen = 0

            def tell(status: dict[str, Any]) -> None:
                nonlocal seen
                if status["written_at"] < began * 1e6:
                    return
                read = status["counters"].get(EVENTS_READ, 0)
                stage.advance(read - seen, note=line(status))
                seen = read

            try:
                job.wait(tell)
            except KeyboardInterrupt:
                if job.cancel is not None:
                    job.cancel()
                elif job.flink_job is not None:
                    return _left(config, job.flink_job)
                raise
        status = job.status() or {}
    if config.audit is not None and config.until_end and config.audit.is_dir():
        from beam_pipelines.io.lake import Lake
        from beam_pipelines.io.stream_audit import collect_parts

        collect_parts(Lake.open(config.common.lake, config.common.catalog), config.audit)
    if args.json:
        print_json(told(status))
    elif status:
        print(report(status))
    return 0


def _services(args: argparse.Namespace) -> Path | None:
    return Path(args.services).absolute() if args.services else None


def _left(config: StreamConfig, flink_job: str) -> int:
    """Says that the command is interrupted and the job is not; returns the exit code."""
    import sys

    print(f"beamrec stream: interrupted; {config.name} runs on as Flink job {flink_job}: --status tells how it is, --drain "
          "stops it with a savepoint", file=sys.stderr)
    return 130


def _print_flags(args: argparse.Namespace, config: StreamConfig) -> int:
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs.stream_run import flags_of

    flags = flags_of(config, parse_seconds(args.checkpoint_every))
    print_json(flags) if args.json else print("\n".join(f"{name:<20} {value}" for name, value in flags.items()))
    return 0


def _status(args: argparse.Namespace, config: StreamConfig) -> int:
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs.stream_flink import found_on_flink
    from beam_pipelines.jobs.stream_run import status_of

    status, on_flink = status_of(config) or {}, found_on_flink(config, _services(args))
    if not status and on_flink is None:
        raise UserError(f"no job {config.name} has written to {config.common.store}")
    print_json(told(status, on_flink)) if args.json else print(report(status, on_flink))
    return 0


def _drain(args: argparse.Namespace, config: StreamConfig) -> int:
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs.stream_flink import drain

    folder = drain(config, _services(args))
    print_json({"job": config.name, "savepoint": str(folder)}) if args.json else print(f"stopped; savepoint {folder}")
    return 0
