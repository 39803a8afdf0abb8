"""schemas.keys.hash64 of ids that lie packed in a cell; see transforms.records.hashes."""

from __future__ import annotations

from transforms.records.hashes import MAX_BYTES, hash_one, hash_packed

__all__ = ["MAX_BYTES", "hash_one", "hash_packed"]
