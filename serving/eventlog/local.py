"""The local log: a folder per partition, append-only segment files, durable by fdatasync before append returns.

One process at a time writes a partition (a lock says so); any number reads. ``log.json`` holds the number of partitions.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from schemas.workspace import write_atomically
from serving.eventlog import segment
from serving.eventlog.base import MAX_RECORD_BYTES, LogError, LogMissing, LogUnavailable, LogUriError, OffsetGone, Records
from serving.eventlog.committer import LocalProducer
from serving.eventlog.segment import Committed
from transforms.records.base import SchemaRegistry

SEGMENT_BYTES = 128 << 20
MAX_PARTITIONS = 1024
_PAUSE_S = 0.002  # between looks for new records


class LocalLog:
    """``dir:PATH``; see serving.eventlog.base for the protocol."""

    def __init__(self, path: Path, partitions: int | None = None, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Opens a log; with ``partitions`` it is created, or given more partitions where it has fewer.

        Raises:
          LogError: there is no log and partitions is None, or the folder cannot be used.
        """
        self.uri = f"dir:{path}"
        self.registry: SchemaRegistry | None = None
        self.path = path
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._writers: dict[int, PartitionWriter] = {}
        if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
            raise LogUriError(f"a log has 1 to {MAX_PARTITIONS:,} partitions, not {partitions}")
        try:
            if partitions is not None:
                self._create(partitions)
            self.partitions()
        except OSError as error:
            raise LogError(f"cannot open the log {path}: {error.strerror or error}") from error

    def _create(self, partitions: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.partitions() if (self.path / "log.json").exists() else 0
            for p in range(known, partitions):
                folder = self._folder(p)
                folder.mkdir(exist_ok=True)
                Committed(folder, write=True).close()
            if partitions > known:
                write_atomically(self.path / "log.json", json.dumps({"version": 1, "partitions": partitions}).encode())

    def partitions(self) -> int:
        """How many there are now."""
        try:
            stored = json.loads((self.path / "log.json").read_text())
        except FileNotFoundError as error:
            raise LogMissing(f"no log at {self.path}; dir:{self.path}?partitions=4 creates one") from error
        if stored.get("version") != 1:
            raise LogError(f"the log at {self.path} is of version {stored.get('version')}, which this build cannot read")
        return int(stored["partitions"])

    def append(self, partition: int, records: Sequence[bytes], timestamp: int) -> int:
        """Writes records in one commit; the first one's offset."""
        return self.writer(partition).append(records, np.full(len(records), timestamp, np.int64))

    def writer(self, partition: int) -> PartitionWriter:
        """The writer of a partition, which holds its lock until the log is closed."""
        with self._lock:
            if partition not in self._writers:
                self._writers[partition] = PartitionWriter(self._checked(partition), self._segment_bytes)
            return self._writers[partition]

    def earliest(self, partition: int) -> int:
        """The oldest offset there is."""
        found = segment.segments(self._checked(partition))
        return found[0][0] if found else self.latest(partition)

    def latest(self, partition: int) -> int:
        """The next offset to be written."""
        committed = Committed(self._checked(partition))
        try:
            return committed.get()
        finally:
            committed.close()

    def offset_at(self, partition: int, timestamp_micros: int) -> int:
        """The first offset whose timestamp is at or after the given one."""
        latest, folder = self.latest(partition), self._checked(partition)
        for _, path in segment.segments(folder):
            with path.open("rb") as file:
                index = segment.read_index(path)
                at = int(np.searchsorted(index["newest"], timestamp_micros)) - 1  # its newest lies before: not earlier
                for block, newest in segment.headers(file.fileno(), int(index["place"][at]) if at >= 0 else 0):
                    if newest >= timestamp_micros and block.offset < latest:
                        data = memoryview(os.pread(file.fileno(), block.size, block.place))
                        records = segment.columns(data, 0, block, partition)
                        return min(int(records.offset[np.argmax(records.timestamp >= timestamp_micros)]), latest)
        return latest

    def reader(self, positions: Mapping[int, int]) -> LocalReader:
        """A reader of the partitions named, each from its offset on."""
        return LocalReader(self, positions)

    def producer(self) -> LocalProducer:
        """A producer for the running event loop."""
        return LocalProducer(self)

    def trim(self, partition: int, before_offset: int) -> int:
        """Deletes the segments all of whose records lie before an offset (never the last one); the new earliest offset."""
        found = segment.segments(self._checked(partition))
        for (_, path), (following, _) in itertools.pairwise(found):
            if following > before_offset:
                break
            path.unlink(missing_ok=True)
            path.with_suffix(".idx").unlink(missing_ok=True)
        return self.earliest(partition)

    def close(self) -> None:
        """Releases files and locks."""
        with self._lock:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()

    def folder(self, partition: int) -> Path:
        """Where a partition lies."""
        return self._checked(partition)

    def _checked(self, partition: int) -> Path:
        folder = self._folder(partition)
        if not 0 <= partition < MAX_PARTITIONS or not folder.is_dir():
            raise ValueError(f"{self.uri} has no partition {partition}")
        return folder

    def _folder(self, partition: int) -> Path:
        return self.path / f"p{partition:05d}"


class PartitionWriter:
    """Appends blocks to one partition; its lock keeps other writers away. Safe to use from several threads."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder, self._segment_bytes = folder, segment_bytes
        self._mutex = threading.Lock()
        self._guard = self._acquire()
        self._committed = Committed(folder, write=True)
        self._fd = self._index_fd = -1
        self._place = self._indexed = 0
        self._newest = np.iinfo(np.int64).min
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def _acquire(self) -> int:
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise LogError(f"{self._folder} is being written by another process (pid {holder or 'unknown'})") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return fd

    def _recover(self) -> None:
        """Takes up the last segment, without a torn tail.

        Raises:
          LogError: acknowledged records are damaged.
        """
        found = segment.segments(self._folder)
        if not found:
            return self._roll(self._committed.get())
        first, path = found[-1]
        self._fd = os.open(path, os.O_RDWR)
        indexed: list[tuple[int, int, int]] = []
        place, end, newest = 0, first, self._newest
        for block, times in segment.headers(self._fd, 0):
            if block.offset != end:
                break
            if not indexed or block.place - indexed[-1][1] >= segment.INDEX_EVERY:
                indexed.append((block.offset, block.place, newest))
            place, end, newest = block.place + block.size, block.end, max(newest, times)
        if end < self._committed.get():
            raise LogError(f"{path} is damaged at byte {place:,}: offsets {end:,} to {self._committed.get() - 1:,} are lost")
        os.ftruncate(self._fd, place)
        os.fsync(self._fd)
        write_atomically(path.with_suffix(".idx"), np.array(indexed, segment.INDEX).tobytes())
        self._index_fd = os.open(path.with_suffix(".idx"), os.O_WRONLY | os.O_APPEND)
        self._place, self._newest = place, newest
        self._indexed = indexed[-1][1] if indexed else -segment.INDEX_EVERY
        self._committed.set(end)

    def _roll(self, offset: int) -> None:
        for fd in (self._fd, self._index_fd):
            if fd >= 0:
                os.close(fd)
        path = segment.segment_path(self._folder, offset)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._index_fd = os.open(path.with_suffix(".idx"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        directory = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._place, self._newest, self._indexed = 0, np.iinfo(np.int64).min, -segment.INDEX_EVERY

    def append(self, records: Sequence[bytes], timestamps: np.ndarray) -> int:
        """Writes records as one block and waits until it is durable; the first one's offset.

        Raises:
          ValueError: a record is over MAX_RECORD_BYTES.
          LogUnavailable: the disk refused; nothing was written.
        """
        for record in records:
            if len(record) > MAX_RECORD_BYTES:
                raise ValueError(f"a record has at most {MAX_RECORD_BYTES:,} bytes, not {len(record):,}")
        with self._mutex:
            if self._fd < 0:
                raise LogUnavailable(f"{self._folder} is closed")
            first = self._committed.get()
            if not records:
                return first
            block = segment.encode(records, timestamps, first)
            try:
                if self._place and self._place + len(block) > self._segment_bytes:
                    self._roll(first)
                self._write(block)
            except OSError as error:
                self._undo()
                raise LogUnavailable(f"cannot write to {self._folder}: {error.strerror or error}") from error
            if self._place - self._indexed >= segment.INDEX_EVERY:
                os.write(self._index_fd, np.array([(first, self._place, self._newest)], segment.INDEX).tobytes())
                self._indexed = self._place
            self._newest = max(self._newest, int(timestamps.max()))
            self._place += len(block)
            self._committed.set(first + len(records))
            return first

    def _write(self, block: bytes) -> None:
        view, place = memoryview(block), self._place
        while view:
            written = os.pwrite(self._fd, view, place)
            view, place = view[written:], place + written
        os.fdatasync(self._fd)

    def _undo(self) -> None:
        """Takes a failed write back; after a failed fsync the file is opened anew, for its pages can no longer be trusted."""
        os.close(self._fd)
        self._fd = -1
        try:
            self._recover()
        except OSError:
            return

    def close(self) -> None:
        """Releases files and the lock."""
        with self._mutex:
            for fd in (self._fd, self._index_fd, self._guard):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._index_fd = self._guard = -1
            self._committed.close()


class LocalReader:
    """Reads partitions of a local log in turn, no further than what is durable."""

    def __init__(self, log: LocalLog, positions: Mapping[int, int]) -> None:
        self._log = log
        self._cursors: dict[int, _Cursor] = {}
        self._turn = 0
        self._only: frozenset[int] | None = None
        self.seek(positions)

    def seek(self, positions: Mapping[int, int]) -> None:
        """Goes on at other positions, for the partitions named."""
        for partition, offset in positions.items():
            if partition in self._cursors:
                self._cursors.pop(partition).close()
            self._cursors[partition] = _Cursor(self._log.folder(partition), partition, offset)

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
