"""The local log: a folder per partition, append-only segment files, durable by fdatasync before append returns.

One process at a time writes a partition (a lock says so); any number reads. ``log.json`` holds the number of partitions.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from schemas.workspace import write_atomically
from serving.eventlog import segment
from serving.eventlog.base import MAX_RECORD_BYTES, LogError, LogMissing, LogUnavailable, LogUriError
from serving.eventlog.committer import LocalProducer
from serving.eventlog.local_reader import LocalReader
from serving.eventlog.segment import Committed
from transforms.records.base import SchemaRegistry

SEGMENT_BYTES = 128 << 20
MAX_PARTITIONS = 1024
_DSYNC: int = getattr(os, "RWF_DSYNC", 0)  # Linux


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
        return LocalReader(self.folder, positions)

    def producer(self) -> LocalProducer:
        """A producer for the running event loop."""
        return LocalProducer(self)

    def trim(self, partition: int, before_offset: int) -> int:
        """Deletes the segments all of whose records lie before an offset (never the last one); the new earliest offset."""
        for path in self.before(partition, before_offset):
            path.unlink(missing_ok=True)
            path.with_suffix(".idx").unlink(missing_ok=True)
        return self.earliest(partition)

    def before(self, partition: int, offset: int) -> list[Path]:
        """The segments that ``trim`` deletes, oldest first."""
        found = segment.segments(self._checked(partition))
        return [path for (_, path), (following, _) in itertools.pairwise(found) if following <= offset]

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
        if _DSYNC:  # written and synced in one call: after each call a thread waits for the interpreter
            try:
                if os.pwritev(self._fd, [view], place, _DSYNC) == len(view):
                    return
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
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
