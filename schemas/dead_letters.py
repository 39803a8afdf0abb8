"""The record of a refused event in the log of dead letters: one JSON object, its payload as text or base64."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class DeadLetter:
    """What was refused at the door.

    Attributes:
      reason: one word of transforms.ingest.REASONS or of the collector.
      detail: a sentence.
      payload: the bytes that were sent.
      received_at: microseconds since 1970.
      index: place in its request, from 0.
    """

    reason: str
    detail: str
    payload: bytes
    received_at: int
    index: int = 0


class _Record(msgspec.Struct, omit_defaults=True):
    reason: str
    detail: str
    received_at: int
    index: int = 0
    payload: str | None = None
    payload_base64: str | None = None


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Record)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The record of a dead letter."""
    record = _Record(letter.reason, letter.detail, letter.received_at, letter.index)
    try:
        record.payload = letter.payload.decode()
    except UnicodeDecodeError:
        record.payload_base64 = base64.b64encode(letter.payload).decode()
    return _encode(record)


def decode_dead_letter(record: bytes) -> DeadLetter:
    """The dead letter of a record; raises ValueError on any other bytes."""
    found = _decoder.decode(record)  # msgspec's errors are ValueErrors
    if (found.payload is None) == (found.payload_base64 is None):
        raise ValueError("a dead letter has one payload")
    try:
        payload = (found.payload.encode() if found.payload is not None
                   else base64.b64decode(found.payload_base64 or "", validate=True))
    except binascii.Error as error:
        raise ValueError(f"a dead letter's payload is not base64: {error}") from error
    return DeadLetter(found.reason, found.detail, payload, found.received_at, found.index)
