"""Files as blocks of whole lines, plain or gzipped, with line numbers and the original bytes; memory stays bounded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 1 << 20
"""Of a longer line only its beginning is kept; it will not parse, so it ends up as a dead letter."""
_READ_BYTES = 1 << 20
_NEWLINE = 10


@dataclass(frozen=True)
class Block:
    """Some consecutive lines of a file that are not blank.

    Attributes:
      source: name of the file in positions and event ids.
      lines: the n lines without their line feed.
      numbers: (n,) line numbers in the file, from 1.
      broken: why the file ends within the last line ("" when it does not).
    """

    source: str
    lines: pa.LargeBinaryArray
    numbers: npt.NDArray[np.int64]
    broken: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: npt.NDArray[np.int64]) -> Block:
        """Some of the lines."""
        return Block(self.source, self.lines.take(pa.array(rows)), self.numbers[rows])

    def text(self) -> bytes:
        """The lines, each ended by a line feed."""
        return b"\n".join(self.lines.to_pylist()) + b"\n"


@dataclass(frozen=True)
class File:
    """A file of a data set: ``source`` is its path below the data's folder without .gz, the same for both forms."""

    path: Path
    source: str

    @classmethod
    def below(cls, root: Path, path: Path) -> File:
        """The file at ``path`` of the data in ``root``."""
        return cls(path, path.relative_to(root).as_posix().removesuffix(".gz"))


def read_blocks(file: File, block_bytes: int | None = None) -> Iterator[Block]:
    """Yields the file's lines in order; one that ends early (a torn .gz) says so in its last block."""
    block_bytes = block_bytes or BLOCK_BYTES
    carry, number, broken = b"", 1, ""
    chunks = _chunks(file.path)
    while True:
        gathered, size = [carry], len(carry)
        ended = True
        for data, problem in chunks:
            broken = broken or problem
            gathered.append(data)
            size += len(data)
            if size >= block_bytes and b"\n" in data:
                ended = False
                break
            if size > len(carry) + MAX_LINE_BYTES and not any(b"\n" in part for part in gathered):
                gathered = [b"".join(gathered)[:MAX_LINE_BYTES]]
                size = MAX_LINE_BYTES
        text = b"".join(gathered)
        cut = len(text) if ended else text.rindex(b"\n") + 1
        carry = text[cut:]
        block, number = _block(file.source, text[:cut], number, broken if ended else "")
        if len(block):
            yield block
        if ended:
            return


def _chunks(path: Path) -> Iterator[tuple[bytes, str]]:
    """(bytes, "") of a file, decompressed; a torn or corrupt .gz ends with (what could be read, why)."""
    with path.open("rb") as raw:
        if path.suffix != ".gz":
            while data := raw.read(_READ_BYTES):
                yield data, ""
            return
        inflate, started = zlib.decompressobj(wbits=31), False
        while data := raw.read(_READ_BYTES):
            while data:
                started = True
                try:
                    out = inflate.decompress(data)
                except zlib.error as error:
                    yield b"", f"not gzip from here on: {error}"
                    return
                if out:
                    yield out, ""
                data = inflate.unused_data
                if inflate.eof:  # another member may follow
                    inflate, started = zlib.decompressobj(wbits=31), False
        if started:
            yield inflate.flush(), "the gzip file ends early"


def _block(source: str, text: bytes, first: int, broken: str) -> tuple[Block, int]:
    if text and not text.endswith(b"\n"):
        text += b"\n"
    elif broken:
        text += b"\n"  # torn between lines: the empty last line carries the reason
    data = np.frombuffer(text, np.uint8)
    feeds = np.flatnonzero(data == _NEWLINE)
    count = len(feeds)
    offsets = np.zeros(count + 1, np.int64)
    offsets[1:] = feeds - np.arange(count)
    lines = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data[data != _NEWLINE])])
    numbers = np.arange(first, first + count, dtype=np.int64)
    size = np.diff(offsets)
    blank = size == 0
    for row in np.flatnonzero(size == 1).tolist():  # of lines ended by CR LF
        blank[row] = lines[row].as_py() == b"\r"
    if broken and count:
        blank[-1] = False
    block = Block(source, lines, numbers, broken)
    if blank.any():
        kept = np.flatnonzero(~blank)
        block = Block(source, lines.take(pa.array(kept)), numbers[kept], broken)
    return block, first + count
