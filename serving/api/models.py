"""/v1/models: which versions there are and who sees which; flip, canary, promote and roll back (admin).

A version can be flipped to once the gate of ``beamrec publish`` let it through. A change is one compare-and-set; every worker
sees it within a tenth of a second, this one at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response

from schemas.keys import list_key
from serving.api.auth import Caller, audit
from serving.api.events import read_body
from serving.api.openapi import body, responses
from serving.api.problems import ProblemError, invalid, unavailable
from serving.api.state import State
from serving.ladder import ANYONE
from serving.pointer import GRAIN, PointerError, challenged, promoted, published, rolled_back, shared, versions_of
from serving.responses import ParameterError, rfc3339
from serving.stores.base import Active, StoreError
from serving.versions import HOMEPAGE

Surface = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]*$", min_length=1, max_length=32)]
Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]*$", min_length=1, max_length=64)]
Percent = Annotated[float, msgspec.Meta(ge=GRAIN, le=100)]
STORE_SECONDS = 2.0
_encode = msgspec.json.Encoder().encode


class Pointer(msgspec.Struct, frozen=True):
    """What a surface serves.

    Attributes:
      champion: for everybody, or for all but ``percent`` of the users by hash, who see the challenger.
      previous: what a rollback returns to.
      pending: the pointer was changed, and this worker still loads what it names (or cannot: see ``bundle``).
    """

    surface: str
    champion: str
    challenger: str | None
    percent: float
    previous: str | None
    pending: bool


class ModelVersion(msgspec.Struct, frozen=True):
    """A version of ranked lists.

    Attributes:
      state: champion, challenger, previous; else checked (may be flipped to) or shadow (the gate has not seen it).
      users, items: lists and active items.
      as_of, checked_at: of the features; when the gate let it through.
      bundle: in this worker: ready, loading, broken, absent; idle where no surface names the version.
    """

    version: str
    surface: str
    model_version: str
    state: str
    users: int
    items: int
    as_of: str
    checked_at: str | None
    bundle: str


class Models(msgspec.Struct, frozen=True):
    """Versions, newest first, and the pointers of the surfaces; ``read_age_s``: since this worker last read these."""

    surfaces: list[Pointer]
    versions: list[ModelVersion]
    read_age_s: float | None


class Flip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give a version to everybody."""

    version: Version
    surface: Surface = HOMEPAGE


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give a version to a share of the users, or (without ``version``) the challenger that runs to another share."""

    percent: Percent
    version: Version | None = None
    surface: Surface = HOMEPAGE


class OnSurface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which surface."""

    surface: Surface = HOMEPAGE


SCHEMAS = (Models, Pointer, ModelVersion, Flip, Canary, OnSurface)


def router(state: State) -> APIRouter:
    """The routes of versions."""
    routes = APIRouter(tags=["versions"])
    admin, desk = state.guard.needs("admin"), _Desk(state)
    said = responses(Pointer, 401, 403, 404, 409, 413, 415, 422, 429, 503, description="what the surface serves now")

    @routes.get("/v1/models", summary="Versions, and who sees which", dependencies=[state.guard.needs("read")],
                responses=responses(Models, 401, 403, 429))
    async def models() -> Response:
        return Response(_encode(await desk.models()), media_type="application/json")

    @routes.post("/v1/models/flip", summary="Give a version to everybody", responses=said, openapi_extra=body(Flip))
    async def flip(request: Request, caller: Caller = admin) -> Response:
        asked = await _read(request, Flip)
        return await desk.change(caller, "flip", asked.surface, lambda active: published(active, asked.version), asked.version)

    @routes.post("/v1/models/canary", summary="Give a version to a share of the users", responses=said,
                 openapi_extra=body(Canary))
    async def canary(request: Request, caller: Caller = admin) -> Response:
        asked = await _read(request, Canary)
        version, percent = asked.version, round(asked.percent, 2)
        if version is None:
            return await desk.change(caller, "canary", asked.surface, lambda active: shared(active, percent))
        return await desk.change(caller, "canary", asked.surface, lambda active: challenged(active, version, percent), version)

    @routes.post("/v1/models/promote", summary="Give the challenger to everybody", responses=said,
                 openapi_extra=body(OnSurface))
    async def promote(request: Request, caller: Caller = admin) -> Response:
        return await desk.change(caller, "promote", (await _read(request, OnSurface)).surface, promoted)

    @routes.post("/v1/models/rollback", summary="One step back: without the challenger, else to the version before",
                 responses=said, openapi_extra=body(OnSurface))
    async def rollback(request: Request, caller: Caller = admin) -> Response:
        return await desk.change(caller, "rollback", (await _read(request, OnSurface)).surface, rolled_back)

    return routes


