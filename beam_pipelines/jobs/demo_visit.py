"""What one visitor does in the demo of the stream, step by step, and how long each effect takes to be readable."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from schemas.keys import USER, row_key
from serving.asking import Asker
from serving.features import FeatureReader, FeatureValue
from serving.stores.base import Store

WAIT_S, PROBE_WAIT_S = 30.0, 90.0
POLL_S = 0.02
PROBES_EVERY_S = 0.2
_QUIET_S = 2.5  # nothing is to change for so long, to call it unchanged


@dataclass(frozen=True)
class Step:
    """Something that was sent and what came of it.

    Attributes:
      at: when it was accepted (or refused), seconds since the first step.
      did: for people; feature: what was watched, with its values ``before`` and ``after``.
      seconds: from accepted to readable; None where nothing was to change.
      good: the effect is the one that was to come; refused: the collector refused it; accepted: events that it took.
    """

    at: float
    did: str
    feature: str
    before: str
    after: str
    seconds: float | None
    good: bool
    refused: bool = False
    accepted: int = 1


class Visit:
    """A visitor with an id that nobody had before.

    Args:
      client: of the collector.
      store, features, lists: by which effects are read, as a server reads them.
      now: the workspace clock, microseconds.
    """

    def __init__(self, client: httpx.Client, store: Store, features: FeatureReader, lists: Asker, visitor: str,
                 now: Callable[[], int]) -> None:
        self._client, self._store, self._features, self._lists = client, store, features, lists
        self._visitor, self._now, self._started = visitor, now, time.monotonic()
        self._numbers = itertools.count()

    def steps(self) -> Iterator[Step]:
        """Does them, one after the other."""
        shown = self._list()
        first, second, bought = shown[4], shown[7], shown[0]
        yield self._until("views an item", self._event("view", first), "session_events", 1.0)
        click = self._event("click", second, dwell_ms=21_000)
        yield self._until("clicks another one", click, "count_click_1h", 1.0)
        yield self._unchanged("sends that click again", click, "count_click_1h")
        yield self._until("saves it", self._event("save", second), "recent_items", None)
        yield self._suppressed(bought)
        yield self._until("the stream knows of it", None, "count_purchase_1h", 1.0)
        late = self._event("click", first, occurred_at=self._now() - 11 * 60_000_000)
        yield self._until("a click of 11 min ago is late", late, "count_click_1h", 2.0)
        yield self._refused({**self._event("click", first), "event_type": "glance"})

    def _event(self, kind: str, item: str, **more: Any) -> dict[str, Any]:
        return {"event_id": f"{self._visitor}-{next(self._numbers)}", "user_id": self._visitor, "item_id": item,
                "event_type": kind, "occurred_at": self._now(), "surface": "homepage", "device": "desktop", **more}

    def _list(self) -> list[str]:
        return [i.item_id for i in self._lists.recommend(self._visitor, page_size=20, request_id="demo").items]

    def _value(self, feature: str) -> FeatureValue:
        return self._features.one(self._store, "user", self._visitor, self._now()).values[feature]

    def _post(self, event: dict[str, Any]) -> int:
        return self._client.post("/v1/events", json=event).status_code

    def _at(self) -> float:
        return round(time.monotonic() - self._started, 2)

    def _until(self, did: str, event: dict[str, Any] | None, feature: str, wanted: float | None) -> Step:
        """Sends an event and waits until a feature has the value wanted (None: another one than before)."""
        before = self._value(feature)
        sent = event is None or self._post(event) == 202
        at, accepted = self._at(), time.monotonic()
        while sent and time.monotonic() - accepted < WAIT_S:
            after = self._value(feature)
            if after.value == wanted or (wanted is None and after.value != before.value):
                return Step(at, did, feature, said(before), said(after), round(time.monotonic() - accepted, 2), True,
                            accepted=int(event is not None))
            time.sleep(POLL_S)
        return Step(at, did, feature, said(before), said(self._value(feature)), None, False,
                    accepted=int(sent and event is not None))

    def _unchanged(self, did: str, event: dict[str, Any], feature: str) -> Step:
        before = self._value(feature)
        sent = self._post(event) == 202
        at = self._at()
        time.sleep(_QUIET_S)
        after = self._value(feature)
        return Step(at, did, feature, said(before), f"{said(after)}, a copy", None, sent and after.value == before.value)

    def _suppressed(self, item: str) -> Step:
        """A purchase: the item is gone from the list that is read next."""
        place = self._list().index(item) + 1
        sent = self._post(self._event("purchase", item, value=9.99)) == 202
        at, accepted = self._at(), time.monotonic()
        gone = item not in self._list()
        return Step(at, f"buys {item}", "the list", f"{item} is number {place}", "gone" if gone else "still there",
                    round(time.monotonic() - accepted, 3), sent and gone)

    def _refused(self, event: dict[str, Any]) -> Step:
        answer = self._client.post("/v1/events", json=event)
        reason = answer.json()["events"][0].get("reason", "") if answer.status_code == 422 else ""
        return Step(self._at(), "sends a type nobody knows", "the answer", "", f"{answer.status_code} {reason}", None,
                    answer.status_code == 422, answer.status_code == 422, accepted=0)


def said(value: FeatureValue) -> str:
    """A value, short."""
    if isinstance(value.value, list):
        return ", ".join(f"{e.id} {e.score:.2g}" for e in value.value[:2]) or "none"
    return "-" if value.value is None else f"{value.value:g}"


class Probes:
    """Times the way from accepted to readable: single views of users nobody had before, a few each second.

    ``with Probes(store, url, prefix) as probes: ...``; then ``probes.seconds`` holds one figure each; ``probes.lost``
    counts those that could not be read within PROBE_WAIT_S, ``probes.sent`` all.
    """

    def __init__(self, store: Store, url: str, prefix: str) -> None:
        self._store, self._prefix, self._url = store, prefix, url
        self._stop = threading.Event()
        self._waiting: dict[str, float] = {}
        self.seconds: list[float] = []
        self.sent = self.lost = 0

    def came_through(self) -> bool:
        """Whether the first one did; from then on they count (the first also pays for what is compiled and cached)."""
        if not self.seconds:
            return False
        self.seconds.clear()
        return True

    def __enter__(self) -> Probes:
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._look)]
        for thread in self._threads:
            thread.start()
        return self

    def _send(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as client:
            for number in itertools.count():
                if self._stop.wait(PROBES_EVERY_S):
                    return
                user = f"{self._prefix}-probe{number}"
                event = {"event_id": user, "user_id": user, "item_id": "probe", "event_type": "view"}
                try:
                    accepted = client.post("/v1/events", json=event).status_code == 202
                except httpx.TransportError:
                    continue
                if accepted:
                    self.sent += 1
                    self._waiting[row_key(USER, user)] = time.monotonic()

    def _look(self) -> None:
        while not self._stop.is_set() or self._waiting:
            rows = list(self._waiting)
            for row, cells in zip(rows, self._store.read_features(rows, "stream", ["user_panes"]), strict=True):
                since = self._waiting[row]
                waited = time.monotonic() - since
                if cells:
                    self.seconds.append(waited)
                elif waited < PROBE_WAIT_S:
                    continue
                else:
                    self.lost += 1
                del self._waiting[row]
            time.sleep(POLL_S)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if kind is not None:
            self._waiting.clear()
        for thread in self._threads:
            thread.join()
