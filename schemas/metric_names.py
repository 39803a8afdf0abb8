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
