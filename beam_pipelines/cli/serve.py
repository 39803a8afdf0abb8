"""Answers GET /v1/recommendations over HTTP from the store; needs neither Beam nor TensorFlow.

  beamrec serve                                    http://127.0.0.1:8000
  beamrec serve --port 0                           any free port; the line "listening" says which
  curl 'http://127.0.0.1:8000/v1/recommendations?user_id=196&context=homepage&page_size=20'

GET /v1/recommendations
  user_id     whose list; a user without one gets the popular items
  context     homepage (default), item, cart, email; one without lists of its own gets homepage's
  page_size   1 to 100 (default 20); "next_cursor" of the answer is the cursor of the next page
  exclude     item ids to leave out: repeated, or separated by commas
GET /healthz  the process answers      GET /readyz  there are lists to answer with
GET /docs     all of it, to try out    GET /openapi.json

"served_from" says which tier answered: list, expired_list, popular, popular_in_memory. A publish or rollback is seen
within a second, without a restart. Errors are problem details (RFC 9457). Logs are JSON lines on stderr, without user
ids. SIGTERM or Ctrl-C ends open requests first.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket

from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from serving.stores import StoreUriError, open_store
from serving.stores.base import StoreError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``serve``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1; 0.0.0.0 for all)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for a free one (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="processes that answer (default: 1)")
    parser.add_argument("--log-requests", action="store_true", help="log one line per request: path, status, milliseconds")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    for package in ("fastapi", "granian"):  # granian would only tell from inside a worker
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    config = Config.from_args(args)
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is a number from 0 to 65535, not {args.port}")
    if not 1 <= args.workers <= 256:
        raise UserError(f"--workers is a number from 1 to 256, not {args.workers}")
    try:
        open_store(config.store, create=False).close()
    except StoreUriError as error:
        raise UserError(str(error)) from error
    except StoreError:  # it may come later: the server says 503 until then
        pass
    port = _port(args.host, args.port)

    import logging
    import logging.config

    from granian import Granian
    from granian.constants import Interfaces

    from serving.logs import LOGGER, log_config
    from serving.settings import Settings

    os.environ.update(Settings(config.store, config.workspace.root, args.log_requests).to_env())
    logging.config.dictConfig(log_config())
    logging.getLogger(LOGGER).info("listening", extra={"fields": {"url": f"http://{args.host}:{port}"}})
    Granian("serving.api:create_app", factory=True, address=args.host, port=port, interface=Interfaces.ASGI,
            workers=args.workers, websockets=False, respawn_failed_workers=True, workers_kill_timeout=5,
            log_dictconfig=log_config()).serve()
    return 0


def _port(host: str, port: int) -> int:
    """The port, or a free one for 0; raises UserError when it cannot be listened on."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
