"""GET /v1/recommendations: one page of a user's ranked list."""

from __future__ import annotations

import secrets
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from serving import read
from serving.api.limits import MAX_EXCLUDE, MAX_EXCLUDE_BYTES, MAX_ID, MAX_PAGE
from serving.api.openapi import responses
from serving.api.problems import invalid, unavailable
from serving.api.state import State
from serving.responses import ParameterError, Recommendations

SCHEMAS = (Recommendations,)
_ID = r"^[^\x00-\x1f\x7f]+$"
_SURFACE = r"^[a-z0-9][a-z0-9_-]*$"
_encode = msgspec.json.Encoder().encode

UserId = Annotated[str, Query(min_length=1, max_length=MAX_ID, pattern=_ID, description="whose list; unknown: popular items")]
Context = Annotated[str, Query(min_length=1, max_length=32, pattern=_SURFACE,
                               description="where it is shown; one without lists of its own gets homepage's")]
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE, description="items per page")]
PageCursor = Annotated[str | None, Query(max_length=read.MAX_CURSOR, description="next_cursor of the page before")]
Exclude = Annotated[list[str], Query(max_length=MAX_EXCLUDE, description="item ids to leave out: repeated, or with commas")]


def router(state: State) -> APIRouter:
    """The routes of lists."""
    routes = APIRouter(tags=["recommendations"])

    @routes.get("/v1/recommendations", summary="One page of a user's ranked list", dependencies=[state.guard.needs("read")],
                responses=responses(Recommendations, 401, 403, 422, 429, 503, description="a page"))
    async def recommendations(  # the reads take microseconds, less than a hop to another thread
        user_id: UserId, context: Context = read.HOMEPAGE, page_size: PageSize = 20, cursor: PageCursor = None,
        exclude: Exclude = [],  # noqa: B006 - FastAPI copies defaults
    ) -> Response:
        try:
            asked = read.Request(user_id, context, page_size, read.Cursor.decode(cursor) if cursor else None,
                                 _excluded(exclude))
        except read.CursorError as error:
            raise invalid([ParameterError("cursor", str(error))]) from error
        except ValueError as error:
            raise invalid([ParameterError("exclude", str(error))]) from error
        try:
            answer = state.reader.recommend(asked, secrets.token_hex(16))
        except read.NothingPublishedError as error:
            raise unavailable(str(error), title="No recommendations yet") from error
        return Response(_encode(answer), media_type="application/json", headers={"Cache-Control": "private, no-store"})

    return routes


def _excluded(values: list[str]) -> frozenset[str]:
    """The ids of all values; a value with commas stands for itself and for its parts. Raises ValueError on too many."""
    if sum(map(len, values)) > MAX_EXCLUDE_BYTES:
        raise ValueError(f"at most {MAX_EXCLUDE_BYTES} characters")
    ids = frozenset(part for value in values for part in (value, *value.split(",")) if part)
    if len(ids) > MAX_EXCLUDE + len(values):
        raise ValueError(f"at most {MAX_EXCLUDE} item ids")
    return ids
