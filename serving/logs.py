"""Structured logs: one JSON object per line on stderr. Never a user id, a query string or a token."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from datetime import UTC, datetime
from typing import Any

LOGGER = "beamrec.serving"


class JsonFormatter(logging.Formatter):
    """time, level, event, process, then the fields given as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(), "event": record.getMessage(), "process": os.getpid(),
            **getattr(record, "fields", {})}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Mask:
    """User ids in logs: the same id gives the same 16 hex digits, and nobody without the secret can try ids.

    Args:
      secret: "" for one that ends with this process.
    """

    def __init__(self, secret: str = "") -> None:
        self._key = hashlib.blake2b((secret or secrets.token_hex(32)).encode(), digest_size=32).digest()

    def __call__(self, user_id: str) -> str:
        """What stands in a log for a user."""
        return hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), key=self._key, digest_size=8).hexdigest()


def log_config() -> dict[str, Any]:
    """A logging configuration for the server and its workers."""
    handler = {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
    ours = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {"version": 1, "disable_existing_loggers": False, "formatters": {"json": {"()": f"{__name__}.JsonFormatter"}},
            "handlers": {"stderr": handler}, "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {LOGGER: ours, "uvicorn": {"level": "ERROR"}}}  # a bad request is the client's affair
