"""Items and users: ``PUT`` writes the whole record to a log of its own, by event time; the newest updated_at wins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from serving.collector.dead import DeadLetters
from serving.collector.metrics import Counters
from serving.collector.router import EventOutcome, Outcome, unavailable, wall_clock
from serving.collector.wire import (
    INVALID_FIELD,
    MAX_BODY_BYTES,
    NOT_JSON,
    UNKNOWN_FIELD,
    Attributes,
    Categories,
    Id,
    Moment,
    Refused,
    Text,
    micros,
)
from serving.eventlog.base import LogError, Producer, partition_of
from transforms.ingest import END_OF_TIME, MAX_AHEAD_MICROS, MAX_ID_BYTES
from transforms.records.upserts import encode_upsert

_Version = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Link = Annotated[str, Meta(max_length=2048)]


class ItemIn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An item, fields of item.v1. ``is_active`` false removes it from every list."""

    item_id: Id
    title: Annotated[str, Meta(max_length=2048)] | None = None
    categories: Categories = []
    price: float | None = None
    image: _Link | None = None
    published_at: Moment | None = None
    is_active: bool = True
    updated_at: Moment | None = None
    attributes: Attributes = {}
    schema_version: _Version = 1


class UserIn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A user's profile, fields of user.v1."""

    user_id: Id
    signup_at: Moment | None = None
    country: Text | None = None
    is_active: bool = True
    updated_at: Moment | None = None
    attributes: Attributes = {}
    schema_version: _Version = 1


_KINDS: dict[str, type[ItemIn] | type[UserIn]] = {"item": ItemIn, "user": UserIn}
_MOMENTS = ("published_at", "signup_at", "updated_at")
"""Fields that hold a time."""


class Upserts:
    """Writes upserts of items or of users. For one event loop.

    Args:
      entity: item or user.
      producer, partitions: of their log.
    """

    def __init__(self, entity: str, producer: Producer, partitions: int, dead: DeadLetters, counters: Counters,
                 now: Callable[[], int] = wall_clock) -> None:
        self._entity, self._producer, self._partitions = entity, producer, partitions
        self._dead, self._counters, self._now = dead, counters, now

    async def put(self, entity_id: str, body: bytes) -> Outcome:
        """Takes the JSON of one entity; its id in the body may be left out."""
        if len(body) > MAX_BODY_BYTES:
            return Outcome(413, detail=f"a request has at most {MAX_BODY_BYTES:,} bytes")
        now = self._now()
        try:
            record = self._record(entity_id, body, now)
            if isinstance(record, Refused):
                self._counters.rejected[record.reason] += 1
                await self._dead.put([(0, record)], now)
                return Outcome(422, [EventOutcome(entity_id, "rejected", record.reason, record.detail)], record.detail)
            await self._producer.send(partition_of(entity_id, self._partitions), record, now)
        except LogError as error:
            return unavailable(error)
        self._counters.upserts[self._entity] += 1
        return Outcome(202, [EventOutcome(entity_id, "accepted")])

    def _record(self, entity_id: str, body: bytes, now: int) -> bytes | Refused:
        name = f"{self._entity}_id"
        if not entity_id or len(entity_id.encode()) > MAX_ID_BYTES:
            return Refused("id_too_long", f"{name} has 1 to {MAX_ID_BYTES} bytes", body)
        try:
            fields = msgspec.json.decode(body)
            if not isinstance(fields, dict):
                return Refused(INVALID_FIELD, "the request is a JSON object", body)
            if fields.setdefault(name, entity_id) != entity_id:
                return Refused(INVALID_FIELD, f"{name} differs from the one in the path", body)
            found = msgspec.convert(fields, _KINDS[self._entity])
        except msgspec.ValidationError as error:
            return Refused(UNKNOWN_FIELD if "unknown field" in str(error) else INVALID_FIELD, str(error), body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Refused(NOT_JSON, f"the request is not JSON: {error}", body)
        values = msgspec.structs.asdict(found)
        for moment in _MOMENTS:
            if values.get(moment) is not None:
                values[moment] = micros(values[moment])
                if not 0 <= values[moment] < END_OF_TIME:
                    return Refused("time_out_of_range", f"{moment} lies outside 1970 to 2200", body)
        if values["updated_at"] is None:
            values["updated_at"] = now
        elif values["updated_at"] > now + MAX_AHEAD_MICROS:
            return Refused("from_the_future", "updated_at lies in the future", body)
        return encode_upsert(self._entity, values)
