"""Records of a log to valid events and dead letters, all in columns.

The first byte tells a record's format: ``01 'B' 'R' 'P'`` a pack; ``00`` and a 4-byte big-endian id the Confluent header
before an Avro event; ``C3 01`` and an 8-byte fingerprint Avro's single-object encoding; anything else an Avro event of
event.v1 without a header.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas import avro
from schemas.arrow import TIMESTAMP, arrow_schema
from schemas.tables import DEAD_LETTERS
from schemas.xxh3 import hash64_strings
from transforms.ingest import REASONS, validate
from transforms.records.avro_columns import PROBLEMS, plan_of, read_events
from transforms.records.avro_library import event_fingerprints, read_with_library
from transforms.records.base import (
    BAD_PACK,
    EMPTY,
    MAX_RECORD_BYTES,
    NOT_AVRO,
    TOO_LARGE,
    UNKNOWN_FORMAT,
    UNKNOWN_SCHEMA,
    Decoded,
    Records,
    SchemaRegistry,
)
from transforms.records.encoded import ENCODED_EVENTS, encoded, joined
from transforms.records.kernels import LIBRARY
from transforms.records.pack import MAGIC, PackError, sound, unpack

_CONFLUENT_HEADER, _OBJECT_HEADER = 5, 10

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Part:
    """Events of some records: m rows of event columns (encoded), the record of each and its index in the pack."""

    columns: dict[str, pa.Array]
    rows: npt.NDArray[np.int64]
    index: npt.NDArray[np.int32]


@dataclass
class _Letters:
    """Dead letters as they are found: (record, index in the pack, reason, detail, payload)."""

    found: list[tuple[int, int, str, str, bytes]]

    def bury(self, records: Records, row: int, reason: str, detail: str) -> None:
        """A whole record."""
        self.found.append((row, 0, reason, detail, records.record(row)))

    def batch(self, records: Records, source: str) -> pa.RecordBatch:
        """Rows of DEAD_LETTERS, in the records' order."""
        self.found.sort(key=_place)
        rows = np.array([letter[0] for letter in self.found], np.int64)
        return pa.RecordBatch.from_arrays([
            pa.array([source] * len(rows), pa.string()), pa.array(records.partition[rows]), pa.array(records.offset[rows]),
            pa.array([letter[1] for letter in self.found], pa.int32()),
            *(pa.array([letter[i] for letter in self.found], pa.string()) for i in (2, 3)),
            pa.array([letter[4] for letter in self.found], pa.binary()),
        ], schema=DEAD_LETTERS.schema)


def _place(letter: tuple[int, int, str, str, bytes]) -> tuple[int, int]:
    return letter[:2]


def decode(records: Records, source: str, registry: SchemaRegistry | None = None) -> Decoded:
    """The valid events of a poll in the records' order, and its dead letters; never raises on bad input.

    Args:
      records: what was polled.
      source: name of the log in positions.
      registry: where the ids of Confluent headers are looked up; None: such records are of the newest event schema.
    """
    letters = _Letters([])
    parts = _parts(records, registry, letters)
    columns, rows, index = _ordered(parts)
    if columns["ingested_at"].null_count:
        columns["ingested_at"] = _filled(columns["ingested_at"], records.timestamp[rows])
    events = pa.RecordBatch.from_arrays(
        [*(columns[name] for name in arrow_schema("event").names),
         pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([source])),
         pa.array(records.partition[rows]), pa.array(records.offset[rows]), pa.array(index),
         pa.array(hash64_strings(columns["event_id"]).view(np.int64))], schema=ENCODED_EVENTS)
    code = validate(pa.Table.from_batches([events]))
    bad = np.flatnonzero(code)
    if len(bad):
        _refuse(records, events, rows, code, bad, letters)
        events = events.take(pa.array(np.flatnonzero(code == 0)))
    return Decoded(events, letters.batch(records, source))


