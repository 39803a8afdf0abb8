"""/healthz, /readyz, /metrics, /v1/status: for whatever, and whoever, watches this server."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Response

from schemas import metric_names as names
from schemas.features import STREAM_TTL
from schemas.keys import STATUS, status_key
from serving import breaker
from serving.api.openapi import responses
from serving.api.peers import Samples
from serving.api.problems import unavailable
from serving.api.state import State
from serving.api.worker import shown_of
from serving.ladder import NothingPublishedError
from serving.stores.base import StoreError

STORE_SECONDS = 0.25
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_AHEAD = 10**15
"""A watermark so far ahead (microseconds) is that of a job which has ended."""
_SAMPLE = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Health(msgspec.Struct, frozen=True):
    """``ok``, ``ready``, or ``degraded``: something it reads is away, and it answers all the same."""

    status: Literal["ok", "ready", "degraded"]


class Requests(msgspec.Struct, frozen=True):
    """Requests of any kind since the server started; percentiles are upper bounds of a histogram's buckets."""

    total: int
    p50_ms: float | None
    p99_ms: float | None


class Events(msgspec.Struct, frozen=True):
    """Events that this server took, and refused by reason."""

    accepted: int
    rejected: dict[str, int]


class Fresh(msgspec.Struct, frozen=True):
    """Seconds from accepting an event to a stage of the stream; None: longer than a minute, as in a catch-up."""

    p50_s: float | None
    p99_s: float | None


class Stream(msgspec.Struct, frozen=True):
    """The streaming job, by its status row.

    Attributes:
      alive: its values are used.
      age_s: since it last wrote the row; watermark_delay_s: how far back event time is complete.
      events: that it took; rejected: by reason; late: too late to count.
      freshness: by stage.
      lag: records that wait, by partition; None: it does not say.
    """

    alive: bool
    age_s: float
    watermark_delay_s: float | None
    events: int
    late: int
    rejected: dict[str, int]
    freshness: dict[str, Fresh]
    lag: dict[str, int] | None = None


class Shown(msgspec.Struct, frozen=True):
    """What the worker that was asked showed in the last hour or two: how many items, the share of the active ones, and the Gini
    coefficient of how often each was. Workers get connections evenly, so another one's is much the same."""

    items: int
    coverage: float
    gini: float


class Status(msgspec.Struct, frozen=True):
    """This server at a glance; counts are those of all its workers since it started.

    Attributes:
      tiers: lists answered by tier; versions: by version.
      events: None for a server without an event log.
      truth: records of what was served, by outcome; None without a log.
      shown: of the worker that was asked alone.
      breakers: state by dependency, of the worker where it is worst.
    """

    status: Literal["ready", "degraded", "unavailable"]
    requests: Requests
    tiers: dict[str, int]
    versions: dict[str, int]
    events: Events | None
    stream: Stream | None
    shown: Shown | None
    truth: dict[str, int] | None
    breakers: dict[str, Literal["closed", "half_open", "open"]]


SCHEMAS = (Health, Status)
_encode = msgspec.json.Encoder().encode


