"""How a store lies in Bigtable: tables and families (docs/store.md), and the requests and filters that read and write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl

from google.cloud.bigtable_v2.types import data as data_types

from serving.stores.base import ANY, MAX_PREFIX_CELLS, Active, Cell, Family, ListWrite, StoreError
from serving.stores.bigtable_rpc import CheckAndMutateRowRequest, MutateRowsRequest, ReadRowsRequest, Row

FAMILIES: tuple[str, ...] = get_args(Family)
LISTS, POINTER, KNOWN = "lists", "pointer", "versions"
TABLES: dict[str, tuple[str, ...]] = {"features": FAMILIES, "recommendations": (LISTS,), "active": (POINTER, KNOWN)}
"""Tables and their families. In each the newest cell of a column counts; older ones are garbage."""

CHUNK_ROWS = 1_000
CHUNK_BYTES = 4 << 20
READ_KEYS = 1_000

SURFACE = "surface#"
VERSIONS = "versions"
_COLUMN = b"active"
Filter = type(data_types.RowFilter.pb(data_types.RowFilter()))
Mutation = type(data_types.Mutation.pb(data_types.Mutation()))
RawCell = tuple[str, str, bytes, int, bytes]
"""row, family, qualifier, timestamp, value."""


@dataclass(frozen=True)
class Layout:
    """Where a store lies in Bigtable, and its requests.

    Attributes:
      instance: ``projects/P/instances/I``.
      prefix: before the tables' names; profile: the application profile, "" for the default.
      refused: file for rows of bulk writes that are refused for good; None: they raise.
    """

    instance: str
    prefix: str = ""
    profile: str = ""
    refused: Path | None = None

    @classmethod
    def of(cls, uri: str) -> Layout:
        """Of a store URI; raises StoreError."""
        instance, options = parse_uri(uri)
        refused = Path(options["refused"]) if options.get("refused") else None
        return cls(instance, options.get("prefix", ""), options.get("app_profile", ""), refused)

    def table(self, name: str) -> str:
        """The full name of a table."""
        return f"{self.instance}/tables/{self.prefix}{name}"

    def read(self, table: str, *filters: Any) -> Any:
        """A read of the newest cells that pass the filters; the caller adds the rows."""
        chain = Filter(chain=Filter.Chain(filters=[*filters, Filter(cells_per_column_limit_filter=1)]))
        return ReadRowsRequest(table_name=self.table(table), app_profile_id=self.profile, filter=chain)

    def mutate(self, table: str, rows: Mapping[str, Sequence[Any]]) -> Any:
        """A bulk write of mutations by row."""
        request = MutateRowsRequest(table_name=self.table(table), app_profile_id=self.profile)
        for row, mutations in rows.items():
            request.entries.add(row_key=row.encode(), mutations=mutations)
        return request

    def swap(self, row: str, family: str, group: str, held: Cell | None, new: Cell) -> Any:
        """The CheckAndMutate that replaces a cell: it is done where the predicate's outcome equals ``held is not None``."""
        seen = [in_family(family), named([group]), Filter(cells_per_column_limit_filter=1)]
        if held is not None:
            seen.append(_exactly(held.value))
        write = [set_cell(family, group.encode(), new.timestamp, new.value)]
        return CheckAndMutateRowRequest(
            table_name=self.table("features"), app_profile_id=self.profile, row_key=row.encode(),
            predicate_filter=Filter(chain=Filter.Chain(filters=seen)),
            **{"true_mutations" if held is not None else "false_mutations": write})

    def flip(self, surface: str, expected: Active | None, new: Active) -> Any:
        """The CheckAndMutate of a flip: it is done where the predicate's outcome equals ``bool(expected)``."""
        seen = [in_family(POINTER), named([_COLUMN.decode()]), Filter(cells_per_column_limit_filter=1)]
        if expected is not None:
            seen.append(_exactly(_bytes_of(expected)))
        # The column is emptied too: a cell with an older timestamp than the one there would change nothing.
        write = [delete_column(POINTER, _COLUMN), set_cell(POINTER, _COLUMN, 0, _bytes_of(new))]
        return CheckAndMutateRowRequest(
            table_name=self.table("active"), app_profile_id=self.profile, row_key=surface_row(surface).encode(),
            predicate_filter=Filter(chain=Filter.Chain(filters=seen)),
            **{"true_mutations" if expected else "false_mutations": write})


def parse_uri(uri: str) -> tuple[str, dict[str, str]]:
    """(``projects/P/instances/I``, options) of ``bigtable://P/I?prefix=x_&app_profile=y``; raises StoreError."""
    place, _, query = uri.removeprefix("bigtable://").partition("?")
    project, _, instance = place.partition("/")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not uri.startswith("bigtable://") or not project or not instance or "/" in instance:
        raise StoreError(f"--store {uri!r} is not bigtable://PROJECT/INSTANCE")
    if unknown := set(options) - {"prefix", "app_profile", "refused"}:
        raise StoreError(f"--store {uri!r}: no option {', '.join(sorted(unknown))}; there are prefix, app_profile and refused")
    return f"projects/{project}/instances/{instance}", options