def _refuse(records: Records, events: pa.RecordBatch, rows: Rows, code: npt.NDArray[np.int8], bad: Rows,
            letters: _Letters) -> None:
    index = events.column("index").to_numpy()
    plain = events.select(arrow_schema("event").names)
    for at in bad.tolist():
        row, reason = int(rows[at]), REASONS[code[at]]
        payload = records.record(row)
        if payload.startswith(MAGIC):
            payload = json.dumps(plain.slice(at, 1).to_pylist()[0], default=str).encode()
        letters.found.append((row, int(index[at]), reason, f"the event is refused: {reason.replace('_', ' ')}", payload))


def _parts(records: Records, registry: SchemaRegistry | None, letters: _Letters) -> list[_Part]:
    starts, ends = records.starts, records.ends
    sizes = ends - starts
    padded = np.append(records.data, np.zeros(_OBJECT_HEADER, np.uint8)) if len(sizes) and int(
        starts[-1]) + _OBJECT_HEADER > len(records.data) else records.data
    head = padded[starts[:, None] + np.arange(4)] if len(sizes) else np.zeros((0, 4), np.uint8)
    for row in np.flatnonzero(sizes == 0).tolist():
        letters.bury(records, row, EMPTY, "the record has no bytes")
    for row in np.flatnonzero(sizes > MAX_RECORD_BYTES).tolist():
        letters.bury(records, row, TOO_LARGE, f"the record has {sizes[row]:,} bytes")
    usable = (sizes > 0) & (sizes <= MAX_RECORD_BYTES)
    is_pack = usable & (head[:, 0] == MAGIC[0])
    is_confluent = usable & (head[:, 0] == 0)
    is_object = usable & (head[:, 0] == 0xC3) & (head[:, 1] == 0x01)
    parts = []
    plain = np.flatnonzero(usable & ~is_pack & ~is_confluent & ~is_object)
    if len(plain):
        parts += _avro(records, plain, 0, avro.load("event", 1), letters)
    if is_pack.any():
        parts += _packs(records, np.flatnonzero(is_pack), letters)
    if is_confluent.any():
        parts += _with_header(records, np.flatnonzero(is_confluent), padded, _CONFLUENT_HEADER, registry, letters)
    if is_object.any():
        parts += _with_header(records, np.flatnonzero(is_object), padded, _OBJECT_HEADER, registry, letters)
    return parts


def _with_header(records: Records, rows: Rows, padded: npt.NDArray[np.uint8], header: int, registry: SchemaRegistry | None,
                 letters: _Letters) -> list[_Part]:
    """Avro events behind a header that names the writer's schema."""
    parts = []
    short = records.ends[rows] - records.starts[rows] < header
    for row in rows[short].tolist():
        letters.bury(records, row, UNKNOWN_FORMAT, "the record ends within its header")
    rows = rows[~short]
    names = np.ascontiguousarray(padded[records.starts[rows][:, None] + np.arange(header)]).view(f"V{header}").ravel()
    for name in set(names.tolist()):
        mine = rows[names == np.void(name)]
        if header == _OBJECT_HEADER:
            writer = event_fingerprints().get(name[2:])
            unknown = f"no event schema has the fingerprint {name[2:].hex()}"
        else:
            number = int.from_bytes(name[1:], "big")
            writer = registry.writer_schema(number) if registry is not None else avro.load("event")
            unknown = f"the registry knows no schema {number}"
        if writer is None:
            for row in mine.tolist():
                letters.bury(records, row, UNKNOWN_SCHEMA, unknown)
            continue
        parts += _avro(records, mine, header, writer, letters)
    return parts


