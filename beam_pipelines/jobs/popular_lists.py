"""What is popular with whom, for users without a list: per segment, and per common sign-up attribute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_pipelines.io.lake import DataFile, Lake
from models.inference.bundle_write import POPULAR_ITEMS
from schemas.features import SEGMENTS
from serving.ranking.prior import attribute_segment
from transforms.catalogue import Catalogue, lengths_of, positions_of

SAMPLED_USERS = 50_000
"""Popular lists come from so many users at most: snapshots lie in the order of a hash, so the first are a sample of all."""
RECENT_ITEMS = 10
"""Newest items of a user that count."""
ATTRIBUTE_USERS, ATTRIBUTE_LISTS = 50, 100
"""A value of a sign-up attribute gets a list where so many sampled users have it; so many lists at most, the commonest."""
PROFILES_UP_TO = 5_000_000
"""Of a larger table of users no attributes are read: it would not fit beside everything else."""
PROFILE_COLUMNS = ("user_id", "country", "attributes")

_PAIRS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))

Ints = npt.NDArray[np.int64]
Popular = dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Sample:
    """n users: ids, segment codes (-1: none), and what each touched lately: item positions by the row of their user."""

    ids: pa.StringArray
    segment: Ints
    owner: Ints
    item: npt.NDArray[np.int32]


def read_profiles(lake: Lake) -> pa.Table | None:
    """Sign-up attributes of all users; None where there are none, or too many to hold."""
    rows = sum(f.rows for f in lake.files("users"))
    return lake.read("users", PROFILE_COLUMNS) if 0 < rows <= PROFILES_UP_TO else None


def popular_lists(files: Sequence[DataFile], profiles: pa.Table | None, catalogue: Catalogue, as_of: int) -> Popular:
    """(positions of active items, scores in (0, 1]) per name, best first.

    A score is log(1 + users who touched the item lately), divided by its maximum; ties by popularity with everybody. Names
    are those of schemas.features.SEGMENTS and of serving.ranking.prior.attribute_segment.
    """
    users = sample(files, catalogue, as_of)
    touched, place = np.unique(users.item, return_inverse=True)
    allowed = catalogue.active[touched]
    found: Popular = {}
    for name, members in (*_segments(users), *_attributes(users, profiles)):
        counts = np.bincount(place[members[users.owner]], minlength=len(touched)) * allowed
        order = np.lexsort((touched, -catalogue.popularity[touched], -counts))[:POPULAR_ITEMS]
        order = order[counts[order] > 0]
        if len(order):
            logs = np.log1p(counts[order])
            found[name] = touched[order].astype(np.int32), (logs / logs[0]).astype(np.float32)
    return found


def sample(files: Sequence[DataFile], catalogue: Catalogue, as_of: int) -> Sample:
    """The first SAMPLED_USERS of snapshot files, by whole row groups."""
    parts: list[Sample] = []
    left = SAMPLED_USERS
    for path in (f.path for f in files):
        with pq.ParquetFile(path, read_dictionary=["last_items.ids.list.element"]) as file:
            for group in range(file.num_row_groups):
                if left <= 0:
                    break
                rows = file.read_row_group(group, columns=["as_of", "user_id", "segment", "last_items.ids"])
                for batch in rows.filter(pc.equal(rows["as_of"].cast(pa.int64()), as_of)).to_batches():
                    parts.append(_sample_of(batch, catalogue))
                    left -= batch.num_rows
    starts = np.cumsum([0, *(len(p.ids) for p in parts)])
    none = np.zeros(0, np.int64)
    return Sample(pa.concat_arrays([pa.array([], pa.string()), *(p.ids for p in parts)]),
                  np.concatenate([none, *(p.segment for p in parts)]),
                  np.concatenate([none, *(p.owner + start for p, start in zip(parts, starts[:-1], strict=True))]),
                  np.concatenate([none.astype(np.int32), *(p.item for p in parts)]))


def _sample_of(batch: pa.RecordBatch, catalogue: Catalogue) -> Sample:
    segment = np.nan_to_num(batch.column("segment").to_numpy(zero_copy_only=False), nan=-1).astype(np.int64)
    ids = pc.struct_field(batch.column("last_items"), "ids")
    lengths, flat = lengths_of(ids), pc.list_flatten(ids)
    rank = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    recent = flat.filter(pa.array(rank < RECENT_ITEMS))
    recent = recent if pa.types.is_dictionary(recent.type) else recent.dictionary_encode()
    at = positions_of(recent.dictionary, catalogue.item_ids)
    item = at[recent.indices.to_numpy(zero_copy_only=False)] if len(at) else np.zeros(0, np.int32)
    owner = np.repeat(np.arange(batch.num_rows), np.minimum(lengths, RECENT_ITEMS))
    return Sample(batch.column("user_id").cast(pa.string()), segment, owner[item >= 0], item[item >= 0])


def _segments(users: Sample) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    yield from ((name, users.segment == code) for code, name in enumerate(SEGMENTS))


def _attributes(users: Sample, profiles: pa.Table | None) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """(name, who of the sample has it) of the most common attribute values; ties by name."""
    if profiles is None:
        return
    row = positions_of(profiles["user_id"], users.ids)
    known = np.flatnonzero(row >= 0)
    taken = profiles.take(pa.array(known)).combine_chunks()
    pairs = pa.concat_arrays(taken["attributes"].chunks).cast(_PAIRS)
    keys, values = (pc.struct_field(pc.list_flatten(pairs), part).to_pylist() for part in ("key", "value"))
    names = [attribute_segment(key, value) for key, value in zip(keys, values, strict=True)]
    countries = taken["country"].to_pylist()
    owner = np.concatenate([np.repeat(row[known], lengths_of(pairs)), row[known]])
    names += [attribute_segment("country", c) if c is not None else "" for c in countries]
    encoded = pa.array(names, pa.string()).dictionary_encode()
    codes, words = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    counts = np.bincount(codes, minlength=len(words))
    common = sorted((c for c in range(len(words)) if counts[c] >= ATTRIBUTE_USERS and words[c]),
                    key=lambda c: (-counts[c], words[c]))
    for code in common[:ATTRIBUTE_LISTS]:
        members = np.zeros(len(users.ids), np.bool_)
        members[owner[codes == code]] = True
        yield words[code], members