def surface_row(surface: str) -> str:
    """The row of a surface's pointer."""
    return SURFACE + surface


def registration(version: str) -> RawCell:
    """The cell of ``active`` that makes a version known."""
    return VERSIONS, KNOWN, version.encode(), 0, b""


def list_cell(write: ListWrite) -> RawCell:
    """A ranked list as a cell."""
    return write.row, LISTS, write.version.encode(), write.cell.timestamp, write.cell.value


def set_cell(family: str, qualifier: bytes, timestamp: int, value: bytes) -> Any:
    """The mutation that writes a cell."""
    return Mutation(set_cell=Mutation.SetCell(family_name=family, column_qualifier=qualifier, timestamp_micros=timestamp,
                                                value=value))


def delete_column(family: str, qualifier: bytes, before: int | None = None) -> Any:
    """The mutation that empties a column, of all cells or of those older than a timestamp."""
    gone = Mutation.DeleteFromColumn(family_name=family, column_qualifier=qualifier)
    if before is not None:
        gone.time_range.end_timestamp_micros = before // 1000 * 1000
    return Mutation(delete_from_column=gone)


def mutations(table: str, cells: Iterable[RawCell]) -> dict[str, list[Any]]:
    """Mutations by row that write cells; raises StoreError, ValueError on a cell that no store takes."""
    rows: dict[str, list[Any]] = {}
    for row, family, qualifier, timestamp, value in cells:
        if timestamp % 1000:
            raise StoreError("a timestamp is a multiple of 1000 microseconds")
        if table == "features":
            check_family(family)
        rows.setdefault(row, []).append(set_cell(family, qualifier, timestamp, value))
    return rows


def check_family(family: str) -> None:
    """Raises ValueError on a family that features do not have."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; one of {', '.join(FAMILIES)}")


def chunks(cells: Iterable[RawCell]) -> Iterator[list[RawCell]]:
    """Cells in parts that fit into one request."""
    part: list[RawCell] = []
    size = 0
    for cell in cells:
        part.append(cell)
        size += len(cell[4]) + 100
        if len(part) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def key_parts(rows: Iterable[str]) -> Iterator[list[bytes]]:
    """Row keys of reads, each once, in order, as many as one request takes."""
    keys = sorted({row.encode() for row in rows})
    for start in range(0, len(keys), READ_KEYS):
        yield keys[start : start + READ_KEYS]


def cells_of(row: Row) -> dict[str, Cell]:
    """The cells of a row of one family, by group."""
    return {qualifier.decode(): Cell(value, stamp) for _, qualifier, stamp, value in row.cells}


def in_family(*names: str) -> Any:
    """Cells of some families."""
    return Filter(family_name_regex_filter="|".join(names))


def named(groups: Iterable[str]) -> Any:
    """Columns of these names, or that begin with those that end in ANY."""
    patterns = [_escaped(g[:-1]) + b"\\C*" if g.endswith(ANY) else _escaped(g) for g in groups]
    return Filter(column_qualifier_regex_filter=b"|".join(patterns))


def _exactly(value: bytes) -> Any:
    """Cells of this value."""
    return Filter(value_range_filter=data_types.ValueRange.pb(data_types.ValueRange(
        start_value_closed=value, end_value_closed=value)))


def _escaped(name: str) -> bytes:
    """For RE2, byte by byte: a name is not UTF-8 to it."""
    return b"".join(bytes([b]) if chr(b).isalnum() and b < 128 else b"\\x%02x" % b for b in name.encode())


def capped(cells: dict[str, Cell], groups: Sequence[str]) -> dict[str, Cell]:
    """The cells among ``groups``, of each prefix the newest MAX_PREFIX_CELLS."""
    prefixes = [g[:-1] for g in groups if g.endswith(ANY)]
    if not prefixes:
        return cells
    asked = set(groups)
    kept = {group: cell for group, cell in cells.items() if group in asked}
    for prefix in prefixes:
        under = sorted((g for g in cells if g.startswith(prefix)), key=lambda g: (-cells[g].timestamp, g))
        kept.update((g, cells[g]) for g in under[:MAX_PREFIX_CELLS])
    return kept


def _bytes_of(pointer: Active) -> bytes:
    return json.dumps(asdict(pointer), sort_keys=True).encode()


def pointer_of(row: Row) -> Active:
    """The pointer in a row of ``active``."""
    return Active(**json.loads(row.cells[0][3]))
