"""Around items: GET /v1/items/{item_id}/similar, and POST /v1/rerank for a list that the client holds already."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from msgspec import Meta

from schemas.cells import RankedList
from serving.api.events import read_body
from serving.api.limits import MAX_ID, MAX_PAGE, MAX_RERANK
from serving.api.openapi import body, responses
from serving.api.parameters import ID, MAX_REQUEST_ID, PAGE, REQUEST, WHOLE, Reader, fields_of, parameter
from serving.api.problems import ProblemError, invalid, unavailable
from serving.api.state import State
from serving.ladder import NothingPublishedError
from serving.ranking.model import Ask, Candidates, Ranked
from serving.recommender import Alike, Answer
from serving.responses import Metadata, ParameterError, Recommendations, SimilarItem, SimilarItems

_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Surface = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
_Token = Annotated[str, Meta(min_length=1, max_length=MAX_REQUEST_ID, pattern=r"^[\x21-\x7e]+$")]


class Rerank(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A list that the client holds, to be put in the order of what its user does now.

    Attributes:
      item_ids: best first; what the user has consumed since leaves the list.
      context: whose policy holds.
    """

    user_id: _Id
    item_ids: Annotated[list[_Id], Meta(min_length=1, max_length=MAX_RERANK)]
    context: _Surface = "homepage"
    request_id: _Token | None = None


SIMILAR = "similar"
"""Surface of similar items in what was served, and in metrics."""
_SOURCES = {"cooccurrence": "item_cf", "vector": "two_tower", "content": "content"}
SCHEMAS = (SimilarItems, Rerank, Recommendations)
_decoder = msgspec.json.Decoder(Rerank)
_encode = msgspec.json.Encoder().encode
_metadata = msgspec.json.Decoder(Metadata)
_SIMILAR: list[dict[str, Any]] = [
    parameter("item_id", ID, "the item", "path", required=True),
    parameter("user_id", ID, "what they consumed is left out"),
    parameter("limit", WHOLE, "items"),
    parameter("diversity", {"type": "number", "minimum": 0, "maximum": 1}, "0: the most similar ones; 1: unlike each other; "
              "default: that of the policy of context item"),
    REQUEST,
]


def router(state: State) -> APIRouter:
    """The routes around items."""
    routes, lists = APIRouter(tags=["recommendations"]), state.lists
    may_read = [state.guard.needs("read")]

    @routes.get("/v1/items/{item_id:path}/similar", summary="Items like an item", dependencies=may_read,
                responses=responses(SimilarItems, 401, 403, 404, 422, 429, 503), openapi_extra={"parameters": _SIMILAR})
    async def similar(request: Request) -> Response:
        read = Reader(fields_of(request.scope["query_string"]))
        item_id = read.check_id("item_id", request.path_params["item_id"])
        user_id, limit, diversity = read.id("user_id"), read.whole("limit", PAGE, 1, MAX_PAGE), read.share("diversity")
        request_id = read.request_id()
        read.done()
        try:
            found = await state.recommender.similar(item_id, user_id, limit, diversity)
        except NothingPublishedError as error:
            raise unavailable(str(error), title="No recommendations yet") from error
        if found is None:
            raise ProblemError(404, "no such item is known")
        answer = _json(await _shown(state, request_id, item_id, found))
        lists.told(*_told(request_id, user_id, item_id, found))
        return answer

    @routes.post("/v1/rerank", summary="A client's own list in a fresher order", dependencies=may_read,
                 responses=responses(Recommendations, 401, 403, 413, 415, 422, 429, 503), openapi_extra=body(Rerank))
    async def rerank(request: Request) -> Response:
        content = await read_body(request)
        try:
            asked = _decoder.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid([ParameterError("body", str(error))]) from error
        ids = list(dict.fromkeys(asked.item_ids))
        ask = Ask(asked.user_id, asked.context, page_size=len(ids),
                  request_id=asked.request_id or secrets.token_hex(16))
        try:
            answer = await state.recommender.rerank(ask, ids)
        except NothingPublishedError as error:
            raise unavailable(str(error), title="No recommendations yet") from error
        content = await lists.encoded(ask, answer)
        lists.told(ask, answer)
        return Response(content, media_type="application/json", headers={"Cache-Control": "private, no-store"})

    return routes


async def _shown(state: State, request_id: str, item_id: str, found: Alike) -> SimilarItems:
    ids = [item.item_id for item in found.items]
    positions = found.bundle.positions(ids).tolist() if ids else []
    newer = state.recommender.fresh.overlay.metadata(ids)
    extra = await state.titles.of([i for i, at in zip(ids, positions, strict=True) if at < 0 and i not in newer])
    items = []
    for rank, (item, at) in enumerate(zip(found.items, positions, strict=True), 1):
        metadata = newer.get(item.item_id) or (
            found.bundle.metadata(at) if at >= 0 else extra.get(item.item_id, b'{"title":null}'))
        items.append(SimilarItem(item.item_id, rank, item.similarity_score, item.similarity_type, item.shared_attributes,
                                 _metadata.decode(metadata)))
    return SimilarItems(request_id, item_id, items, found.bundle.manifest.model_version,
                        "cooccurrence" if found.degraded else "index")


def _told(request_id: str, user_id: str, item_id: str, found: Alike) -> tuple[Ask, Answer]:
    """What was shown, as lists are told: of surface SIMILAR, each item's source the largest part of its similarity."""
    ids, scores = [s.item_id for s in found.items], np.array([s.similarity_score for s in found.items], np.float32)
    n, manifest = len(ids), found.bundle.manifest
    sources, reasons, because = [_SOURCES[s.similarity_type] for s in found.items], ["similar_item"] * n, [item_id] * n
    ranked = Ranked(ids, scores, sources, reasons, because, {}, False)
    recs = RankedList(ids, scores, sources, reasons, because, manifest.model_version, 0, 0)
    return (Ask(user_id, SIMILAR, (item_id,), n, request_id=request_id),
            Answer(ranked, Candidates(recs, manifest.version, "on_demand", False), found.signals, found.bundle, {}))


def _json(answer: object) -> Response:
    return Response(_encode(answer), media_type="application/json", headers={"Cache-Control": "private, no-store"})
