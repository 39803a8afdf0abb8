"""From merged accumulators of one bucket to the rows of a snapshot table, and from those rows to store cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.cells import encode_list, encode_vectors
from schemas.features import FEATURES, SEGMENTS, features_of, group
from schemas.tables import ITEM_SNAPSHOTS, USER_SNAPSHOTS
from schemas.workspace import DAY_MICROS
from transforms.accumulators import (
    Accumulator,
    ItemCooccurrence,
    ItemDays,
    ItemSeen,
    UserAffinity,
    UserConsumed,
    UserDays,
    UserLastItems,
    UserLikedItems,
    UserSeen,
)
from transforms.accumulators.base import Extract, Globals, Lists
from transforms.accumulators.frame import Ids

NEW_DAYS, POWER_DAYS = 7, 8
"""A user is new for this many days, and a power user from this many active days in 30."""

A = TypeVar("A", bound=Accumulator)
_TABLES = {"user": USER_SNAPSHOTS, "item": ITEM_SNAPSHOTS}


def extract_groups(groups: Sequence[str], merged: Mapping[str, Accumulator], as_of: int, totals: Globals) -> list[Extract]:
    """Extracts of the feature groups; ``merged`` has their accumulators (GROUP_ACCUMULATORS) with every event before as_of."""
    found = []
    for name in groups:
        if name == "user_stats":
            found += _user_stats(merged, as_of)
        elif name == "user_affinity":
            found.append(_as(UserAffinity, merged).extract(as_of))
        elif name == "user_last_items":
            found.append(_as(UserLastItems, merged).extract(as_of))
        elif name == "user_liked_items":
            found.append(_as(UserLikedItems, merged).extract(as_of))
        elif name == "user_consumed":
            found.append(_as(UserConsumed, merged).extract(as_of))
        elif name == "item_stats":
            found += [_as(ItemDays, merged).extract(as_of, totals), _as(ItemSeen, merged).extract(as_of)]
        elif name == "item_cooccurrence":
            found.append(_as(ItemCooccurrence, merged).extract(as_of, totals))
    return found


def _as(kind: type[A], merged: Mapping[str, Accumulator]) -> A:
    accumulator = merged[kind.NAME]
    assert isinstance(accumulator, kind)
    return accumulator


def _user_stats(merged: Mapping[str, Accumulator], as_of: int) -> list[Extract]:
    days = _as(UserDays, merged).extract(as_of)
    activity = _as(UserLastItems, merged).activity(as_of)
    seen = merged[UserSeen.NAME].frame
    active = align(seen.entities, days.entities, days.columns["active_days_30d"], 0.0)
    segment = np.full(len(seen.entities), SEGMENTS.index("casual"), float)
    segment[active >= POWER_DAYS] = SEGMENTS.index("power")
    segment[seen.values["first"] > (as_of - NEW_DAYS) * DAY_MICROS] = SEGMENTS.index("new")
    segment[active == 0] = SEGMENTS.index("dormant")
    return [days, activity, Extract(seen.entities, {"segment": segment})]


def align(base: Ids, entities: Ids, values: object, default: float) -> npt.NDArray[np.float64]:
    """Values of ``entities`` in the order of ``base`` (which has them all); ``default`` for the rest."""
    out = np.full(len(base), default)
    out[np.searchsorted(base.hashes, entities.hashes)] = values
    return out


def snapshot_rows(entity: str, extracts: Sequence[Extract], as_of: int, published_at: int,
                  groups: Sequence[str]) -> pa.Table:
    """Rows of ``user_snapshots`` or ``item_snapshots``: one per entity of any extract, in order of the id's hash.

    Ids in lists are dictionary-encoded.

    Args:
      as_of: day number; published_at: microseconds.
      groups: what was computed: an entity without values has the feature's default (a list: empty). Features of other
        groups are null.
    """
    schema = _TABLES[entity].schema
    base = Ids.union([e.entities for e in extracts])[0] if extracts else Ids.empty()
    n = len(base)
    found = {name: (e.entities, column) for e in extracts for name, column in e.columns.items()}
    columns: dict[str, pa.Array] = {
        "as_of": pa.array(np.full(n, as_of * DAY_MICROS)).cast(schema.field("as_of").type),
        "published_at": pa.array(np.full(n, published_at)).cast(schema.field("published_at").type),
        f"{entity}_id": base.ids.cast(pa.string()),
    }
    for feature in FEATURES:
        if feature.entity != entity or feature.source != "batch":
            continue
        if feature.group not in groups:
            columns[feature.name] = pa.nulls(n, schema.field(feature.name).type)
        elif feature.dtype == "list":
            entities, lists = found[feature.name]
            assert isinstance(lists, Lists)
            columns[feature.name] = _list_column(base, entities, lists)
        else:
            entities, values = found[feature.name]
            default = np.nan if feature.default is None else feature.default
            aligned = align(base, entities, values, default).astype(np.float32)
            columns[feature.name] = pa.array(aligned, mask=np.isnan(aligned))
    return pa.table([columns[f.name] for f in schema],
                    schema=pa.schema([f.with_type(columns[f.name].type) for f in schema]))


def write_rows(rows: pa.Table, path: str, metadata: Mapping[str, str]) -> None:
    """Writes rows of ``snapshot_rows`` as one Parquet file that reads back as the table's schema.

    Only ids of lists are dictionary-encoded, as they come: to look every number up costs more than all else here.
    """
    lists = [f"{f.name}.ids.list.element" for f in rows.schema if pa.types.is_struct(f.type)]
    with pq.ParquetWriter(path, rows.schema, compression="lz4", use_dictionary=lists or False,
                          store_schema=False) as writer:
        writer.write_table(rows, row_group_size=65_536)
        writer.add_key_value_metadata(dict(metadata))


def _list_column(base: Ids, entities: Ids, lists: Lists) -> pa.Array:
    lengths = np.zeros(len(base), np.int64)
    lengths[np.searchsorted(base.hashes, entities.hashes)] = np.diff(lists.offsets)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    return pa.StructArray.from_arrays(
        [pa.ListArray.from_arrays(offsets, values)
         for values in (lists.ids, pa.array(lists.times), pa.array(lists.scores))],
        names=["ids", "times", "scores"])


def store_cells(entity: str, rows: pa.Table, groups: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """(entity id, group, packed cell) of every entity and group; an empty list is left out."""
    rows = rows.combine_chunks()
    ids = rows.column(f"{entity}_id").to_pylist()
    for name in groups:
        spec = group(name)
        if spec.entity != entity or spec.source != "batch" or not ids:
            continue
        features = features_of(name)
        if spec.layout == "vector":
            matrix = np.column_stack([rows.column(f.name).cast(pa.float32()).fill_null(np.nan).to_numpy() for f in features])
            yield from zip(ids, [name] * len(ids), encode_vectors(spec.id, matrix), strict=True)
            continue
        column = rows.column(features[0].name).chunk(0)
        offsets = column.field("ids").offsets.to_numpy()
        flat = column.field("ids").values.to_pylist()
        times, scores = column.field("times").values.to_numpy(), column.field("scores").values.to_numpy()
        for i, entity_id in enumerate(ids):
            start, end = offsets[i], offsets[i + 1]
            if end > start:
                yield entity_id, name, encode_list(spec.id, flat[start:end], times[start:end], scores[start:end])
