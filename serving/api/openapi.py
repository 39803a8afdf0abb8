"""The description at /openapi.json: shapes are msgspec structs, referenced by name; ``operation`` describes one route."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from serving.api.problems import CONTENT_TYPE, TITLES
from serving.api_keys import Role
from serving.responses import Problem

_REF = "#/components/schemas/{name}"


def ref(shape: type) -> dict[str, str]:
    """The schema of a struct that a module names in SCHEMAS."""
    return {"$ref": _REF.format(name=shape.__name__)}


def responses(ok: type | None = None, *problems: int, status: int = 200, description: str = "done") -> dict[int | str, Any]:
    """``responses=`` of a route: its answer and the problems it may have."""
    said: dict[int | str, Any] = {status: {"description": description}}
    if ok is not None:
        said[status]["content"] = {"application/json": {"schema": ref(ok)}}
    for problem in problems:
        said[problem] = {"description": TITLES[problem], "content": {CONTENT_TYPE: {"schema": ref(Problem)}}}
        if problem in (429, 503):
            said[problem]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return said


def body(shape: type, description: str = "") -> dict[str, Any]:
    """``openapi_extra=`` of a route that reads its body itself."""
    return {"requestBody": {"required": True, "description": description,
                            "content": {"application/json": {"schema": ref(shape)}}}}


def describe(app: FastAPI, shapes: Iterable[type], description: str, bare: Iterable[str] = (),
             routers: Iterable[APIRouter] = (), passes: Callable[[Role], bool] | None = None) -> None:
    """Makes /openapi.json: FastAPI's document with our schemas instead of its own; of those in ``bare`` nothing is required.

    Args:
      routers: of the application; an operation names the role that Guard.needs asks for.
      passes: whether a request without a key has a role now; None: never.
    """
    roles = _roles(routers)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=description, routes=app.routes)
            _, schemas = msgspec.json.schema_components(list(dict.fromkeys((Problem, *shapes))), ref_template=_REF)
            for name in bare:
                schemas[name].pop("required", None)
            components = document.setdefault("components", {})
            components["schemas"] = schemas
            components["securitySchemes"] = {"key": {
                "type": "http", "scheme": "bearer", "description": "a key of 'beamrec keys add'; its roles say what it may do"}}
            _drop_unused_422(document)
            app.openapi_schema = document
        for (path, method), role in roles.items():  # anew each time: the first key may have been made
            if operation := app.openapi_schema["paths"].get(path, {}).get(method):
                operation["security"] = [{"key": [role]}, *([{}] if passes is not None and passes(role) else [])]
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _roles(routers: Iterable[APIRouter]) -> dict[tuple[str, str], Role]:
    """The role that an operation needs, by path and method."""
    return {(route.path_format, method.lower()): role for router in routers
            for route in router.routes if isinstance(route, APIRoute)
            for needed in route.dependant.dependencies if (role := getattr(needed.call, "role", None))
            for method in route.methods or ()}


def _drop_unused_422(document: dict[str, Any]) -> None:
    """FastAPI adds its own 422 where a route has parameters; ours are problem details."""
    for methods in document["paths"].values():
        for operation in methods.values():
            found = operation.get("responses", {}).get("422")
            if found and "application/json" in found.get("content", {}):
                operation["responses"]["422"] = {"description": TITLES[422],
                                                 "content": {CONTENT_TYPE: {"schema": ref(Problem)}}}
