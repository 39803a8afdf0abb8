"""One request from asked to ranked: signals and list are read together, the ladder finds candidates, ranking makes the page.

Everything of an answer is of one version: its list, its bundle (titles, neighbours, vectors) and its explanations.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from models.inference.bundle import Bundle
from schemas.cells import CellError, RankedList
from schemas.keys import STREAM_JOB, list_key
from serving.bundles import Bundles
from serving.features import together
from serving.ladder import Breakers, Found, Ladder, Make, NothingPublishedError, more_popular
from serving.logs import LOGGER
from serving.ranking.model import CLIENT, Ask, Candidates, Ranked, Signals
from serving.ranking.on_demand import NOTHING_FRESH, make
from serving.ranking.policy import DEFAULT_CONTEXT, ContextPolicy, Policies, load
from serving.ranking.rank import rank
from serving.ranking.similar import Similar, around, rerank, similar
from serving.ranking.warm import warm_up
from serving.signals import SignalReader
from serving.stores.aio import AsyncSqliteStore, AsyncStore
from serving.stores.base import Active, DeadlineError, StoreError
from serving.versions import Choice, Versions

_log = logging.getLogger(LOGGER)
ReadSignals = Callable[[AsyncStore, str, int, float], Awaitable[Signals]]
NO_SIGNALS = Signals(missing=True)


@dataclass(slots=True)
class Answer:
    """What a request is answered with.

    Attributes:
      ranked: the page.
      candidates: what it was made from; ``candidates.version`` is the one of everything here.
      signals: of the user, as used.
      bundle: of that version; None for a version without one.
      seconds: spent, by step: reads, ladder, rank.
    """

    ranked: Ranked
    candidates: Candidates
    signals: Signals
    bundle: Bundle | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Alike:
    """Items like an item, best first, of the bundle's version. ``degraded``: by co-occurrence alone, for the index is away;
    ``signals``: of the user who looks."""

    items: Sequence[Similar]
    bundle: Bundle
    degraded: bool
    signals: Signals


class Recommender:
    """Answers requests of one worker, in its event loop.

    Args:
      store: of features, lists and pointers.
      now: the workspace clock, microseconds since 1970.
      folder: holds the bundles; None: there are none.
      policies: how each context is ranked; default: the packaged ones.
      stream_job: whose stream features are read.
      make_list, read_signals: instead of serving.ranking.on_demand and serving.signals.
      warm: run over a bundle before it counts, so that no request waits for what is compiled.
    """

    def __init__(self, store: AsyncStore, now: Callable[[], int], folder: Path | None = None, policies: Policies | None = None,
                 stream_job: str = STREAM_JOB, make_list: Make | None = None,
                 read_signals: ReadSignals | None = None, warm: bool = True) -> None:
        self.policies = policies or load()
        self.fresh = NOTHING_FRESH
        """What is newer than the bundles: items, and what is trending; whoever follows them swaps it."""
        self._reader: SignalReader | None = None
        if read_signals is None:
            self._reader = SignalReader(stream_job)
            read_signals = self._reader.read
        self._store, self._now, self._read_signals = store, now, read_signals
        self.breakers = Breakers.make(_breaker_changed)
        self.bundles = Bundles(folder, _tell, partial(warm_up, self.policies) if warm else None)
        self.versions = Versions(store, self.bundles, tuple(self.policies.contexts), prepare=self._prepare)
        self.ladder = Ladder(store, self.bundles, self.breakers, make_list or self._make, self._around)

    async def open(self) -> None:
        """Reads the pointers and loads their bundles; a store that is away does not keep a worker from starting."""
        await self.versions.start()

    async def close(self) -> None:
        """Ends what runs in the background; does not close the store."""
        await self.versions.close()
        await self.ladder.made.close()
        await self.bundles.close()

    def check(self) -> str:
        """"ready" when the store answers, "degraded" when only memory does; raises NothingPublishedError."""
        choice = self.versions.choose("", "")
        if choice is None:
            raise NothingPublishedError(self.versions.trouble or "nothing is published yet")
        self.ladder.popular(choice, None, False, self._now())
        return "degraded" if self.versions.trouble or self.breakers.lists.state == "open" else "ready"

    async def recommend(self, ask: Ask) -> Answer:
        """One page; raises NothingPublishedError when there is no list at all to answer from."""
        started = perf_counter()
        now, policy = self._now(), self.policy(ask.context)
        choice = self.choose(ask)
        if policy.candidates != "list" and ask.item_ids:
            signals = await self.signals(ask.user_id, now, policy.deadline("features"))
            read = perf_counter()
            candidates = self.ladder.around(ask, choice, signals, policy, now)
            found = Found(None, self.breakers.lists.state == "open") if candidates is not None else await self._own(
                ask, choice, policy)
        else:
            found, signals = await self._read(ask, choice, policy, now)
            read, candidates = perf_counter(), None
        if candidates is None:
            candidates = await self.ladder.find(ask, choice, found, signals, policy, now)
        climbed = perf_counter()
        seconds = {"reads": read - started, "ladder": climbed - read}
        answer = self._page(ask, choice, candidates, signals, policy, found.lost, now, seconds)
        seconds["rank"] = perf_counter() - climbed
        return answer

    async def similar(self, item_id: str, user_id: str = "", limit: int = 20, diversity: float | None = None) -> Alike | None:
        """Items like an item; None for one that is not known. Raises NothingPublishedError.

        Args:
          user_id: what is hidden from them is left out; "" for nobody.
          diversity: 0 to 1; default: that of the policy of context item.
        """
        now, policy = self._now(), self.policy("item")
        choice = self.choose(Ask(user_id, "item"))
        bundle = self.bundles.get(choice.version)
        if bundle is None:
            raise NothingPublishedError(f"version {choice.version} has no bundle to look for similar items in")
        signals = await self.signals(user_id, now, policy.deadline("features"))
        breaker, overlay = self.breakers.index, self.fresh.overlay
        if breaker.allows():
            try:
                found = similar(bundle, item_id, policy, signals, limit, diversity, overlay)
            except (OSError, ValueError, RuntimeError):
                breaker.failed()
            else:
                breaker.ok()
                return Alike(found, bundle, False, signals) if found is not None else None
        position = int(bundle.positions([item_id])[0])
        if position < 0 and item_id not in overlay.items:
            return None
        return Alike(_neighbours(bundle, position, signals.hidden, limit), bundle, True, signals)

    async def rerank(self, ask: Ask, item_ids: Sequence[str]) -> Answer:
        """A list that a client holds in the order of fresh signals: nothing joins it, what is hidden now leaves it. Raises
        NothingPublishedError."""
        started = perf_counter()
        now, policy = self._now(), self.policy(ask.context)
        choice = self.choose(ask)
        bundle = self.bundles.get(choice.version)
        signals = await self.signals(ask.user_id, now, policy.deadline("features"))
        read = perf_counter()
        ranked = rerank(item_ids, ask, signals, policy, bundle, self.fresh.overlay)
        n, model = len(ranked.item_ids), bundle.manifest.model_version if bundle is not None else ""
        recs = RankedList(ranked.item_ids, ranked.scores, [CLIENT] * n, [CLIENT] * n, [""] * n, model, now, now)
        candidates = Candidates(recs, choice.version, CLIENT, True)
        return Answer(ranked, candidates, signals, bundle, {"reads": read - started, "rank": perf_counter() - read})

    def policy(self, context: str) -> ContextPolicy:
        """Of a context; one that is not declared is treated as the homepage."""
        return self.policies.contexts.get(context) or self.policies.contexts[DEFAULT_CONTEXT]

    def choose(self, ask: Ask) -> Choice:
        """The version of a request; raises NothingPublishedError."""
        choice = self.versions.choose(ask.context, ask.user_id, ask.version)
        if choice is None:
            raise NothingPublishedError(self.versions.trouble or "nothing is published yet")
        return choice

    async def _read(self, ask: Ask, choice: Choice, policy: ContextPolicy, now: int) -> tuple[Found, Signals]:
        """The user's list and signals: in one round where both lie in one file, and it does not fail."""
        store, seconds = self._store, policy.deadline("features")
        lists, features = self.breakers.lists, self.breakers.features
        if self._reader is not None and isinstance(store, AsyncSqliteStore) and ask.user_id \
                and lists.state == features.state == "closed":
            try:
                row = list_key(ask.user_id, choice.surface)
                read = await self._reader.read_with_list(store, ask.user_id, row, choice.version, now, seconds)
            except DeadlineError:  # a list without signals may still be had in time
                features.failed()
                return await self._own(ask, choice, policy), NO_SIGNALS
            except StoreError:
                read = None  # each of the two calls below says so to its breaker
            if read is not None:
                lists.ok()
                features.ok()
                return self.ladder.found(read[1]), read[0] or NO_SIGNALS
        return await together(self._store, self._own(ask, choice, policy), self.signals(ask.user_id, now, seconds))

    async def _own(self, ask: Ask, choice: Choice, policy: ContextPolicy) -> Found:
        return await self.ladder.own(ask.user_id, choice.surface, choice.version, policy.deadline("list"))

    async def signals(self, user_id: str, now: int, seconds: float) -> Signals:
        """What is known of a user now; ``missing`` where features cannot be read in time."""
        if not user_id:
            return Signals()
        breaker = self.breakers.features
        if not breaker.allows():
            return NO_SIGNALS
        try:
            found = await self._read_signals(self._store, user_id, now, seconds)
        except StoreError:
            breaker.failed()
            return NO_SIGNALS
        except CellError:  # one bad cell is no reason to do without everybody's
            breaker.ok()
            return NO_SIGNALS
        breaker.ok()
        return found

    def _page(self, ask: Ask, choice: Choice, candidates: Candidates, signals: Signals, policy: ContextPolicy, lost: bool,
              now: int, seconds: Mapping[str, float]) -> Answer:
        """The page, filled with what is popular where the list does not suffice."""
        bundle = self.bundles.get(candidates.version)

        def ranked_of(candidates: Candidates, signals: Signals) -> Answer:
            ranked = rank(ask, candidates, signals, policy, bundle, self.fresh.overlay)
            return Answer(ranked, candidates, signals, bundle, seconds)

        answer = ranked_of(candidates, signals)
        if len(answer.ranked.item_ids) >= ask.page_size:
            return answer
        if bundle is not None:
            reach = ask.page_size + len(signals.hidden) + len(ask.exclude) + len(ask.shown) + len(ask.item_ids)
            candidates = replace(candidates, recs=more_popular(bundle, candidates.recs, reach))
            answer = ranked_of(candidates, signals)
        elif not answer.ranked.item_ids and candidates.personal:
            with contextlib.suppress(NothingPublishedError):
                candidates = self.ladder.popular(choice, None, lost, now)
                answer = ranked_of(candidates, signals)
        for hidden in (signals.suppressed, frozenset[str]()):  # who consumed all there is still gets an answer
            if not answer.ranked.item_ids and not len(ask.shown):
                answer = ranked_of(candidates, replace(signals, hidden=hidden))
        return answer

    def _make(self, ask: Ask, signals: Signals, bundle: Bundle, policy: ContextPolicy, now: int) -> RankedList | None:
        return make(ask, signals, bundle, now, self.fresh, seconds=policy.cache_seconds)

    def _around(self, ask: Ask, signals: Signals, bundle: Bundle, policy: ContextPolicy, now: int) -> RankedList | None:
        return around(ask, policy, bundle, now, self.fresh.overlay)

    async def _prepare(self, surface: str, active: Active) -> None:
        await self.ladder.keep_popular(surface, active)
        _tell("active version", {"surface": surface, "version": active.champion})


def _neighbours(bundle: Bundle, position: int, hidden: Set[str], limit: int) -> list[Similar]:
    """The items that co-occur with one, of which those that are active and not hidden."""
    if position < 0:
        return []
    near, strengths = bundle.neighbours_of(position)
    share = strengths / max(float(strengths.max(initial=0)), 1e-9)
    found = zip(bundle.ids(near), bundle.active[near].tolist(), share.tolist(), strict=True)
    return [Similar(item, round(float(score), 6), "cooccurrence", {}) for item, active, score in found
            if active and item not in hidden][:limit]


def _tell(event: str, fields: dict[str, str]) -> None:
    level = logging.WARNING if "broken" in event else logging.INFO
    _log.log(level, event, extra={"fields": fields})


def _breaker_changed(name: str, state: str) -> None:
    _log.log(logging.INFO if state == "closed" else logging.WARNING, f"{name} breaker {state}", extra={"fields": {}})

