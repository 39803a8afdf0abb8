"""Every metric and counter name of beamrec, in one place; Beam counters use namespace NAMESPACE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

NAMESPACE = "beamrec"

EVENTS_READ = "events_read"
EVENTS_STORED = "events_stored"
EVENTS_REJECTED = "events_rejected"
EVENTS_DUPLICATE = "events_duplicate"
EVENTS_CONFLICT = "events_conflict"
PARTIALS_WRITTEN = "partials_written"
PARTIALS_REUSED = "partials_reused"
FEATURE_ROWS = "feature_rows"
HASH_COLLISIONS = "hash_collisions"
LISTS_WRITTEN = "lists_written"
USERS_WITHOUT_VECTOR = "users_without_vector"
RETRIEVAL_WANTED = "retrieval_wanted"
RETRIEVAL_FOUND = "retrieval_found"
"""Of sampled users: true best items the index should have found, and those it did."""
USERS_DORMANT = "users_dormant"
"""Users who get no list ahead of a request, because they were not active for long."""
USERS_REFRESHED = "users_refreshed"
LISTS_UNFIT = "lists_unfit"
"""Users whose lists were made again between two publishes, because they were active; lists of these that were not written."""

RECORDS_READ = "records_read"
BYTES_READ = "bytes_read"
EVENTS_LOST = "events_lost"
"""Records of the event log that retention deleted before they were read."""
WATERMARK_DELAY_MS = "watermark_delay_ms"
"""Distribution: how far behind the wall clock event time is complete, in milliseconds."""


def lag(partition: int) -> str:
    """The gauge of a log partition's records that wait to be read."""
    return f"lag_{partition}"


def rejected(reason: str) -> str:
    """The counter of events and records refused for a reason; EVENTS_REJECTED counts them all."""
    return f"{EVENTS_REJECTED}_{reason}"


EVENTS_ACCEPTED = "events_accepted"
"""Events of the stream that were neither copies nor too late."""
EVENTS_LATE = "events_late"
"""Events whose pane had ended by more than the allowed lateness."""
ITEM_ROWS = "item_rows"
"""Events and changes of pairs that reached the items' state."""
JOB_RESTARTS = "job_restarts"
"""How often the runner has started the job again after a failure (Flink)."""
STATE_RESTORED = "state_restored"
"""Buckets whose live copy was made anew from their state."""
STATE_BYTES = "state_bytes"
"""Bytes of state by entity; of the runner a distribution, bytes of a snapshot of a bucket."""
CELLS_WRITTEN = "cells_written"
CELLS_RETRIED = "cells_retried"
"""Writes to the store that failed and were tried again."""
FLUSH_MS = "flush_ms"
"""How long writing a flush's cells took, in milliseconds: the sum; of the runner a distribution."""
FLUSHES = "flushes"
"""Writes of a flush's cells."""
FRESHNESS, FRESHNESS_MS = "freshness_seconds", "freshness_ms"
"""Events by stage that they reached and by how long it took since they were accepted; the sum of it by stage."""


SEGMENTS = {EVENTS_READ: ("event_type", "device"), EVENTS_LATE: ("event_type", "surface")}
"""Counters that have parts, and what these are told apart by."""
MOST_SEGMENTS = 200
"""A device and a surface are any text: so many parts of a counter are told apart, the rest by the first label alone."""
OTHER = "other"


def by_segment(name: str, *segment: str) -> str:
    """A counter's part for one segment, such as an event type and a device or surface; "unknown" where an event names none."""
    return "/".join((name, *((part or "unknown").replace("%", "%25").replace("/", "%2F") for part in segment)))


def segment_of(counter: str) -> tuple[str, ...]:
    """(name, *segment) of ``by_segment``."""
    return tuple(part.replace("%2F", "/").replace("%25", "%") for part in counter.split("/"))


