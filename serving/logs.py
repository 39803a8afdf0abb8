"""Structured logs: one JSON object per line on stderr. Never a user id, a query string or a token."""

from __future__ import annotations

import json
import logging
import os
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


def log_config() -> dict[str, Any]:
    """A logging configuration for the server and its workers."""
    handler = {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
    ours = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {"version": 1, "disable_existing_loggers": False, "formatters": {"json": {"()": f"{__name__}.JsonFormatter"}},
            "handlers": {"stderr": handler}, "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {LOGGER: ours, "_granian": ours}}
