"""POST /v1/events and PUT /v1/items|users/{id}: the collector's routes, in this worker, for a server with an event log."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request, Response

from serving.api.auth import Caller, audit
from serving.api.limits import MAX_BODY
from serving.api.openapi import body, ref, responses
from serving.api.problems import CONTENT_TYPE, TITLES, ProblemError, unavailable
from serving.api.state import State
from serving.collector.app import Collector
from serving.collector.router import Accepted, EventOutcome, EventProblem, Outcome
from serving.collector.upserts import ItemIn, UserIn
from serving.collector.wire import EventIn, Events

SCHEMAS = (Accepted, EventOutcome, EventProblem, EventIn, Events, ItemIn, UserIn)
BARE = ("ItemIn", "UserIn")
"""Nothing of these is required: the id stands in the path."""
_KEY = {"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"},
        "description": "at most 256 characters: makes ids of events without one. A retry is surely a copy where each event "
                       "names its occurred_at too; else only at the worker that had it first, while that remembers it"}
_RETRY = ("Sending an event again is harmless when it names `event_id` (or comes under the same Idempotency-Key) **and** "
          "`occurred_at`: the same event is the same id, user and time. Without `occurred_at` the time is now; the worker that "
          "had the id before gives it the same time again, for its last 100,000 ids and until it ends; another one does not.")


def router(state: State) -> APIRouter:
    """The routes of events, items and users."""
    routes = APIRouter(tags=["events"])
    writer = state.guard.needs("write_events")

    @routes.post("/v1/events", summary="Take events", description=_RETRY, status_code=202, responses=_said(),
                 openapi_extra=_events_body())
    async def events(request: Request, caller: Caller = writer) -> Response:
        router = _collector(state).router
        content, key = await read_body(request), request.headers.get("idempotency-key")
        quick = await router.accept_quickly(content) if key is None else None
        outcome = quick or await router.accept_slowly(content, key)
        if isinstance(outcome, bytes):
            audit(caller, "events", status=202)
            return Response(outcome, 202, media_type="application/json")
        audit(caller, "events", status=outcome.status, events=len(outcome.events))
        return _response(outcome)

    @routes.put("/v1/items/{item_id:path}", summary="Add, change or remove an item", status_code=202, responses=_said(),
                openapi_extra=body(ItemIn, "the whole item; the newest updated_at wins"))
    async def put_item(item_id: str, request: Request, caller: Caller = writer) -> Response:
        outcome = await _collector(state).upserts["item"].put(item_id, await read_body(request))
        audit(caller, "item", item_id=item_id[:256], status=outcome.status)
        return _response(outcome)

    @routes.put("/v1/users/{user_id:path}", summary="Add or change a user", status_code=202, responses=_said(),
                openapi_extra=body(UserIn, "the whole user; the newest updated_at wins"))
    async def put_user(user_id: str, request: Request, caller: Caller = writer) -> Response:
        outcome = await _collector(state).upserts["user"].put(user_id, await read_body(request))
        audit(caller, "user", user=state.mask(user_id), status=outcome.status)
        return _response(outcome)

    return routes


async def read_body(request: Request) -> bytes:
    """The body of a request; raises ProblemError 413 and 415."""
    if request.headers.get("content-encoding") not in (None, "identity"):
        raise ProblemError(415, "send the body without Content-Encoding")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise ProblemError(413, f"a request has at most {MAX_BODY:,} bytes")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise ProblemError(413, f"a request has at most {MAX_BODY:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _collector(state: State) -> Collector:
    if state.collector is None:
        raise unavailable("this server takes no events: it was started without --log", retry_after_s=60)
    return state.collector


def _response(outcome: Outcome) -> Response:
    headers = {"Retry-After": str(math.ceil(outcome.retry_after_s))} if outcome.retry_after_s else {}
    return Response(outcome.body(), outcome.status, headers, outcome.content_type)


def _said() -> dict[int | str, Any]:
    said = responses(Accepted, 401, 403, 413, 415, 422, 429, 503, status=202, description="what became of each")
    for status in (413, 422, 429, 503):  # of events it says what became of each
        said[status] = {**said[status], "description": TITLES[status],
                        "content": {CONTENT_TYPE: {"schema": ref(EventProblem)}}}
    return said


def _events_body() -> dict[str, Any]:
    shapes = [ref(EventIn), {"type": "array", "items": ref(EventIn), "minItems": 1, "maxItems": 1000}, ref(Events)]
    return {"requestBody": {"required": True, "description": "one event, an array of them, or an object with events",
                            "content": {"application/json": {"schema": {"oneOf": shapes}}}}, "parameters": [_KEY]}
