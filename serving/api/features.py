"""/v1/features: every feature of a user or item with its source and age, writing batch features, and many items at once.

A value is the stream's while it is fresh, else batch's (computed by the nightly job, or PUT here, whichever knows more), else
the default. All paths answer without /v1 too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import Meta

from schemas.cells import CellError
from schemas.features import REGISTRY
from serving.api.auth import Caller, audit
from serving.api.events import read_body
from serving.api.limits import MAX_ID
from serving.api.openapi import body, responses
from serving.api.problems import ProblemError, invalid, unavailable
from serving.api.state import State
from serving.features import AsyncFeatureReader, Entity
from serving.merge import SOURCES, EntityFeatures, FeatureMatrix, ListEntry
from serving.puts import EntryIn, FeaturesIn, PutError, parse_puts, write_puts
from serving.responses import ParameterError, rfc3339
from serving.stores.base import DeadlineError, StoreError

MAX_BATCH_ITEMS = 1_000
MAX_NAMES = 500
READ_SECONDS, WRITE_SECONDS = 1.0, 2.0
_BATCH_SECONDS = 2.0

EntityId = Annotated[str, Path(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]+$")]
Names = Annotated[list[str], Query(alias="name", max_length=MAX_NAMES, description="features to answer with (default: all)")]
_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Name = Annotated[str, Meta(max_length=128)]


class Origin(msgspec.Struct, frozen=True):
    """Where a value came from.

    Attributes:
      source: stream, batch or default.
      age_s: how long ago the newest event in it was, or it was computed; null for a default.
      ttl_seconds: for how long such a value counts.
      label: its name where it is a code.
    """

    source: Literal["default", "batch", "stream"]
    age_s: float | None
    ttl_seconds: int
    label: str | None


class Features(msgspec.Struct, frozen=True):
    """Features of one entity. ``features`` of batch, computed_at and ttl_seconds can be PUT as they are.

    Attributes:
      known: the store holds something of the entity; else all are defaults.
      low_confidence: only the stream knows it: there is no history behind its values yet.
      features, sources: by name.
      computed_at: when the newest of the values was computed, or its newest event; null when all are defaults.
      ttl_seconds: the shortest of those values that are no defaults; null when all are.
    """

    entity: Literal["user", "item"]
    id: str
    known: bool
    low_confidence: bool
    features: dict[str, float | list[ListEntry] | None]
    computed_at: str | None
    ttl_seconds: int | None
    sources: dict[str, Origin]


class FeaturesPut(msgspec.Struct, frozen=True):
    """What a PUT did: ``written``, and ``superseded``: features of which something newer was PUT before."""

    entity: Literal["user", "item"]
    id: str
    written: list[str]
    superseded: list[str]
    computed_at: str
    ttl_seconds: int | None


class BatchIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user and up to 1,000 items; of which features (default: of the user all, of the items all numbers)."""

    user_id: _Id | None = None
    item_ids: Annotated[list[_Id], Meta(max_length=MAX_BATCH_ITEMS)] = []
    user_features: Annotated[list[_Name], Meta(max_length=MAX_NAMES)] | None = None
    item_features: Annotated[list[_Name], Meta(max_length=MAX_NAMES)] | None = None


class ItemMatrix(msgspec.Struct, frozen=True):
    """Numbers of n items in the order asked: rows of k values, their sources (position in ``source_names``) and ages in
    seconds; null where there is none."""

    ids: list[str]
    names: list[str]
    values: list[list[float | None]]
    sources: list[list[int]]
    ages_s: list[list[float | None]]
    source_names: list[str]


class FeaturesBatch(msgspec.Struct, frozen=True):
    """The user's features, and the items' as columns."""

    user: Features | None
    items: ItemMatrix


SCHEMAS = (Features, FeaturesPut, FeaturesIn, EntryIn, Origin, ListEntry, BatchIn, ItemMatrix, FeaturesBatch)
_encode = msgspec.json.Encoder().encode


