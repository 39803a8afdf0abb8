"""Every metric and counter name of beamrec, in one place; Beam counters use namespace NAMESPACE."""

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
STATE_RESTORED = "state_restored"
"""Buckets whose live copy was made anew from their state."""
STATE_BYTES = "state_bytes"
"""Distribution: bytes of a snapshot of a bucket."""
CELLS_WRITTEN = "cells_written"
CELLS_RETRIED = "cells_retried"
"""Writes to the store that failed and were tried again."""
FLUSH_MS = "flush_ms"
"""Distribution: how long writing a flush's cells took, in milliseconds."""
FRESHNESS, FRESHNESS_MS = "freshness_seconds", "freshness_ms"
"""Events by stage that they reached and by how long it took since they were accepted; the sum of it by stage."""


def by_segment(name: str, *segment: str) -> str:
    """A counter's part for one segment, such as an event type and a device or surface; "unknown" where an event names none."""
    return "/".join((name, *(part or "unknown" for part in segment)))

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
