"""Parses lines of delimited numbers into columns: a whole block at once, line by line only where that fails."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from beam_pipelines.importers.lines import Block

MALFORMED = "malformed_row"
TRUNCATED = "truncated_file"


@dataclass(frozen=True)
class Format:
    """Columns of numbers and the byte between them. ``header``: the files begin with a line of the columns' names."""

    columns: dict[str, pa.DataType]
    delimiter: str = ","
    header: bool = True


@dataclass
class Parsed:
    """A parsed block: row i of ``columns`` is line ``rows[i]`` of the block; the others are in ``bad``.

    ``bad``: line of the block -> (reason, detail).
    """

    columns: pa.Table
    rows: npt.NDArray[np.int64]
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)

    def refuse(self, mask: npt.NDArray[np.bool_], reason: str, detail: str) -> None:
        """Moves rows (those of a mask over ``columns``) to ``bad``."""
        if mask.any():
            self.bad.update(dict.fromkeys(self.rows[mask].tolist(), (reason, detail)))
            self.columns, self.rows = self.columns.filter(pa.array(~mask)), self.rows[~mask]


def without_header(block: Block, form: Format) -> Block:
    """The block without the line of column names, if it begins with one."""
    if form.header and len(block) and block.numbers[0] == 1:
        names = form.delimiter.join(form.columns).encode()
        first = block.lines[0].as_py().removeprefix(b"\xef\xbb\xbf").replace(b'"', b"").strip()
        if first == names:
            return Block(block.source, block.lines[1:], block.numbers[1:], block.broken)
    return block


def parse(block: Block, form: Format) -> Parsed:
    """Parses every line that can be; none of its numbers may be missing."""
    bad: dict[int, tuple[str, str]] = {}
    rows = np.arange(len(block))
    if block.broken:
        bad[len(block) - 1] = (TRUNCATED, block.broken)
        rows = rows[:-1]
    parts: list[tuple[pa.Table, npt.NDArray[np.int64]]] = []
    _parse_rows(block, rows, form, parts, bad)
    empty = pa.schema(list(form.columns.items())).empty_table()
    parsed = Parsed(pa.concat_tables([empty, *(t for t, _ in parts)]).combine_chunks(),
                    np.concatenate([np.zeros(0, np.int64), *(r for _, r in parts)]), bad)
    for name in form.columns:
        column = parsed.columns[name]
        if column.null_count:
            parsed.refuse(column.is_null().to_numpy(), MALFORMED, f"{name} is missing")
    return parsed


def _parse_rows(block: Block, rows: npt.NDArray[np.int64], form: Format,
                parts: list[tuple[pa.Table, npt.NDArray[np.int64]]], bad: dict[int, tuple[str, str]]) -> None:
    if not len(rows):
        return
    some = block if len(rows) == len(block) else block.take(rows)
    try:
        table = _read(some.text(), form)
        if len(table) != len(rows):
            raise pa.ArrowInvalid("a carriage return within a line")
        parts.append((table, rows))
        return
    except pa.ArrowInvalid as error:
        problem = str(error)
    fields = pc.count_substring(some.lines, form.delimiter).to_numpy() + 1
    uneven = fields != len(form.columns)
    if uneven.any():
        for row, found in zip(rows[uneven].tolist(), fields[uneven].tolist(), strict=True):
            bad[row] = (MALFORMED, f"{found} fields instead of {len(form.columns)}")
        _parse_rows(block, rows[~uneven], form, parts, bad)
    elif len(rows) == 1:
        bad[int(rows[0])] = (MALFORMED, _culprit(some.lines[0].as_py(), form) or problem)
    else:  # find the line by halves: a block with one bad number costs one more pass, not a slow one
        half = len(rows) // 2
        _parse_rows(block, rows[:half], form, parts, bad)
        _parse_rows(block, rows[half:], form, parts, bad)


def _read(text: bytes, form: Format) -> pa.Table:
    return csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=list(form.columns)),
        csv.ParseOptions(delimiter=form.delimiter, quote_char=False, ignore_empty_lines=False),
        csv.ConvertOptions(column_types=form.columns, null_values=[""], check_utf8=False))


def _culprit(line: bytes, form: Format) -> str:
    for (name, kind), text in zip(form.columns.items(), line.rstrip(b"\r").split(form.delimiter.encode()), strict=True):
        try:
            pa.scalar(text.decode(errors="replace").strip()).cast(kind)
        except pa.ArrowInvalid:
            return f"{name} is not a number: {text[:40].decode(errors='replace')!r}"
    return ""


def as_ids(numbers: pa.ChunkedArray) -> pa.DictionaryArray:
    """Numeric ids as dictionary-encoded strings: each distinct one is spelled once."""
    encoded = numbers.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], numbers.type).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.cast(pa.string()))


def constant(value: str, rows: int) -> pa.DictionaryArray:
    """One string, ``rows`` times."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value], pa.string()))