def router(state: State) -> APIRouter:
    """The routes of features."""
    routes, reader = APIRouter(tags=["features"]), AsyncFeatureReader(state.settings.stream_job)
    read, write = state.guard.needs("read"), state.guard.needs("write_features")
    many: dict[str, Any] = {
        "summary": "A user and up to 1,000 items at once", "dependencies": [read], "openapi_extra": body(BatchIn),
        "responses": responses(FeaturesBatch, 401, 403, 413, 415, 422, 429, 503)}
    one: dict[str, Any] = {"summary": "Features of a user or item", "dependencies": [read],
                           "responses": responses(Features, 401, 403, 422, 429, 503)}
    put: dict[str, Any] = {"summary": "Write batch features of a user or item", "openapi_extra": body(FeaturesIn),
                           "responses": responses(FeaturesPut, 401, 403, 413, 415, 422, 429, 503)}

    async def get_batch(request: Request) -> Response:
        asked = await _read(request, BatchIn)
        _check_names("user", asked.user_features or (), "user_features")
        _check_names("item", asked.item_features or (), "item_features", numbers=True)
        now, user = state.clock(), None
        try:
            if asked.user_id is not None:
                user = _one("user", asked.user_id, await reader.one(state.store, "user", asked.user_id, now, READ_SECONDS),
                            now, asked.user_features)
            found = await reader.many(state.store, "item", asked.item_ids, now, asked.item_features, _BATCH_SECONDS)
        except (StoreError, CellError) as error:
            raise _away(error) from error
        return Response(_encode(FeaturesBatch(user, _matrix(asked.item_ids, found))), media_type="application/json")

    async def get_one(entity: Entity, entity_id: EntityId, name: Names = []) -> Response:  # noqa: B006 - FastAPI copies it
        _check_names(entity, name, "name")
        now = state.clock()
        try:
            found = await reader.one(state.store, entity, entity_id, now, READ_SECONDS)
        except (StoreError, CellError) as error:
            raise _away(error) from error
        return Response(_encode(_one(entity, entity_id, found, now, name or None)), media_type="application/json")

    async def put_one(request: Request, entity: Entity, entity_id: EntityId, caller: Caller = write) -> Response:
        status = 422
        try:
            asked = await _read(request, FeaturesIn)
            puts = parse_puts(entity, asked, state.clock())
            status = 503
            held = await write_puts(state.store, entity, entity_id, puts, WRITE_SECONDS)
            status = 200
        except PutError as error:
            raise invalid(error.errors) from error
        except ProblemError as error:
            status = error.status
            raise
        except StoreError as error:
            raise _away(error) from error
        finally:
            audit(caller, "features", entity=entity, id=state.mask(entity_id) if entity == "user" else entity_id, status=status)
        written = [n for n, p in puts.items() if held[n].computed_at == p.computed_at]
        computed_at = next(iter(puts.values())).computed_at
        answer = FeaturesPut(entity, entity_id, written, [n for n in puts if n not in written], rfc3339(computed_at),
                             asked.ttl_seconds)
        return Response(_encode(answer), media_type="application/json")

    for prefix in ("/v1", ""):
        extra: dict[str, Any] = {"include_in_schema": bool(prefix)}
        routes.add_api_route(f"{prefix}/features/batch", get_batch, methods=["POST"], **many, **extra)
        routes.add_api_route(f"{prefix}/features/{{entity}}/{{entity_id:path}}", get_one, methods=["GET"], **one, **extra)
        routes.add_api_route(f"{prefix}/features/{{entity}}/{{entity_id:path}}", put_one, methods=["PUT"], **put, **extra)
    return routes


def _one(entity: Entity, entity_id: str, found: EntityFeatures, now: int, names: list[str] | None) -> Features:
    chosen = {n: found.values[n] for n in names} if names is not None else found.values
    ttl = {f.name: found.ttls.get(f.name, f.ttl) for f in REGISTRY.of(entity)}
    there = {n: v for n, v in chosen.items() if v.age_s is not None}
    newest = min((v.age_s for v in there.values() if v.age_s is not None), default=None)
    return Features(
        entity, entity_id, found.known, found.low_confidence, {n: v.value for n, v in chosen.items()},
        None if newest is None else rfc3339(now - round(newest * 1e6)), min((ttl[n] for n in there), default=None),
        {n: Origin(v.source, v.age_s, ttl[n], v.label) for n, v in chosen.items()})  # type: ignore[arg-type]


def _matrix(ids: list[str], found: FeatureMatrix) -> ItemMatrix:
    return ItemMatrix(ids, list(found.names), _nullable(found.values), found.sources.tolist(), _nullable(found.ages_s),
                      list(SOURCES))


def _nullable(matrix: np.ndarray) -> list[list[float | None]]:
    """Rows; NaN as null."""
    shown = matrix.astype(object)
    shown[np.isnan(matrix)] = None
    rows: list[list[float | None]] = shown.tolist()
    return rows


def _check_names(entity: str, names: Any, parameter: str, numbers: bool = False) -> None:
    valid = list(dict.fromkeys(f.name for f in REGISTRY.of(entity) if not (numbers and f.dtype == "list")))
    wrong = [name for name in names if name not in valid]
    if wrong:
        kind = "number" if numbers else "feature"
        raise invalid([ParameterError(parameter, f"{wrong[0][:64]!r} is no {kind} of {entity}s; there are {', '.join(valid)}")])


async def _read(request: Request, shape: Any) -> Any:
    raw = await read_body(request)
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        raise invalid([ParameterError("body", str(error))]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid([ParameterError("body", "not JSON")]) from error


def _away(error: Exception) -> ProblemError:
    late = isinstance(error, DeadlineError)
    return unavailable("the store took too long" if late else "features cannot be read or written now", 1 if late else 5)
