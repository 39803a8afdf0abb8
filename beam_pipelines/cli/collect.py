"""Takes events over HTTP and answers once the event log has them; needs neither Beam nor TensorFlow.

  beamrec collect                                     http://127.0.0.1:8000, into the local log WORKSPACE/log
  beamrec collect --log kafka://127.0.0.1:9092/events[?client=FILE]
  curl http://127.0.0.1:8000/v1/events -d '{"user_id":"u1","item_id":"i1","event_type":"click"}'

POST /v1/events       one event, an array, or {"events": [...]}: up to 1,000 events and 1 MiB
  user_id, event_type   required; item_id too, but for a signup
  event_id              yours, so that sending again is harmless; or send the header Idempotency-Key; else one is made
  occurred_at           RFC 3339 with an offset, or milliseconds since 1970 (microseconds from 10^14 on); default: now.
                        Send it with your event_id, else a retry is a copy only at the same collector
  surface device session_id page_position request_id model_version dwell_ms value categories price country os referrer
  attributes            text to text, for whatever else you have: an unknown field is refused
  Categories and price that are not sent are taken from the catalogue (PUT /v1/items, or an import).
PUT /v1/items/ID, PUT /v1/users/ID   the whole item or user; the newest updated_at wins (default: now)
GET /healthz  GET /readyz  GET /metrics (Prometheus)  GET /client.js (for browsers; serving.clients.events for Python)

202  {"accepted", "rejected", "events": [{"event_id", "status", "reason", "detail"}]} in the order sent; the log has them
422  no event is valid; what is rejected is kept, with its reason, in the log of dead letters LOG-dead
401, 403  the key is missing, not known or has no role write_events
413  too large    429, 503  busy, or the log is away: send again after Retry-After what is not "accepted", with its event_id

Who may send: on this machine (127.0.0.1) everybody while there is no file of keys, as with serve. 'beamrec keys add --role
write_events' makes one; from then on a request needs "Authorization: Bearer KEY". Other addresses need keys, or --open, for
whoever sends events can hide items, and whoever PUTs items can remove them. PUTs leave an audit line in the log.

A purchase also hides its item from its user at once, in the store. Items and users go to the logs LOG-items and LOG-users.
A local log has one writing process; --workers is for Kafka. SIGTERM or Ctrl-C ends what was begun: nothing accepted is lost.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import logging.config
import os
import shutil
import tempfile

from beam_pipelines.access import access_of
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from beam_pipelines.services.ports import listen
from serving.collector import LINGER_MS
from serving.stores import StoreUriError, open_store
from serving.stores.base import StoreError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``collect``."""
    parser.add_argument("--log", metavar="URI",
                        help="dir:PATH or kafka://HOST:PORT/TOPIC[?client=FILE] (default: dir:WORKSPACE/log)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1; 0.0.0.0 for all)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for a free one (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="processes that answer, above 1 with Kafka only (default: 1)")
    parser.add_argument("--partitions", type=int, default=4, metavar="N", help="of a log that is not there yet (default: 4)")
    parser.add_argument("--linger-ms", type=float, default=LINGER_MS, metavar="MS",
                        help="how far apart the log is written at least: events between share a record (default: %(default)g)")
    parser.add_argument("--max-waiting", type=int, default=100_000, metavar="N",
                        help="events that may wait for the log before 429 (default: 100000)")
    parser.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN",
                        help="web origin whose pages may post, such as https://shop.example; repeatable; '*' for all")
    parser.add_argument("--keys", metavar="FILE", help="of 'beamrec keys' (default: WORKSPACE/keys.json where it is there)")
    parser.add_argument("--open", action="store_true", help="take events, items and users from everybody, without a key")
    parser.add_argument("--no-store", action="store_true", help="neither stamp from the catalogue nor suppress")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Collects until SIGTERM or SIGINT."""
    for package in ("fastapi", "uvicorn", "httptools", "fastavro"):  # else a worker would tell
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    from serving.collector.settings import CollectorSettings, creating, open_for_writing
    from serving.eventlog import LogError
    from serving.logs import LOGGER, log_config
    from serving.server.deal import BACKLOG, Dealer
    from serving.settled import KEEP_MEMORY

    config = Config.from_args(args)
    for name, value, low, high in (("port", args.port, 0, 65535), ("workers", args.workers, 1, 64),
                                   ("partitions", args.partitions, 1, 1024), ("linger-ms", args.linger_ms, 0, 1000),
                                   ("max-waiting", args.max_waiting, 1, 10_000_000)):
        if not low <= value <= high:
            raise UserError(f"--{name} is a number from {low} to {high}, not {value}")
    writers = ("write_events",)
    access = access_of(args, config, writers, ",".join(writers) if args.open else None, writers[0], "--open")
    uri = args.log or f"dir:{config.workspace.root / 'log'}"
    if args.workers > 1 and uri.startswith("dir:"):
        raise UserError("--workers above 1 needs Kafka: one process writes a local log")
    store = None if args.no_store else config.store
    try:
        if store is not None:
            open_store(store).close()
        open_for_writing(creating(uri, args.partitions)).close()
    except (LogError, StoreUriError) as error:
        raise UserError(str(error)) from error
    except StoreError as error:
        raise UserError(f"--store: {error}; --no-store does without") from error
    config.workspace.run_clock()  # one that can only be read is no hindrance: no clock is asked here
    listening = listen(args.host, args.port, BACKLOG)
    folder = tempfile.mkdtemp(prefix="beamrec-collect-")
    settings = CollectorSettings(uri, store, args.partitions, args.linger_ms, args.max_waiting, tuple(args.cors_origin),
                                 str(access.keys), access.anonymous, access.until_keys, args.workers, folder, access.mask)
    os.environ.update({**KEEP_MEMORY, **os.environ, **settings.to_env()})  # for the workers
    logging.config.dictConfig(log_config())
    url = f"http://{args.host}:{listening.getsockname()[1]}"
    logging.getLogger(LOGGER).info("listening", extra={"fields": {"url": url, "log": uri.partition("?")[0]}})
    try:
        return Dealer(listening, "serving.collector.app:create_app", args.workers).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
