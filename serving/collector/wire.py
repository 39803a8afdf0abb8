"""The JSON of events: one object, an array, or ``{"events": [...]}``; read in one go, or one by one to tell what is wrong.

Fields are those of the Avro event and no others: an unknown name is refused, for a misspelt ``occured_at`` would otherwise
be lost in silence; ``attributes`` (text to text) is the place for what beamrec has no name for. ``occurred_at`` is RFC 3339
with an offset, or an integer: milliseconds since 1970, or microseconds from 10^14 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.event_types import NAMES
from transforms.ingest import END_OF_TIME, MAX_AHEAD_MICROS, MAX_ID_BYTES

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1000
MAX_ATTRIBUTES, MAX_CATEGORIES = 64, 64

NOT_JSON, UNKNOWN_FIELD, INVALID_FIELD, NOT_AN_EVENT = "not_json", "unknown_field", "invalid_field", "not_an_event"
"""Why an event is refused, besides the reasons of transforms.ingest.REASONS."""

MICROS_FROM = 10**14
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
Text = Annotated[str, Meta(max_length=512)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Long = Annotated[int, Meta(ge=0, le=2**53)]
Moment = Annotated[datetime, Meta(tz=True)] | Annotated[int, Meta(ge=0, le=2**63 - 1)]
Categories = Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=MAX_CATEGORIES)]
Attributes = Annotated[dict[Annotated[str, Meta(max_length=128)], Annotated[str, Meta(max_length=2048)]],
                       Meta(max_length=MAX_ATTRIBUTES)]


class EventIn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One event, fields in the order of event.v1. Reading leaves the times as sent; the router makes them microseconds."""

    event_id: Text | None = None
    user_id: Id
    item_id: Text | None = None
    event_type: Literal[NAMES]  # type: ignore[valid-type]
    occurred_at: Moment | None = None
    ingested_at: Moment | None = None  # the collector's own replaces it
    surface: Text | None = None
    device: Text | None = None
    session_id: Text | None = None
    page_position: Count | None = None
    request_id: Text | None = None
    model_version: Text | None = None
    dwell_ms: Long | None = None
    value: float | None = None
    categories: Categories | None = None
    price: float | None = None
    country: Text | None = None
    os: Text | None = None
    referrer: Annotated[str, Meta(max_length=2048)] | None = None
    attributes: Attributes | None = None
    schema_version: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 1


@dataclass(frozen=True)
class Refused:
    """An event that does not enter the log: why, in a word and in a sentence, and the bytes that were sent."""

    reason: str
    detail: str
    payload: bytes
    event_id: str | None = None


class TooLargeError(ValueError):
    """A request over a limit."""


class Events(msgspec.Struct, forbid_unknown_fields=True):
    """Events in an object."""

    events: list[EventIn]


class _RawEnvelope(msgspec.Struct, forbid_unknown_fields=True):
    events: list[msgspec.Raw]


_one = msgspec.json.Decoder(EventIn)
_many = msgspec.json.Decoder(list[EventIn])
_envelope = msgspec.json.Decoder(Events)
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_raw_envelope = msgspec.json.Decoder(_RawEnvelope)
_anything = msgspec.json.Decoder()
encode = msgspec.json.Encoder().encode


def read_events(body: bytes) -> list[EventIn | Refused]:
    """The events of a request body, in order, those that cannot be read as Refused.

    Raises:
      TooLargeError: more bytes or events than a request may have.
    """
    if len(body) > MAX_BODY_BYTES:
        raise TooLargeError(f"a request has at most {MAX_BODY_BYTES:,} bytes")
    start = body.lstrip()[:1] if body[:1] not in b"{[" else body[:1]
    events: list[EventIn | Refused]
    try:
        if start == b"[":
            events = list(_many.decode(body))
        else:
            try:
                events = [_one.decode(body)]
            except msgspec.ValidationError:
                events = list(_envelope.decode(body).events)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        events = _one_by_one(body, start == b"[")
    if len(events) > MAX_EVENTS:
        raise TooLargeError(f"a request has at most {MAX_EVENTS:,} events, not {len(events):,}")
    return events


def _one_by_one(body: bytes, is_array: bool) -> list[EventIn | Refused]:
    try:
        if is_array:
            raws = _raws.decode(body)
        else:
            try:
                raws = _raw_envelope.decode(body).events
            except msgspec.ValidationError:
                raws = [msgspec.Raw(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [Refused(NOT_JSON, f"the request is not JSON: {error}", body)]
    if len(raws) > MAX_EVENTS:
        raise TooLargeError(f"a request has at most {MAX_EVENTS:,} events, not {len(raws):,}")
    return [_event(bytes(raw)) for raw in raws]


def _event(raw: bytes) -> EventIn | Refused:
    try:
        return _one.decode(raw)
    except msgspec.ValidationError as error:
        return Refused(_reason(str(error)), str(error), raw, _event_id(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refused(NOT_JSON, f"the event is not JSON: {error}", raw)


def _event_id(raw: bytes) -> str | None:
    try:
        found: Any = _anything.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    event_id = found.get("event_id") if isinstance(found, dict) else None
    return event_id if isinstance(event_id, str) and len(event_id) <= MAX_ID_BYTES else None


def _reason(message: str) -> str:
    """The reason behind a message of msgspec: by the field it names."""
    if "unknown field" in message:
        return UNKNOWN_FIELD
    if "`user_id`" in message:
        return "missing_user_id"
    if "`event_type`" in message or "`$.event_type`" in message:
        return "unknown_event_type"
    if "`$.user_id`" in message and ">= 1" in message:
        return "missing_user_id"
    if any(f"`$.{name}`" in message for name in ("user_id", "item_id", "event_id")) and "length <=" in message:
        return "id_too_long"
    return INVALID_FIELD if "`$." in message else NOT_AN_EVENT


def micros(moment: datetime | int) -> int:
    """A moment as sent, in microseconds since 1970."""
    if isinstance(moment, int):
        return moment if moment >= MICROS_FROM else moment * 1000
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def fault(event: EventIn, now: int) -> str:
    """The reason (transforms.ingest.REASONS) why an event that could be read, with its times in microseconds, is refused
    all the same; "" for none."""
    if not event.item_id and event.event_type != "signup":
        return "missing_item_id"
    for text in (event.event_id, event.user_id, event.item_id):
        if text is not None and len(text) * 4 > MAX_ID_BYTES and len(text.encode()) > MAX_ID_BYTES:
            return "id_too_long"
    occurred = event.occurred_at
    if occurred > now + MAX_AHEAD_MICROS:  # type: ignore[operator]
        return "time_out_of_range" if occurred >= END_OF_TIME else "from_the_future"  # type: ignore[operator]
    return "time_out_of_range" if occurred < 0 else ""  # type: ignore[operator]


def refuse(event: EventIn, reason: str) -> Refused:
    """An event that was read and is refused for a reason of transforms.ingest.REASONS."""
    return Refused(reason, _SENTENCES.get(reason, reason.replace("_", " ")), encode(event), event.event_id)


_SENTENCES = {
    "missing_item_id": "item_id is missing; only a signup has none",
    "id_too_long": f"an id has at most {MAX_ID_BYTES} bytes",
    "from_the_future": f"occurred_at lies more than {MAX_AHEAD_MICROS // 60_000_000} minutes after this server's clock",
    "time_out_of_range": "occurred_at lies outside 1970 to 2200",
}
