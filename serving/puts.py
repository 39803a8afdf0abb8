"""Writing features one by one: what a PUT may say, and how it is merged into what was PUT before.

Batch features only: the stream's are accumulators. What is PUT for an entity lies in one cell (schemas.put_cells), each value
with what it knows (computed_at) and how long it counts. A PUT replaces the features it names where it knows at least as much,
and leaves the others: the cell is changed by compare-and-set, so of PUTs at once none is lost, and the same PUT again, or an
older one that comes late, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from schemas.cells import CellError
from schemas.features import REGISTRY, Feature, Registry
from schemas.keys import ENTITY_KINDS, row_key
from schemas.put_cells import PUTS, Put, decode_puts, encode_puts, merge_puts
from serving.collector.wire import Moment, micros
from serving.responses import ParameterError
from serving.stores.aio import AsyncStore
from serving.stores.base import Cell
from transforms.ingest import END_OF_TIME, MAX_AHEAD_MICROS

MAX_TTL = 10 * 365 * 86_400
MAX_ENTRY_ID = 256
_FLOAT32_MAX = 3.4028234663852886e38

Ttl = Annotated[int, Meta(ge=1, le=MAX_TTL)]


class FeaturesIn(msgspec.Struct, forbid_unknown_fields=True):
    """Features of one entity.

    Attributes:
      features: a number, null (withdraws what was PUT), or a list of {id, score, at}, by name.
      computed_at: what the values know; default now.
      ttl_seconds: for how long they count; default that of each feature.
    """

    features: dict[str, Any]
    computed_at: Moment | None = None
    ttl_seconds: Ttl | None = None


class EntryIn(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of a list feature."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_ENTRY_ID)]
    score: float = 1.0
    at: Moment | None = None


class PutError(ValueError):
    """A PUT that is refused; ``errors`` name each field."""

    def __init__(self, errors: list[ParameterError]) -> None:
        super().__init__("; ".join(f"{e.parameter}: {e.detail}" for e in errors))
        self.errors = errors


def parse_puts(entity: str, asked: FeaturesIn, now: int, registry: Registry = REGISTRY) -> dict[str, Put]:
    """The values of a PUT by feature name; raises PutError."""
    errors: list[ParameterError] = []
    computed_at = now if asked.computed_at is None else micros(asked.computed_at)
    if not 0 <= computed_at < END_OF_TIME:
        errors.append(ParameterError("computed_at", "lies outside 1970 to 2200"))
    elif computed_at > now + MAX_AHEAD_MICROS:  # it would hide every value that comes before then
        errors.append(ParameterError("computed_at", "lies in the future"))
    if not asked.features:
        errors.append(ParameterError("features", "names at least one feature"))
    named = {f.name: f for f in registry.of(entity, "batch")}
    found: dict[str, Put] = {}
    for name, said in asked.features.items():
        feature = named.get(name)
        if feature is None:
            errors.append(ParameterError(f"features.{name[:64]}", unknown(entity, name, registry)))
            continue
        try:
            found[name] = Put(_value(feature, said, computed_at), computed_at, asked.ttl_seconds)
        except ValueError as error:
            errors.append(ParameterError(f"features.{name}", str(error)))
    if errors:
        raise PutError(errors)
    return found


def unknown(entity: str, name: str, registry: Registry = REGISTRY) -> str:
    """Why a feature cannot be PUT, and which can."""
    valid = ", ".join(dict.fromkeys(f.name for f in registry.of(entity, "batch")))
    streamed = any(f.name == name for f in registry.of(entity, "stream"))
    return f"{'is computed by the stream' if streamed else f'is no feature of {entity}s'}; features to PUT: {valid}"


def _value(feature: Feature, said: Any, computed_at: int) -> Any:
    if feature.dtype == "list":
        return _entries(feature, said, computed_at)
    if said is None:
        return math.nan
    if isinstance(said, bool) or not isinstance(said, int | float):
        raise ValueError(f"is a number ({feature.dtype}) or null")
    if not abs(said) <= _FLOAT32_MAX:
        raise ValueError("is a finite float32")
    return float(said)


def _entries(feature: Feature, said: Any, computed_at: int) -> Any:
    most = feature.shape[0] if feature.shape else 0
    if not isinstance(said, list) or len(said) > most:
        raise ValueError(f"is a list of at most {most} entries {{\"id\", \"score\", \"at\"}}")
    try:
        entries = msgspec.convert(said, list[EntryIn])
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    ids = [entry.id for entry in entries]
    if len(set(ids)) != len(ids):
        raise ValueError("names each id once")
    times = np.array([0 if e.at is None else micros(e.at) for e in entries], np.int64)
    scores = np.array([e.score for e in entries], np.float64)
    if not (np.abs(scores) <= _FLOAT32_MAX).all():
        raise ValueError("has finite scores")
    if len(times) and not 0 <= int(times.min()) <= int(times.max()) <= computed_at + MAX_AHEAD_MICROS:
        raise ValueError("has an entry whose time lies before 1970 or after computed_at")
    return ids, times, scores.astype(np.float32)


async def write_puts(store: AsyncStore, entity: str, entity_id: str, puts: Mapping[str, Put],
                     timeout: float | None = None) -> dict[str, Put]:
    """Merges values into what was PUT for an entity; what is held now, by feature name. Raises StoreError."""
    def merged(held: Cell | None) -> Cell:
        before: Mapping[str, Put] = {}
        if held is not None:
            try:
                before = decode_puts(held.value)
            except CellError:  # nobody could read it; what is written now can be
                before = {}
        now = merge_puts(before, puts)
        newest = max(put.computed_at for put in now.values()) // 1000 * 1000
        return Cell(encode_puts(now), max(newest, held.timestamp if held is not None else 0))

    cell = await store.change_cell(row_key(ENTITY_KINDS[entity], entity_id), "batch", PUTS, merged, timeout)
    return decode_puts(cell.value)
