"""Records of the event log and what they say: packs of many events and single Avro events, bytes to columns and back.

``base`` has the columns of a poll, ``pack`` many events as one record, ``single`` and ``avro_columns`` events of
their own in Avro, ``decode`` sorts a
poll's records by format and returns valid events and dead letters.
"""

from __future__ import annotations

from transforms.records.base import Decoded, Records, SchemaRegistry
from transforms.records.decode import decode
from transforms.records.pack import pack
from transforms.records.single import encode_singles

__all__ = ["Decoded", "Records", "SchemaRegistry", "decode", "encode_singles", "pack"]
