"""The HTTP API: GET /v1/recommendations, /healthz, /readyz; its description is at /openapi.json and /docs."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from schemas.workspace import Workspace
from serving import read
from serving.logs import LOGGER
from serving.responses import ParameterError, Problem, Recommendations
from serving.settings import Clock, Settings
from serving.stores import open_store

MAX_ID, MAX_PAGE, MAX_EXCLUDE, MAX_EXCLUDE_VALUE = 256, 100, 500, 16_384
_ID = r"^[^\x00-\x1f\x7f]+$"
_SURFACE = r"^[a-z0-9][a-z0-9_-]*$"
_log = logging.getLogger(LOGGER)
_encode = msgspec.json.Encoder().encode

UserId = Annotated[str, Query(min_length=1, max_length=MAX_ID, pattern=_ID, description="whose list; unknown: popular items")]
Context = Annotated[str, Query(min_length=1, max_length=32, pattern=_SURFACE,
                               description="where it is shown; one without lists of its own gets homepage's")]
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE, description="items per page")]
PageCursor = Annotated[str | None, Query(max_length=read.MAX_CURSOR, description="next_cursor of the page before")]
Exclude = Annotated[list[str], Query(max_length=MAX_EXCLUDE, description="item ids to leave out: repeated, or with commas")]


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; settings default to the environment's (granian calls this in each worker)."""
    settings = settings or Settings.from_env()
    clock = Clock(Workspace(settings.workspace))
    reader = read.ListReader(partial(open_store, settings.store, create=False), clock, _log_state)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            _log.info("worker started", extra={"fields": {"state": reader.check()}})  # also loads the popular lists
        except read.NothingPublishedError as reason:
            _log.warning("worker started without recommendations", extra={"fields": {"detail": str(reason)}})
        yield
        reader.close()
        _log.info("worker stopped")

    app = FastAPI(title="beamrec", version="1", lifespan=lifespan, default_response_class=Response)
    _add_problems(app)
    if settings.log_requests:
        app.middleware("http")(_log_request)

    @app.get("/v1/recommendations", summary="One page of a user's ranked list", responses=_described(200, 422, 503))
    async def recommendations(  # the reads take microseconds, less than a hop to another thread
        user_id: UserId, context: Context = read.HOMEPAGE, page_size: PageSize = 20, cursor: PageCursor = None,
        exclude: Exclude = [],  # noqa: B006 - FastAPI copies defaults
    ) -> Response:
        try:
            asked = read.Request(user_id, context, page_size, read.Cursor.decode(cursor) if cursor else None,
                                 _excluded(exclude))
        except read.CursorError as error:
            return _invalid([ParameterError("cursor", str(error))])
        except ValueError as error:
            return _invalid([ParameterError("exclude", str(error))])
        answer = reader.recommend(asked, secrets.token_hex(16))
        return Response(_encode(answer), media_type="application/json", headers={"Cache-Control": "private, no-store"})

    @app.get("/healthz", summary="The process answers")
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    @app.get("/readyz", summary="There are lists to answer with", responses=_described(503))
    async def readyz() -> Response:
        return Response(_encode({"status": reader.check()}), media_type="application/json")

    return app


def _excluded(values: list[str]) -> frozenset[str]:
    """The ids of all values; a value with commas stands for itself and for its parts. Raises ValueError on too many."""
    if sum(map(len, values)) > MAX_EXCLUDE_VALUE:
        raise ValueError(f"at most {MAX_EXCLUDE_VALUE} characters")
    ids = frozenset(part for value in values for part in (value, *value.split(",")) if part)
    if len(ids) > MAX_EXCLUDE + len(values):
        raise ValueError(f"at most {MAX_EXCLUDE} item ids")
    return ids


def _log_state(event: str, fields: dict[str, str]) -> None:
    level = logging.WARNING if event.startswith("unreadable") or event.endswith("unreadable") else logging.INFO
    _log.log(level, event, extra={"fields": fields})


async def _log_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    started = time.perf_counter()
    response = await call_next(request)
    _log.info("request", extra={"fields": {"method": request.method, "path": request.url.path, "status": response.status_code,
                                           "ms": round((time.perf_counter() - started) * 1000, 3)}})
    return response


def _problem(status: int, title: str, detail: str, errors: list[ParameterError] | None = None) -> Response:
    return Response(_encode(Problem(status, title, detail, errors or [])), status, media_type="application/problem+json")


def _invalid(errors: list[ParameterError]) -> Response:
    return _problem(422, "Invalid parameters", "; ".join(f"{e.parameter}: {e.detail}" for e in errors), errors)


def _add_problems(app: FastAPI) -> None:
    """Every error leaves as problem details, and the description says so."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _invalid([ParameterError(str(e["loc"][1] if len(e["loc"]) > 1 else e["loc"][0]), e["msg"])
                         for e in error.errors()])

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        response = _problem(error.status_code, str(error.detail), str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(read.NothingPublishedError)
    async def nothing(_: Request, error: read.NothingPublishedError) -> Response:
        response = _problem(503, "No recommendations yet", str(error))
        response.headers["Retry-After"] = "5"
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        _log.error("request failed", exc_info=error, extra={"fields": {"path": request.url.path}})
        return _problem(500, "Internal error", "the server could not answer; the log has the reason")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=__doc__, routes=app.routes)
            document.setdefault("components", {})["schemas"] = _SCHEMAS
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


_REFERENCES, _SCHEMAS = msgspec.json.schema_components((Recommendations, Problem), ref_template="#/components/schemas/{name}")


def _described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    ok, problem = _REFERENCES
    return {status: {"description": "a page", "content": {"application/json": {"schema": ok}}} if status == 200 else
            {"description": "problem details", "content": {"application/problem+json": {"schema": problem}}}
            for status in statuses}