def _avro(records: Records, rows: Rows, skip: int, writer: Mapping[str, Any], letters: _Letters) -> list[_Part]:
    """Avro events of one writer schema, ``skip`` bytes into each record."""
    plan, rest = plan_of(writer), rows
    parts: list[_Part] = []
    if plan is not None:
        read = read_events(records.data, records.starts[rows] + skip, records.ends[rows], plan)
        good = rows[read.rows]
        parts.append(_Part(read.columns, good, np.zeros(len(good), np.int32)))
        for at in np.flatnonzero((read.error != 0) & (read.error != LIBRARY)).tolist():
            where = f", field {plan.names[read.field[at]]}" if read.field[at] >= 0 else ""
            letters.bury(records, int(rows[at]), NOT_AVRO, f"{PROBLEMS[int(read.error[at])]}{where}")
        rest = rows[read.error == LIBRARY]
    if len(rest):
        events, whose = [], []
        for row in rest.tolist():
            try:
                events.append(read_with_library(records.record(row)[skip:], writer))
                whose.append(row)
            except ValueError as error:
                letters.bury(records, row, NOT_AVRO, str(error))
        batch = pa.RecordBatch.from_pylist(events, schema=arrow_schema("event"))
        parts.append(_Part(encoded(batch), np.array(whose, np.int64), np.zeros(len(whose), np.int32)))
    return parts


def _packs(records: Records, rows: Rows, letters: _Letters) -> list[_Part]:
    batches: list[pa.RecordBatch] = []
    good: list[int] = []
    data = memoryview(np.ascontiguousarray(records.data).data)
    for row in rows.tolist():
        record = data[records.ends[row - 1] if row else 0 : records.ends[row]]
        if record[:4] != MAGIC:
            letters.bury(records, row, UNKNOWN_FORMAT, "the first bytes name no known format")
            continue
        try:
            batches.append(unpack(record))
            good.append(row)
        except PackError as error:
            letters.bury(records, row, TOO_LARGE if error.too_large else BAD_PACK, str(error))
    whole = _combined(batches)
    if not all(sound(part) for part in whole):
        right = [sound(b) for b in batches]
        for row, fine in zip(good, right, strict=True):
            if not fine:
                letters.bury(records, row, BAD_PACK, "a string is not UTF-8, or lies outside of the pack")
        batches, good = list(itertools.compress(batches, right)), list(itertools.compress(good, right))
        whole = _combined(batches)
    sizes = np.array([len(b) for b in batches], np.int64)
    origin = np.repeat(np.array(good, np.int64), sizes)
    index = (np.arange(len(origin)) - np.repeat(np.cumsum(sizes) - sizes, sizes)).astype(np.int32)
    parts, at = [], 0
    for part in whole:
        parts.append(_Part(encoded(part), origin[at : at + len(part)], index[at : at + len(part)]))
        at += len(part)
    return parts


def _combined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """All rows in one batch; in several beyond 2 GiB of one column."""
    found: list[pa.RecordBatch] = pa.Table.from_batches(batches, arrow_schema("event")).combine_chunks().to_batches()
    return found


def _ordered(parts: list[_Part]) -> tuple[dict[str, pa.Array], Rows, npt.NDArray[np.int32]]:
    """All parts as one, in the records' order."""
    parts = [p for p in parts if len(p.rows)]
    if not parts:
        empty = pa.RecordBatch.from_pylist([], schema=arrow_schema("event"))
        return encoded(empty), np.zeros(0, np.int64), np.zeros(0, np.int32)
    if len(parts) == 1:
        return dict(parts[0].columns), parts[0].rows, parts[0].index
    rows, index = np.concatenate([p.rows for p in parts]), np.concatenate([p.index for p in parts])
    order = np.lexsort((index, rows))
    columns = {name: joined([p.columns[name] for p in parts]).take(pa.array(order)) for name in arrow_schema("event").names}
    return columns, rows[order], index[order]


def _filled(column: pa.Array, timestamps: npt.NDArray[np.int64]) -> pa.Array:
    """A timestamp column whose nulls are those of the log records."""
    given = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.cast(pa.int64()).fill_null(0).to_numpy()
    return pa.array(np.where(given, values, timestamps)).cast(TIMESTAMP)
