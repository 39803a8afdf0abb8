"""Avro's single-object encoding: C3 01, the fingerprint of the writer's schema, the record."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import fastavro.schema

from schemas import avro

MARK = b"\xc3\x01"
HEAD_BYTES = len(MARK) + 8


@functools.cache
def head(record: str) -> bytes:
    """What a record of the newest schema begins with."""
    return MARK + _fingerprint(avro.load(record))


@functools.cache
def writers(record: str) -> dict[bytes, Mapping[str, Any]]:
    """The schemas of a record, of every version, by their fingerprint."""
    return {_fingerprint(schema): schema for version in avro.versions(record) for schema in (avro.load(record, version),)}


def _fingerprint(schema: Mapping[str, Any]) -> bytes:
    """CRC-64-AVRO, little-endian as the single-object encoding has it."""
    text = fastavro.schema.to_parsing_canonical_form(dict(schema))
    return bytes.fromhex(fastavro.schema.fingerprint(text, "CRC-64-AVRO"))
