"""Files of a local log: a partition's segments of blocks, each block the records of one commit under one checksum.

Block: magic "BRL1", CRC-32 of everything after it, then u32 length of the body, u32 records n, i64 offset of the first
record; the body is n i64 timestamps, n u32 lengths, and the records; all little-endian. A segment is named by its first
offset (20 digits). Beside it lies a sparse index (``.idx``): (offset, place in the file, newest timestamp before it)
every so many bytes. The file ``committed`` holds the next offset of the partition: readers go no further.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.eventlog.base import LogError
from transforms.records.base import Records

MAGIC = b"BRL1"
HEADER = struct.Struct("<4sIIIq")
_AFTER_CRC = 8
INDEX_EVERY = 256 << 10
INDEX = np.dtype([("offset", "<i8"), ("place", "<i8"), ("newest", "<i8")])
_NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Block:
    """A block's header: where it lies and what it holds."""

    place: int
    size: int
    count: int
    offset: int

    @property
    def end(self) -> int:
        """Offset after its last record."""
        return self.offset + self.count


def encode(records: Sequence[bytes], timestamps: npt.NDArray[np.int64], offset: int) -> bytes:
    """One block of records."""
    lengths = np.fromiter(map(len, records), np.uint32, len(records))
    body = b"".join([timestamps.astype("<i8").tobytes(), lengths.astype("<u4").tobytes(), *records])
    rest = HEADER.pack(MAGIC, 0, len(body), len(records), offset)[_AFTER_CRC:]
    return MAGIC + struct.pack("<I", zlib.crc32(body, zlib.crc32(rest))) + rest + body


def parse(data: memoryview, place: int, at: int = 0) -> Block | None:
    """The block that begins at ``data[at]`` when it is whole and its checksum right, else None."""
    if len(data) - at < HEADER.size:
        return None
    magic, crc, size, count, offset = HEADER.unpack_from(data, at)
    if magic != MAGIC or size < count * 12 or len(data) - at < HEADER.size + size:
        return None
    if zlib.crc32(data[at + _AFTER_CRC : at + HEADER.size + size]) != crc:
        return None
    return Block(place + at, HEADER.size + size, count, offset)


def columns(data: memoryview, at: int, block: Block, partition: int) -> Records:
    """The records of the block that begins at ``data[at]``."""
    n, body = block.count, at + HEADER.size
    timestamps = np.frombuffer(data, "<i8", n, body)
    lengths = np.frombuffer(data, "<u4", n, body + 8 * n)
    ends = np.cumsum(lengths, dtype=np.int64)
    return Records(np.frombuffer(data, np.uint8, block.size - HEADER.size - 12 * n, body + 12 * n), ends,
                   np.full(n, partition, np.int32), np.arange(block.offset, block.end, dtype=np.int64), timestamps)


def segments(folder: Path) -> list[tuple[int, Path]]:
    """(first offset, path) of a partition's segments, oldest first."""
    return sorted((int(p.stem), p) for p in folder.glob("*.log"))


def segment_path(folder: Path, offset: int) -> Path:
    """Where the segment that begins at an offset lies."""
    return folder / f"{offset:020d}.log"


def read_index(segment: Path) -> npt.NDArray[np.void]:
    """The sparse index of a segment; without one, empty."""
    try:
        data = segment.with_suffix(".idx").read_bytes()
    except FileNotFoundError:
        return np.zeros(0, INDEX)
    return np.frombuffer(data[: len(data) // INDEX.itemsize * INDEX.itemsize], INDEX)


def headers(fd: int, place: int, end: int | None = None) -> Iterator[tuple[Block, int]]:
    """(block, newest timestamp in it) from a place on, for as long as whole, right blocks follow."""
    size = os.fstat(fd).st_size if end is None else end
    while place + HEADER.size <= size:
        head = os.pread(fd, HEADER.size, place)
        if len(head) < HEADER.size or head[:4] != MAGIC:
            return
        length = HEADER.unpack(head)[2]
        if place + HEADER.size + length > size:
            return
        data = memoryview(head + os.pread(fd, length, place + HEADER.size))
        block = parse(data, place)
        if block is None:
            return
        times = np.frombuffer(data, "<i8", block.count, HEADER.size)
        yield block, int(times.max()) if block.count else _NO_TIME
        place += block.size


class Committed:
    """The next offset of a partition in 8 mapped bytes that all processes see at once."""

    def __init__(self, folder: Path, write: bool = False) -> None:
        path = folder / "committed"
        try:
            fd = os.open(path, (os.O_RDWR | os.O_CREAT) if write else os.O_RDONLY, 0o644)
        except FileNotFoundError as error:
            raise LogError(f"{folder}: not a partition of a log") from error
        try:
            if write and os.fstat(fd).st_size < 8:
                os.ftruncate(fd, 8)
            self._map = mmap.mmap(fd, 8, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self._value = np.frombuffer(self._map, np.int64)

    def get(self) -> int:
        """The next offset."""
        return int(self._value[0])

    def set(self, offset: int) -> None:
        """Moves it: an aligned store, so that a reader sees the old or the new one."""
        self._value[0] = offset

    def close(self) -> None:
        """Releases the mapping."""
        del self._value
        self._map.close()
