"""The Avro schemas of beamrec, one file per record and version: ``<record>.v<N>.avsc``.

A published version is never edited: a change is a new file whose number is one higher, and
``schemas.compat`` (with its test) refuses a change that an older reader or writer could not live with.
"""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

RECORDS = ("event", "item", "user", "recommendation", "served_features")
_FILE = re.compile(r"^(?P<record>[a-z_]+)\.v(?P<version>\d+)\.avsc$")


@functools.cache
def versions(record: str) -> tuple[int, ...]:
    """Published versions of a record, oldest first.

    Raises:
      KeyError: no such record.
    """
    names = (entry.name for entry in resources.files(__package__).iterdir())
    found = sorted(int(m["version"]) for m in map(_FILE.match, names) if m and m["record"] == record)
    if not found:
        raise KeyError(f"no Avro schema for record {record!r}; known: {', '.join(RECORDS)}")
    return tuple(found)


@functools.cache
def load(record: str, version: int | None = None) -> dict[str, Any]:
    """The parsed JSON of one schema file; the newest version when none is named."""
    number = versions(record)[-1] if version is None else version
    text = resources.files(__package__).joinpath(f"{record}.v{number}.avsc").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