def router(state: State) -> APIRouter:
    """The routes of health; anybody may ask whether it lives, and reading counts needs role read."""
    routes = APIRouter(tags=["health"])
    may_read = [state.guard.needs("read")]

    @routes.get("/healthz", summary="The process answers", responses=responses(Health))
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    @routes.get("/readyz", summary="There are lists to answer with", responses=responses(Health, 503))
    async def readyz() -> Response:
        try:
            return Response(_encode({"status": state.recommender.check()}), media_type="application/json")
        except NothingPublishedError as error:
            raise unavailable(str(error), title="No recommendations yet") from error

    @routes.get("/metrics", summary="Counts of all workers, for Prometheus",
                responses={200: {"description": "text", "content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        return Response("\n".join([*state.peers.merged(), *await _stream_lines(state)]) + "\n", media_type=_PROMETHEUS)

    @routes.get("/v1/status", summary="This server at a glance", dependencies=may_read,
                responses=responses(Status, 401, 403, 429))
    async def status() -> Response:
        return Response(_encode(await _status(state)), media_type="application/json", headers={"Cache-Control": "no-store"})

    return routes


async def _status(state: State) -> Status:
    samples = state.peers.samples()
    ready: Literal["ready", "degraded", "unavailable"]
    try:
        ready = "degraded" if state.recommender.check() == "degraded" else "ready"
    except NothingPublishedError:
        ready = "unavailable"
    truth = _by(samples, names.SERVE_TRUTH, "outcome") if state.truth is not None else None
    events = None if state.collector is None else Events(
        int(sum(_by(samples, names.COLLECT_ACCEPTED, "event_type").values())), _by(samples, names.COLLECT_REJECTED, "reason"))
    found = shown_of(state)
    bounds = _quantiles(samples, names.SERVE_SECONDS, (0.5, 0.99))
    return Status(
        ready, Requests(int(samples.get(f"{names.SERVE_SECONDS}_count", 0)),
                        *(None if b is None else round(1000 * b, 3) for b in bounds)),  # type: ignore[arg-type]
        _by(samples, names.SERVE_TIERS, "tier"), _by(samples, names.SERVE_VERSIONS, "version"), events,
        _stream(await _row(state), state.clock()), Shown(*found) if found is not None else None, truth,
        {b.name: _worst(samples, b.name, b.state) for b in state.breakers})


def _worst(samples: Samples, dependency: str, own: breaker.State) -> breaker.State:
    """The state of a breaker where it is worst: of gauges, peers give the greatest."""
    told = samples.get(f'{names.SERVE_BREAKER}{{dependency="{dependency}"}}')
    return own if told is None else breaker.STATES[max(int(told), breaker.STATES.index(own))]


async def _row(state: State) -> dict[str, Any] | None:
    """The status row of the streaming job; None where there is none, or the store is away."""
    try:
        cells = (await state.store.read_features([status_key(state.settings.stream_job)], "stream", [STATUS],
                                                 timeout=STORE_SECONDS))[0]
        found = msgspec.json.decode(cells[STATUS].value) if STATUS in cells else None
    except (StoreError, msgspec.DecodeError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("written_at"), int) else None


def _stream(row: dict[str, Any] | None, now: int) -> Stream | None:
    if row is None:
        return None
    age, counters = max(0.0, (now - row["written_at"]) / 1e6), row.get("counters") or {}
    watermark = row.get("watermark")
    delay = None if watermark is None or watermark > now + _AHEAD else round(max(0.0, (now - watermark) / 1e6), 3)
    prefix = f"{names.EVENTS_REJECTED}_"
    return Stream(age <= STREAM_TTL, round(age, 3), delay, int(counters.get(names.EVENTS_ACCEPTED, 0)),
                  int(counters.get(names.EVENTS_LATE, 0)),
                  {name.removeprefix(prefix): int(n) for name, n in counters.items() if name.startswith(prefix)},
                  _freshness(counters), _lag(row.get("offsets")))


def _lag(offsets: Any) -> dict[str, int] | None:
    """Records that wait by partition; None for a row that does not say."""
    if not isinstance(offsets, dict) or not offsets:
        return None
    return {partition: int(place[1]) for partition, place in sorted(offsets.items())}


def _freshness(counters: dict[str, int]) -> dict[str, Fresh]:
    """Percentiles by stage, from counters ``freshness_seconds/<stage>/<upper bound>``."""
    stages: dict[str, list[tuple[float, int]]] = {}
    for name, count in counters.items():
        parts = name.split("/")
        if parts[0] == names.FRESHNESS and len(parts) == 3:
            stages.setdefault(parts[1], []).append((float(parts[2]), count))
    return {stage: Fresh(*(_finite(_quantile(sorted(counts), q)) for q in (0.5, 0.99))) for stage, counts in stages.items()}


def _quantile(counts: list[tuple[float, int]], share: float) -> float | None:
    """The upper bound of the bucket that holds a quantile; ``counts`` per bucket, ascending."""
    left = share * sum(count for _, count in counts)
    for bound, count in counts:
        left -= count
        if left <= 0:
            return bound
    return None


def _quantiles(samples: Samples, name: str, shares: tuple[float, ...]) -> list[float | None]:
    """Quantiles of a histogram of the exposition, whose buckets are cumulative."""
    prefix, found = f'{name}_bucket{{le="', []
    below = 0.0
    for sample, value in samples.items():
        if sample.startswith(prefix):
            found.append((float(sample[len(prefix):-2]), int(value - below)))
            below = value
    return [_finite(_quantile(found, share)) if below else None for share in shares]


def _finite(bound: float | None) -> float | None:
    return None if bound is None or bound == float("inf") else bound


def _by(samples: Samples, name: str, label: str) -> dict[str, int]:
    """A counter summed by one of its labels."""
    found: dict[str, int] = {}
    for sample, value in samples.items():
        if sample.startswith(f"{name}{{"):
            key = dict(_SAMPLE.findall(sample)).get(label, "")
            found[key] = found.get(key, 0) + int(value)
    return found


async def _stream_lines(state: State) -> list[str]:
    row, now = await _row(state), state.clock()
    found = _stream(row, now)
    if found is None:
        return []
    lines = [f"# TYPE {names.SERVE_STREAM_AGE} gauge", f"{names.SERVE_STREAM_AGE} {found.age_s:g}"]
    if found.watermark_delay_s is not None:
        lines += [f"# TYPE {names.SERVE_STREAM_DELAY} gauge", f"{names.SERVE_STREAM_DELAY} {found.watermark_delay_s:g}"]
    return lines
