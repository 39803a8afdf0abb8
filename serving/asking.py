"""Lists for a command: the answer of GET /v1/recommendations without a server, one question at a time.

Nobody waits with a stopwatch here, so deadlines are wide; ranking, tiers and versions are those of a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from schemas.keys import ITEM, STREAM_JOB, row_key
from serving.catalogue import GROUP, decode_item
from serving.ranking.model import Ask
from serving.ranking.policy import Policies, load
from serving.recommender import Answer, Recommender
from serving.responses import Explanation, Metadata, RankedItem, Recommendations, reason_sentence, rfc3339
from serving.stores.aio import AsyncStore, open_async
from serving.stores.base import StoreError

PATIENCE = 50
"""A command waits so many times longer than a request."""
NOTHING = Metadata(None)


class Asker:
    """Asks for pages; holds an event loop and a connection until it is closed.

    Args:
      store: URI.
      bundles: folder of bundles.
      now: the workspace clock, microseconds since 1970.
      stream_job: whose stream features are read.
    """

    def __init__(self, store: str, bundles: Path, now: Callable[[], int], stream_job: str = STREAM_JOB) -> None:
        self._uri, self._bundles, self._now, self._job = store, bundles, now, stream_job
        self._runner = asyncio.Runner()
        self._opened: tuple[AsyncStore, Recommender] | None = None

    def recommend(self, user_id: str, surface: str = "homepage", page_size: int = 20, request_id: str = "") -> Recommendations:
        """The first page of a user; raises NothingPublishedError."""
        return self._runner.run(self._recommend(Ask(user_id, surface, page_size=page_size, request_id=request_id)))

    def close(self) -> None:
        """Releases what it holds."""
        self._runner.run(self._close())
        self._runner.close()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _recommend(self, ask: Ask) -> Recommendations:
        store, recommender = await self._open()
        answer = await recommender.recommend(ask)
        return page_of(ask, answer, await metadata_of(store, answer))

    async def _open(self) -> tuple[AsyncStore, Recommender]:
        """The recommender with the pointers as they are now: its background task stands still between questions."""
        if self._opened is None:
            store = open_async(self._uri)
            self._opened = store, Recommender(store, self._now, self._bundles, _patient(load()), self._job, warm=False)
            await self._opened[1].open()
        else:
            versions, bundles = self._opened[1].versions, self._opened[1].bundles
            await versions.refresh()
            if versions.pending:
                await bundles.settled()
                await versions.refresh()
        return self._opened

    async def _close(self) -> None:
        if self._opened is not None:
            store, recommender = self._opened
            await recommender.close()
            await store.close()


def _patient(policies: Policies) -> Policies:
    return Policies({name: replace(policy, deadlines_ms=tuple(PATIENCE * ms for ms in policy.deadlines_ms))
                     for name, policy in policies.contexts.items()})


async def metadata_of(store: AsyncStore, answer: Answer) -> dict[str, Metadata]:
    """What is shown of the items of an answer: from its bundle, else from the store's catalogue where that can be read."""
    wanted = list(dict.fromkeys(i for i in (*answer.ranked.item_ids, *answer.ranked.because) if i))
    found: dict[str, Metadata] = {}
    if answer.bundle is not None:
        for item, position in zip(wanted, answer.bundle.positions(wanted).tolist(), strict=True):
            if position >= 0:
                found[item] = msgspec.json.decode(answer.bundle.metadata(position), type=Metadata)
    missing: Sequence[str] = [item for item in wanted if item not in found]
    if missing:
        try:
            rows = await store.read_features([row_key(ITEM, i) for i in missing], "meta", [GROUP])
        except StoreError:
            return found
        for item, cells in zip(missing, rows, strict=True):
            entry = decode_item(cells[GROUP].value) if GROUP in cells else None
            if entry is not None:
                categories = entry.categories or []
                found[item] = Metadata(entry.title, entry.image, entry.price, categories[0] if categories else None,
                                       categories, entry.attributes or {})
    return found


def page_of(ask: Ask, answer: Answer, metadata: Mapping[str, Metadata]) -> Recommendations:
    """An answer as the struct that HTTP writes as JSON, without a cursor."""
    ranked, recs = answer.ranked, answer.candidates.recs
    items = []
    for rank, (item, score, source, kind, because) in enumerate(zip(
            ranked.item_ids, ranked.scores.tolist(), ranked.sources, ranked.reasons, ranked.because, strict=True), 1):
        title = (metadata.get(because, NOTHING).title or because) if because else None
        items.append(RankedItem(item, rank + len(ask.shown), float(f"{score:.7g}"), source,
                                Explanation(kind, reason_sentence(kind, title), because or None), metadata.get(item, NOTHING)))
    return Recommendations(ask.request_id, items, recs.model_version, rfc3339(recs.generated_at), rfc3339(recs.expires_at),
                           answer.candidates.tier, None, "missing" if answer.signals.missing else "read")
