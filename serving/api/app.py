"""beamrec over HTTP: recommendations, features, events, versions. This page is made from /openapi.json."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType

from fastapi import FastAPI, Request, Response

from serving.api import events, page, recommendations, status, users
from serving.api.openapi import describe
from serving.api.problems import add_problems
from serving.api.state import State
from serving.logs import LOGGER
from serving.settings import Settings

AREAS: tuple[ModuleType, ...] = (recommendations, events, status, users, page)
"""Modules of routes: each has ``router(state) -> APIRouter`` and SCHEMAS, the structs that its routes speak of."""
_GARBAGE = 20_000
"""New objects between collections."""
_log = logging.getLogger(LOGGER)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; settings default to the environment's (granian calls this in each worker)."""
    state = State(settings or Settings.from_env())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await state.open()
        gc.collect()
        gc.freeze()  # what is there now stays; walking it at every collection costs requests their milliseconds
        gc.set_threshold(_GARBAGE)
        yield
        await state.close()

    app = FastAPI(title="beamrec", version="1", lifespan=lifespan, default_response_class=Response)
    app.state.worker = state
    add_problems(app)
    if state.settings.log_requests:
        app.middleware("http")(_log_request)
    for area in AREAS:
        app.include_router(area.router(state))
    describe(app, (shape for area in AREAS for shape in area.SCHEMAS), __doc__ or "")
    return app


async def _log_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    started = time.perf_counter()
    response = await call_next(request)
    _log.info("request", extra={"fields": {"method": request.method, "path": _path(request), "status": response.status_code,
                                           "ms": round((time.perf_counter() - started) * 1000, 3)}})
    return response


def _path(request: Request) -> str:
    """The path without what stands in it: an id may be a user's."""
    route = request.scope.get("route")
    return str(getattr(route, "path", request.url.path))
