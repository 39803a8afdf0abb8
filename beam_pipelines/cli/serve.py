"""Answers over HTTP from the store: lists, features, events, versions; needs neither Beam nor TensorFlow.

  beamrec serve                                    http://127.0.0.1:8000: the page, and /docs
  beamrec serve --log dir:workspace/log            takes events too, and tells the log what was served
  beamrec serve --port 0                           any free port; the line "listening" says which
  curl 'http://127.0.0.1:8000/v1/recommendations?user_id=196&context=homepage&page_size=20'

GET  /v1/recommendations       user_id, context (homepage, item, cart, email), item_id (repeated), page_size, cursor, exclude,
                               request_id; "next_cursor" of the answer is the cursor of the next page
GET  /recommendations/ID       surface, limit
GET  /v1/items/ID/similar      user_id, limit, diversity
POST /v1/rerank                a list of the client's own, in the order of what its user does now
POST /v1/events, PUT /v1/items/ID, PUT /v1/users/ID      as beamrec collect; needs --log
GET, PUT /features/user|item/ID     GET, POST /v1/models     versions: flip, canary, promote, rollback (role admin)
GET  /healthz  /readyz  /metrics (Prometheus)  /v1/status  /docs  /openapi.json

With --log, what each answer showed and the feature values it used go to the log LOG-served; 'beamrec lake' stores them in the
table served. A local log has one writing process: with --no-events a 'beamrec collect' beside takes the events, and several
--workers may serve.

Who may ask: on this machine (127.0.0.1) everybody may do everything while there is no file of keys. 'beamrec keys add' makes
one; a second later only keys count, also where the server runs already. Other addresses need keys, or --anonymous read. Errors
are problem details (RFC 9457), logs JSON lines on stderr without user ids. A publish, flip or rollback is seen at once, without
a restart. SIGTERM or Ctrl-C ends open requests first.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from beam_pipelines.access import access_of
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from beam_pipelines.services.ports import listen
from serving.api_keys import ROLES
from serving.stores import StoreUriError, open_store
from serving.stores.base import StoreError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``serve``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1; 0.0.0.0 for all)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for a free one (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="processes that answer (default: 1)")
    parser.add_argument("--log", metavar="URI", help="event log, dir:PATH or kafka://HOST:PORT/TOPIC[?client=FILE]: take "
                        "events, and tell what was served (default: neither)")
    parser.add_argument("--no-events", action="store_true",
                        help="with --log: only tell what was served; a collector takes the events")
    parser.add_argument("--partitions", type=int, default=4, metavar="N", help="of a log that is not there yet (default: 4)")
    parser.add_argument("--policies", metavar="FILE", help="how each context is ranked (default: the packaged policies.toml)")
    parser.add_argument("--keys", metavar="FILE", help="of 'beamrec keys' (default: WORKSPACE/keys.json where it is there)")
    parser.add_argument("--anonymous", metavar="ROLES", help="what a request without a key may do: read, write_events, "
                        "write_features, admin, with commas (default: everything on loopback without keys, else nothing)")
    parser.add_argument("--anonymous-rate", type=float, default=0.0, metavar="N",
                        help="requests a second of one address without a key (default: no limit)")
    parser.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN",
                        help="web origin whose pages may ask, such as https://shop.example; repeatable; '*' for all")
    parser.add_argument("--stream-job", default="stream", metavar="NAME", help="whose features are read (default: stream)")
    parser.add_argument("--bundles", metavar="DIR", help="folder of bundles (default: WORKSPACE/bundles)")
    parser.add_argument("--log-requests", action="store_true", help="log one line per request: path, status, milliseconds")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    for package in ("fastapi", "uvicorn", "httptools"):  # else a worker would tell
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    config = Config.from_args(args)
    for name, value, low, high in (("port", args.port, 0, 65535), ("workers", args.workers, 1, 256),
                                   ("partitions", args.partitions, 1, 1024)):
        if not low <= value <= high:
            raise UserError(f"--{name} is a number from {low} to {high}, not {value}")
    if args.anonymous_rate < 0:
        raise UserError("--anonymous-rate is a number of requests a second, 0 for no limit")
    try:
        open_store(config.store, create=False).close()
    except StoreUriError as error:
        raise UserError(str(error)) from error
    except StoreError:  # it may come later: the server says 503 until then
        pass

    import logging
    import logging.config

    from serving.logs import LOGGER, log_config
    from serving.server.deal import BACKLOG, Dealer
    from serving.settings import Settings

    access = access_of(args, config, ROLES, args.anonymous, "read", "--anonymous read")
    _check_log(args)
    _check_policies(args.policies)
    listening = listen(args.host, args.port, BACKLOG)
    port = listening.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="beamrec-serve-"))
    settings = Settings(
        config.store, config.workspace.root, args.log_requests, args.log, _absolute(args.policies), access.keys,
        access.anonymous, args.anonymous_rate, _absolute(args.bundles), args.stream_job, args.workers, not args.no_events,
        args.partitions, tuple(args.cors_origin), access.mask, folder, access.until_keys)
    os.environ.update(settings.to_env())
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products: threads of several workers would wait for each other
    logging.config.dictConfig(log_config())
    log = logging.getLogger(LOGGER)
    if args.log and not args.no_events and not config.workspace.run_clock():
        log.warning("the workspace can only be read, and its clock stands at the end of an import: 'beamrec lake' starts it")
    log.info("listening", extra={"fields": {"url": f"http://{args.host}:{port}"}})
    if access.is_open:
        log.warning("everybody on this machine may do everything: there are no keys ('beamrec keys add' makes one)")
    try:
        return Dealer(listening, "serving.api:create_app", args.workers).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _absolute(path: str | None) -> Path | None:
    return Path(path).absolute() if path else None


def _check_log(args: argparse.Namespace) -> None:
    """Opens what the workers will write; raises UserError."""
    from serving.collector.settings import beside, creating, open_for_writing
    from serving.eventlog import LogError, open_log

    if args.log is None:
        if args.no_events:
            raise UserError("--no-events goes with --log")
        return
    if args.workers > 1 and args.log.startswith("dir:") and not args.no_events:
        raise UserError("--workers above 1 needs Kafka, or --no-events and a 'beamrec collect' beside: one process writes a "
                        "local event log")
    try:
        if not args.no_events:
            open_for_writing(creating(args.log, args.partitions)).close()
        open_log(beside(args.log, "served", max(args.partitions, args.workers))).close()
    except LogError as error:
        raise UserError(f"--log: {error}") from error


def _check_policies(path: str | None) -> None:
    from serving.ranking.policy import PolicyError, load

    if path is None:
        return
    try:
        load(Path(path))
    except (PolicyError, OSError) as error:
        raise UserError(f"--policies: {error}") from error
