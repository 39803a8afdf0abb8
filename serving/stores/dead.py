"""Rows that a store refuses for good: kept as lines of JSON with the reason, so that the rest of a bulk write is not held up.

A line is {"table", "row", "family", "qualifier", "timestamp", "value" (base64), "reason"}; ``beamrec store replay`` writes such
a file again once its cause is mended. The file holds user ids, so its owner alone can read it.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from serving.stores.base import StoreError

DeadCell = tuple[str, str, bytes, int, bytes]
"""row, family, qualifier, timestamp, value."""
_log = logging.getLogger(__name__)


class DeadRows:
    """A file of cells that were refused; several processes may add to it.

    Attributes:
      added: cells that this object has added.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.added = path, 0

    def add(self, table: str, cells: Iterable[tuple[DeadCell, str]]) -> int:
        """Adds cells, each with its reason, durably; how many. Raises StoreError when they cannot be kept."""
        lines = [json.dumps({"table": table, "row": row, "family": family, "qualifier": qualifier.decode("utf-8", "replace"),
                             "timestamp": timestamp, "value": base64.b64encode(value).decode(), "reason": reason})
                 for (row, family, qualifier, timestamp, value), reason in cells]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, "".join(line + "\n" for line in lines).encode())
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise StoreError(f"{len(lines)} refused rows cannot be kept in {self.path}: {error}") from error
        self.added += len(lines)
        return len(lines)


class Refusals:
    """What was refused of one bulk write to a table."""

    def __init__(self, table: str, dead: DeadRows | None) -> None:
        self._table, self._dead = table, dead
        self._count, self._reason = 0, ""

    def add(self, chunk: Sequence[DeadCell], refused: Mapping[bytes, str]) -> None:
        """Takes the rows of a chunk that were refused, with their reasons."""
        if not refused:
            return
        cells = [(cell, refused[cell[0].encode()]) for cell in chunk if cell[0].encode() in refused]
        if self._dead is not None:
            self._dead.add(self._table, cells)
        self._count += len(refused)
        self._reason = self._reason or next(iter(refused.values()))

    def settle(self, offered: int) -> None:
        """Once the rest is written: raises StoreError where refused rows are not kept."""
        if not self._count:
            return
        if self._dead is None:
            raise StoreError(f"Bigtable did not take {self._count} rows of {offered} cells: {self._reason}")
        _log.warning("Bigtable refused %d rows, kept in %s: %s", self._count, self._dead.path, self._reason)


def read_dead(path: Path) -> Iterator[tuple[str, DeadCell, str]]:
    """(table, cell, reason) of each line.

    Raises:
      StoreError: no such file, or a line that is none of these.
    """
    try:
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    said = json.loads(line)
                    cell = (said["row"], said["family"], said["qualifier"].encode(), int(said["timestamp"]),
                            base64.b64decode(said["value"], validate=True))
                    yield said["table"], cell, said["reason"]
                except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
                    raise StoreError(f"{path} line {number} is no refused row: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
