"""Ranked lists: GET /v1/recommendations and GET /recommendations/{user_id}.

GET /v1/recommendations is what this server is for: ``Lists.asgi`` answers it before any framework looks at it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from serving.api.auth import RawHeaders
from serving.api.openapi import responses
from serving.api.pages import Pages
from serving.api.parameters import LIST_PARAMETERS, USER_PARAMETERS, list_ask, user_ask
from serving.api.problems import ProblemError, failure, unavailable
from serving.api.state import State
from serving.ladder import NothingPublishedError
from serving.ranking.listed import POSITION
from serving.ranking.model import Ask
from serving.recommender import Answer
from serving.responses import Recommendations
from serving.server.quick import Quick, at_once

PATH = "/v1/recommendations"
SCHEMAS = (Recommendations,)
Send = Callable[[dict[str, Any]], Awaitable[None]]
_OK = [(b"content-type", b"application/json"), (b"cache-control", b"private, no-store")]
_NOTHING: dict[str, bytes] = {}


class Lists:
    """Answers with lists."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._pages = Pages()

    async def page(self, ask: Ask) -> tuple[bytes, Answer]:
        """The body of a page; raises ProblemError 503."""
        state = self._state
        try:
            answer = await state.recommender.recommend(ask)
        except NothingPublishedError as error:
            raise unavailable(str(error), title="No recommendations yet") from error
        return await self.encoded(ask, answer), answer

    async def encoded(self, ask: Ask, answer: Answer) -> bytes:
        """The body of an answer."""
        started = time.perf_counter()
        overlay, ranked = self._state.recommender.fresh.overlay, answer.ranked
        newer = overlay.metadata((*ranked.item_ids, *ranked.because)) if overlay.items else _NOTHING
        items = self._pages.packed(ask, answer) if not newer else None
        if items is None:
            missing = [i for i in self._pages.missing(answer) if i not in newer]
            extra = await self._state.titles.of(missing) if missing else _NOTHING
            items = self._pages.items(ask, answer, {**extra, **newer} if newer else extra)
        body = self._pages.encode(ask, answer, items)
        self._state.counters.step("encode", time.perf_counter() - started)
        return body

    def told(self, ask: Ask, answer: Answer) -> None:
        """Counts an answer that has left, and logs it for training."""
        state, ranked = self._state, answer.ranked
        counters = state.counters
        counters.listed(ask.context, answer.candidates.tier, answer.candidates.version, ranked.explored >= 0,
                        not answer.signals.missing, len(ranked.item_ids) < ask.page_size and not len(ask.shown))
        for step, seconds in answer.seconds.items():
            counters.step(step, seconds)
        packed = ranked.packed
        counters.shown.add(ranked.item_ids, answer.bundle, packed.numbers[POSITION] if packed is not None and packed.known
                           else None)
        if state.truth is not None:
            state.truth.tell(ask, answer)

    async def asgi(self, scope: dict[str, Any], send: Send) -> None:
        """One GET of PATH."""
        status, head, body, after = await self._get(RawHeaders(dict(scope["headers"][::-1])), scope["query_string"],
                                                    scope["client"][0] if scope["client"] else "")
        await send({"type": "http.response.start", "status": status,
                    "headers": [*head, (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
        after()

    def quick(self, headers: Mapping[bytes, bytes], query: bytes, address: str) -> Quick:
        """The same over a store whose reads do not wait: see serving.server.quick."""
        return at_once(self._get(RawHeaders(headers), query, address))

    async def _get(self, headers: RawHeaders, query: bytes, address: str) -> Quick:
        started = time.perf_counter()
        try:
            self._state.guard.check(headers, "read", address)
            ask = list_ask(query)
            body, answer = await self.page(ask)
            return Quick(200, _OK, body, partial(self._left, started, ask, answer))
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else failure(PATH, error)
            return Quick(problem.status, problem.head(), problem.body(), partial(self._refused, started, problem.status))

    def _left(self, started: float, ask: Ask, answer: Answer) -> None:
        self._state.counters.answered(PATH, 200, time.perf_counter() - started)
        self.told(ask, answer)

    def _refused(self, started: float, status: int) -> None:
        self._state.counters.answered(PATH, status, time.perf_counter() - started)

    async def response(self, ask: Ask) -> Response:
        """A page as a FastAPI route answers it."""
        body, answer = await self.page(ask)
        self.told(ask, answer)
        return Response(body, media_type="application/json", headers={"Cache-Control": "private, no-store"})


def router(state: State) -> APIRouter:
    """The routes of lists."""
    routes, lists = APIRouter(tags=["recommendations"]), state.lists
    may_read = [state.guard.needs("read")]
    said = responses(Recommendations, 401, 403, 422, 429, 503, description="a page")

    @routes.get(PATH, summary="One page of a user's ranked list", dependencies=may_read, responses=said,
                openapi_extra={"parameters": LIST_PARAMETERS})
    async def recommendations(request: Request) -> Response:
        return await lists.response(list_ask(request.scope["query_string"]))

    @routes.get("/recommendations/{user_id:path}", summary="A user's ranked list", dependencies=may_read, responses=said,
                openapi_extra={"parameters": USER_PARAMETERS})
    async def of_user(request: Request) -> Response:
        return await lists.response(user_ask(request.path_params["user_id"], request.scope["query_string"]))

    return routes
