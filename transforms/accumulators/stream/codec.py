"""Packed states: one Arrow IPC stream of one row, each column a list; integers as narrow as they fit; lz4."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.accumulators.frame import Ids, Ints
from transforms.accumulators.stream.base import StateError
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.table import Table


def pack(layout: int, names: Mapping[str, Names], tables: Mapping[str, Table], parts: Mapping[str, tuple[str, str | None]],
         horizon: int, ordered: bool = True) -> bytes:
    """Packs a state.

    Args:
      layout: version that ``unpack`` asks for.
      parts: for each table the names of its entities, and of its members (None: they are all 0).
      horizon: up to which rows were pruned.
      ordered: in one order, whatever the order in which it was filled, and without the ids that nothing names any more. Else as
        it lies in memory, in a tenth of the time.
    """
    columns: dict[str, pa.Array] = {}
    ranks: dict[str, Ints] = {}
    for name, known in names.items():
        there = known.by_hash(_used(name, len(known), tables, parts)) if ordered else np.arange(len(known))
        ranks[name] = np.full(len(known), -1, np.int64)
        ranks[name][there] = np.arange(len(there))
        ids = known.ids(there)
        columns[f"{name}.hash"], columns[f"{name}.id"] = pa.array(ids.hashes), ids.ids
    for name, table in tables.items():
        entity, member = parts[name]
        owner = ranks[entity][table.entity]
        other = ranks[member][table.member] if member else np.zeros(len(table), np.int64)
        order: Ints | slice = slice(None)
        if ordered:
            order = np.lexsort((other, table.pane, owner))
            columns[f"{name}.entity"] = _narrow(np.diff(owner[order], prepend=0))
        else:
            columns[f"{name}.owner"] = _narrow(owner)
        columns[f"{name}.pane"] = _narrow(_shifted(table.pane[order]))
        columns[f"{name}.base"] = pa.array([int(table.pane.min()) if len(table) else 0], pa.int64())
        if member:
            columns[f"{name}.member"] = _narrow(other[order])
        for k in range(len(table.ops)):
            columns[f"{name}.{k}"] = _narrow(table.values[order, k])
    batch = pa.RecordBatch.from_arrays(
        [pa.LargeListArray.from_arrays(pa.array([0, len(c)], pa.int64()), c) for c in columns.values()], names=list(columns))
    batch = batch.replace_schema_metadata({"layout": str(layout), "horizon": str(horizon)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def unpack(data: bytes, layout: int, names: Mapping[str, Names], tables: Mapping[str, Table],
           parts: Mapping[str, tuple[str, str | None]]) -> int:
    """Fills empty names and tables from packed bytes and returns the horizon; raises StateError."""
    try:
        batch = pa.ipc.open_stream(data).read_next_batch()
        metadata = batch.schema.metadata or {}
        found = metadata.get(b"layout", b"?").decode()
        if found != str(layout):
            raise StateError(f"the state was written in layout {found}, this version reads layout {layout}: drain the old job "
                             "before upgrading, or start from the log again")
        columns = {name: column.values for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        codes = {name: known.adopt(Ids(columns[f"{name}.hash"].to_numpy(), columns[f"{name}.id"]))
                 for name, known in names.items()}
        for name, table in tables.items():
            if f"{name}.base" not in columns:
                raise StateError(f"the state has no {name}: it was written by a job with fewer feature groups")
            entity, member = parts[name]
            found_owner = _wide(columns[f"{name}.owner"]) if f"{name}.owner" in columns else \
                np.cumsum(_wide(columns[f"{name}.entity"]))
            owner = codes[entity][found_owner]
            pane = _wide(columns[f"{name}.pane"]) + columns[f"{name}.base"][0].as_py()
            other = codes[member][_wide(columns[f"{name}.member"])] if member else np.zeros(len(owner), np.int64)
            values = np.empty((len(owner), len(table.ops)), np.int64)
            for k in range(len(table.ops)):
                values[:, k] = columns[f"{name}.{k}"].to_numpy()
            table.add(owner, pane, other, values)
        return int(metadata[b"horizon"])
    except StateError:
        raise
    except (pa.ArrowException, KeyError, StopIteration, ValueError, IndexError, OSError) as error:
        raise StateError(f"not a packed state: {error}") from error


def _used(name: str, count: int, tables: Mapping[str, Table], parts: Mapping[str, tuple[str, str | None]]) -> Ints:
    """Codes of names, of so many, that a table's rows have."""
    used = np.zeros(count, bool)
    for part, (entity, member) in parts.items():
        for role, codes in ((entity, tables[part].entity), (member, tables[part].member)):
            if role == name:
                used[codes] = True
    return np.flatnonzero(used)


def _shifted(panes: Ints) -> Ints:
    return panes - panes.min() if len(panes) else panes


def _wide(column: pa.Array) -> Ints:
    return column.to_numpy().astype(np.int64)


def _narrow(values: npt.NDArray[np.integer]) -> pa.Array:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return pa.array(values.astype(kind))
    return pa.array(values.astype(np.int64))