def add_counters(total: Counter[str], more: Mapping[str, int]) -> None:
    """Adds counters; of one with parts MOST_SEGMENTS are kept apart, those that were there first, and the rest are OTHER."""
    new = more.keys() - total.keys()
    if len(total) + len(new) <= MOST_SEGMENTS or not new:
        total.update(more)
        return
    parts = Counter(name.partition("/")[0] for name in total if "/" in name)
    for name, count in more.items():
        base, _, segment = name.partition("/")
        if segment and base in SEGMENTS and name not in total:
            if parts[base] >= MOST_SEGMENTS:
                name = "/".join((base, segment.partition("/")[0], OTHER))
            parts[base] += name not in total
        total[name] += count


COLLECT_ACCEPTED = "beamrec_collector_events_accepted_total"
COLLECT_REJECTED = "beamrec_collector_events_rejected_total"
COLLECT_REQUESTS = "beamrec_collector_requests_total"
COLLECT_SUPPRESSIONS = "beamrec_collector_suppressions_total"
COLLECT_UPSERTS = "beamrec_collector_upserts_total"
COLLECT_PACKS = "beamrec_collector_packs_total"
COLLECT_PACK_EVENTS = "beamrec_collector_pack_events_total"
COLLECT_LOG_FAILURES = "beamrec_collector_log_failures_total"
COLLECT_STAMP_FAILURES = "beamrec_collector_catalogue_failures_total"
COLLECT_WAITING = "beamrec_collector_waiting_events"
COLLECT_BACKLOG = "beamrec_collector_log_backlog_bytes"
COLLECT_SECONDS = "beamrec_collector_request_seconds"
COLLECT_COMMIT_SECONDS = "beamrec_collector_commit_seconds"
"""Of the collector, at its /metrics: the names as Prometheus sees them."""

SERVE_REQUESTS = "beamrec_serve_requests_total"
"""By route and status."""
SERVE_SECONDS = "beamrec_serve_request_seconds"
SERVE_STEP_SECONDS = "beamrec_serve_step_seconds"
"""By step: reads, ladder, rank, encode."""
SERVE_TIERS = "beamrec_serve_tier_total"
"""Lists answered, by context and tier."""
SERVE_VERSIONS = "beamrec_serve_version_total"
"""Lists answered, by version."""
SERVE_EXPLORED = "beamrec_serve_explored_total"
SERVE_WITHOUT_SIGNALS = "beamrec_serve_without_signals_total"
"""Lists for which the user's features could not be read in time."""
SERVE_SHORT = "beamrec_serve_short_pages_total"
"""First pages with fewer items than asked for."""
SERVE_TRUTH = "beamrec_serve_truth_total"
"""Records of what was served, by outcome: sent, dropped (the queue was full), failed."""
SERVE_TRUTH_WAITING = "beamrec_serve_truth_waiting"
SERVE_BREAKER = "beamrec_serve_breaker_state"
"""By dependency: 0 closed, 1 half open, 2 open."""
SERVE_COVERAGE = "beamrec_serve_shown_coverage"
"""Share of the active items that were shown in the last hour or two."""
SERVE_GINI = "beamrec_serve_shown_gini"
"""Of how often each active item was shown in that time: 0 all alike, 1 one item only."""
SERVE_STREAM_AGE = "beamrec_serve_stream_age_seconds"
"""Since the streaming job last wrote its status; absent where there is none."""
SERVE_STREAM_DELAY = "beamrec_serve_stream_watermark_delay_seconds"
SERVE_WORKERS = "beamrec_serve_workers"
"""Of the API, at its /metrics: the names as Prometheus sees them."""

STREAM_STATUS_AGE = "status_age_seconds"
STREAM_UP = "up"
STREAM_WATERMARK = "watermark_seconds"
STREAM_WATERMARK_DELAY = "watermark_delay_seconds"
STREAM_LAG = "lag"
"""Of the streaming job: since its status row was written; whether it runs; where event time is complete, seconds since 1970,
and how far behind the clock that is; records of the log that wait, by partition."""
