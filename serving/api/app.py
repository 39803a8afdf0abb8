"""beamrec over HTTP: recommendations, features, events, versions."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.middleware.cors import CORSMiddleware

from serving.api import events, features, items, models, page, recommendations, status, users
from serving.api.openapi import describe
from serving.api.problems import add_problems
from serving.api.recommendations import Lists
from serving.api.state import State
from serving.logs import LOGGER
from serving.server.quick import Quick
from serving.settings import Settings
from serving.settled import settle

AREAS: tuple[ModuleType, ...] = (recommendations, items, features, events, models, users, status, page)
"""Modules of routes: each has ``router(state) -> APIRouter`` and SCHEMAS, the structs that its routes speak of."""
_QUICK = recommendations.PATH.encode()
_log = logging.getLogger(LOGGER)
Message = dict[str, Any]


class App:
    """The ASGI application: the hot route first, then FastAPI; every answer is counted.

    Attributes:
      state: of the worker.
      fastapi: all other routes.
    """

    def __init__(self, state: State, fastapi: FastAPI, inner: Any) -> None:
        self.state, self.fastapi, self._inner = state, fastapi, inner
        self._counters, self._lists, self._log = state.counters, state.lists, state.settings.log_requests
        self._plain = not self._log and not state.settings.cors_origins  # nothing stands before the hot route

    @property
    def quick_path(self) -> bytes | None:
        """See serving.server.quick."""
        return _QUICK if self._plain and not self.state.store.waits else None

    def quick(self, headers: Mapping[bytes, bytes], query: bytes, address: str) -> Quick:
        """See serving.server.quick."""
        return self._lists.quick(headers, query, address)

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]],
                       send: Callable[[Message], Awaitable[None]]) -> None:
        """One request, or the lifespan."""
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        if self._plain and scope["method"] == "GET" and scope["path"] == recommendations.PATH:
            return await self._lists.asgi(scope, send)
        started, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._inner(scope, receive, sending)
        finally:
            took, route = time.perf_counter() - started, _route(scope)
            self._counters.answered(route, status, took)
            if self._log:
                _log.info("request", extra={"fields": {"method": scope["method"], "path": route, "status": status,
                                                       "ms": round(took * 1000, 3)}})


class WholePath(PathConvertor):
    """Ids in a path, whatever they hold: Starlette's own ends at a line break."""

    regex = "(?s:.*)"


def _route(scope: Message) -> str:
    """The path without what stands in it: an id may be a user's, and there is no end of them."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))


def create_app(settings: Settings | None = None) -> App:
    """The application; settings default to the environment's (serving.server calls this in each worker)."""
    state = State(settings or Settings.from_env())
    state.lists = Lists(state)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await state.open()
        settle()
        yield
        await state.close()

    register_url_convertor("path", WholePath())
    app = FastAPI(title="beamrec", version="1", lifespan=lifespan, default_response_class=Response)
    add_problems(app)
    routers: list[APIRouter] = [area.router(state) for area in AREAS]
    for routes in routers:
        app.include_router(routes)
    describe(app, (shape for area in AREAS for shape in area.SCHEMAS), __doc__ or "", events.BARE, routers, state.guard.passes)
    origins = list(state.settings.cors_origins)
    inner = CORSMiddleware(app, origins, allow_methods=["GET", "POST", "PUT"], allow_headers=["*"]) if origins else app
    return App(state, app, inner)
