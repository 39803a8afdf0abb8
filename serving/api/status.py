"""/healthz, /readyz, /metrics: for whatever watches this server."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from serving.api.openapi import responses
from serving.api.problems import unavailable
from serving.api.state import State
from serving.ladder import NothingPublishedError


class Health(msgspec.Struct, frozen=True):
    """``ok``, ``ready``, or ``degraded``: something it reads is away, and it answers all the same."""

    status: str


SCHEMAS = (Health,)
_encode = msgspec.json.Encoder().encode


def router(state: State) -> APIRouter:
    """The routes of health."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", summary="The process answers", responses=responses(Health))
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    @routes.get("/readyz", summary="There are lists to answer with", responses=responses(Health, 503))
    async def readyz() -> Response:
        try:
            return Response(_encode(Health(state.recommender.check())), media_type="application/json")
        except NothingPublishedError as error:
            raise unavailable(str(error), title="No recommendations yet") from error

    return routes