class _Desk:
    """Reads and changes pointers for the routes."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def models(self) -> Models:
        """Every version that has a manifest, and what the surfaces serve."""
        versions = self._state.recommender.versions
        named = {v: role for active in versions.served.values() for v, role in
                 ((active.previous, "previous"), (active.challenger, "challenger"), (active.champion, "champion")) if v}
        manifests = await asyncio.to_thread(_manifests, self._state.workspace.lists)
        found = [self._version(name, document, named.get(name)) for name, document in manifests.items()]
        surfaces = [self._pointer(surface, active) for surface, active in {**versions.served, **versions.pending}.items()]
        return Models(sorted(surfaces, key=lambda p: p.surface), sorted(found, key=lambda v: v.version, reverse=True),
                      versions.age_s)

    async def change(self, caller: Caller, action: str, surface: str, to: Callable[[Active | None], Active],
                     version: str | None = None) -> Response:
        """Moves a pointer; the audit line says who did what, also when it was refused."""
        status = 503
        try:
            new = await self._moved(surface, to, version)
            status = 200
            return Response(_encode(self._pointer(surface, new)), media_type="application/json")
        except ProblemError as problem:
            status = problem.status
            raise
        finally:
            audit(caller, action, surface=surface, version=version, status=status)

    async def _moved(self, surface: str, to: Callable[[Active | None], Active], version: str | None) -> Active:
        store, versions = self._state.store, self._state.recommender.versions
        try:
            active = await store.active(surface, timeout=STORE_SECONDS)
            if version is not None and (active is None or version not in versions_of(active)):
                await self._check(surface, version)
            new = to(active)
            if active is None or new.champion != active.champion:
                await self._there(surface, new.champion)
            if new != active and not await store.flip(surface, active, new, timeout=STORE_SECONDS):
                raise ProblemError(409, f"another change of {surface} came between: look, and try again")
        except PointerError as error:
            raise ProblemError(409, str(error)) from error
        except StoreError as error:
            raise unavailable(f"the store did not answer, so {surface} may be as it was: look, and try again") from error
        await versions.refresh()
        return new

    async def _check(self, surface: str, version: str) -> None:
        """Whether a version may be flipped to."""
        document = (await asyncio.to_thread(_manifests, self._state.workspace.lists)).get(version)
        if document is None:
            raise ProblemError(404, f"no complete version {version}")
        if document["report"]["surface"] != surface:
            raise ProblemError(409, f"version {version} holds lists of surface {document['report']['surface']}, not {surface}")
        if "gate" not in document:
            raise ProblemError(409, f"version {version} was not checked yet: 'beamrec publish {version}' does")

    async def _there(self, surface: str, version: str) -> None:
        if (await self._state.store.read_lists([list_key(ANYONE, surface)], version, timeout=STORE_SECONDS))[0] is None:
            raise ProblemError(409, f"the lists of version {version} are gone")

    def _pointer(self, surface: str, active: Active) -> Pointer:
        pending = self._state.recommender.versions.served.get(surface) != active
        return Pointer(surface, active.champion, active.challenger, active.percent, active.previous, pending)

    def _version(self, name: str, document: dict[str, Any], role: str | None) -> ModelVersion:
        report, gate = document["report"], document.get("gate")
        bundle = self._state.recommender.bundles.health(name) if role else "idle"
        return ModelVersion(name, report["surface"], report["model_version"], role or ("checked" if gate else "shadow"),
                            report["users"], report["items"], rfc3339(report["as_of"]),
                            rfc3339(gate["checked_at"]) if gate else None, bundle)


def _manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifests of complete versions by name; one that cannot be read is left out."""
    found = {}
    for path in folder.glob("*.json"):
        try:
            document = msgspec.json.decode(path.read_bytes())
            if {"surface", "model_version", "users", "items", "as_of"} <= document["report"].keys():
                found[path.stem] = document
        except (OSError, msgspec.DecodeError, KeyError, AttributeError, TypeError):
            continue
    return found


async def _read(request: Request, shape: Any) -> Any:
    """A JSON body; raises ProblemError."""
    raw = await read_body(request)
    try:
        return msgspec.json.decode(raw or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise invalid([ParameterError("body", str(error))]) from error
    except msgspec.DecodeError as error:
        raise invalid([ParameterError("body", "not JSON")]) from error
