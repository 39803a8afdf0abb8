"""Reads a local log: chunks of a segment become columns, block by block, no further than what is durable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from serving.eventlog import segment
from serving.eventlog.base import LogError, OffsetGone, Records
from serving.eventlog.segment import Committed

_PAUSE_S = 0.002  # between looks for new records


class LocalReader:
    """Reads partitions in turn; ``folder(partition)`` says where each lies. See serving.eventlog.base."""

    def __init__(self, folder: Callable[[int], Path], positions: Mapping[int, int]) -> None:
        self._folder = folder
        self._cursors: dict[int, _Cursor] = {}
        self._turn = 0
        self._only: frozenset[int] | None = None
        self.seek(positions)

    def seek(self, positions: Mapping[int, int]) -> None:
        """Goes on at other positions, for the partitions named."""
        for partition, offset in positions.items():
            if partition in self._cursors:
                self._cursors.pop(partition).close()
            self._cursors[partition] = _Cursor(self._folder(partition), partition, offset)

    def positions(self) -> dict[int, int]:
        """The next offset of each partition."""
        return {p: c.position for p, c in self._cursors.items()}

    def high_watermarks(self) -> dict[int, int]:
        """The next offset to be written of each partition."""
        return {p: c.committed.get() for p, c in self._cursors.items()}

    def only(self, partitions: Collection[int] | None) -> None:
        """Polls just these partitions until told otherwise; None: all."""
        self._only = None if partitions is None else frozenset(partitions)

    def poll(self, max_bytes: int, timeout_s: float) -> Records:
        """The next records; see serving.eventlog.base."""
        deadline = time.monotonic() + timeout_s
        while True:
            active = [c for p, c in self._cursors.items() if self._only is None or p in self._only]
            ready = [c for c in active if c.position != c.committed.get()]
            if ready:
                self._turn += 1
                parts: list[Records] = []
                left = max_bytes
                for i in range(len(ready)):
                    cursor = ready[(self._turn + i) % len(ready)]
                    try:
                        got = cursor.read(max(1, left // (len(ready) - i)))
                    except LogError:
                        if not parts:
                            raise
                        break  # what was read is given first, the next poll meets it again
                    parts += got
                    left -= sum(len(r.data) for r in got)
                return Records.concat(parts)
            pause = deadline - time.monotonic()
            if pause <= 0:
                return Records.of([])
            time.sleep(min(_PAUSE_S, pause))

    def close(self) -> None:
        """Releases files."""
        for cursor in self._cursors.values():
            cursor.close()
        self._cursors.clear()


class _Cursor:
    """A place in one partition."""

    def __init__(self, folder: Path, partition: int, offset: int) -> None:
        self.committed = Committed(folder)
        self._folder, self._partition = folder, partition
        self.position = offset
        self._fd, self._place, self._end = -1, 0, -1  # of the open segment: next place to read, its offset

    def read(self, max_bytes: int) -> list[Records]:
        """The next blocks' records, at least one record when one is durable."""
        committed = self.committed.get()
        if self.position > committed:
            raise LogError(f"{self._folder}: offset {self.position:,} lies beyond the end, {committed:,}")
        if self._fd < 0:
            self._open()
        while True:
            data = memoryview(os.pread(self._fd, max(max_bytes, 1 << 16), self._place))
            if len(data) >= segment.HEADER.size:
                size = segment.HEADER.size + segment.HEADER.unpack_from(data)[2]
                if size > len(data):
                    data = memoryview(os.pread(self._fd, size, self._place))
            parts, at = self._parse(data, committed, max_bytes)
            self._place += at
            if parts:
                return parts
            if self._end >= committed:
                return []
            if at == 0:  # the segment ends here, and more is durable: it is in the next one
                self._next()

    def _parse(self, data: memoryview, committed: int, max_bytes: int) -> tuple[list[Records], int]:
        parts: list[Records] = []
        at = taken = 0
        while taken < max_bytes and self._end < committed and (block := segment.parse(data, 0, at)) is not None:
            if block.offset != self._end and parts:
                break
            if block.offset != self._end:
                raise LogError(f"{self._folder}: offset {self._end:,} is missing, {block.offset:,} follows")
            if block.end > self.position:
                records = segment.columns(data, at, block, self._partition)
                skip = max(0, self.position - block.offset)
                parts.append(_after(records, skip) if skip else records)
                taken += len(parts[-1].data)
                self.position = block.end
            at += block.size
            self._end = block.end
        return parts, at

    def _open(self) -> None:
        found = segment.segments(self._folder)
        earliest = found[0][0] if found else self.committed.get()
        if self.position < earliest:
            raise OffsetGone(self._partition, self.position, earliest)
        first, path = [s for s in found if s[0] <= self.position][-1]
        self._fd = self._opened(path)
        index = segment.read_index(path)
        at = int(np.searchsorted(index["offset"], self.position, side="right")) - 1
        self._place, self._end = (int(index["place"][at]), int(index["offset"][at])) if at >= 0 else (0, first)

    def _next(self) -> None:
        path = segment.segment_path(self._folder, self._end)
        if not path.exists():
            found = segment.segments(self._folder)
            if found and found[0][0] > self._end:
                raise OffsetGone(self._partition, self._end, found[0][0])
            raise LogError(f"{self._folder} is damaged: offset {self._end:,} cannot be read")
        fd = self._opened(path)
        os.close(self._fd)
        self._fd, self._place = fd, 0

    def _opened(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise OffsetGone(self._partition, self.position, segment.segments(self._folder)[0][0]) from error

    def close(self) -> None:
        """Releases files."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.committed.close()


def _after(records: Records, skip: int) -> Records:
    """The records but the first ``skip``."""
    start = int(records.ends[skip - 1])
    return Records(records.data[start:], records.ends[skip:] - start, records.partition[skip:], records.offset[skip:],
                   records.timestamp[skip:])
