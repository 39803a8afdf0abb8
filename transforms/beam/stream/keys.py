"""The keys under which buckets are shuffled: chosen so that Flink gives each of its workers as many buckets as any other.

Flink hashes a key to one of 128 key groups, of which worker w of p has those from 128 w / p on. Few keys fall unevenly: of the
numbers 0 to 15 two workers get 10 and 6. So a bucket's key is a number whose key group lies where the bucket's should. To
other runners a key is a number like any other. Sources: java.nio.ByteBuffer.hashCode; Flink's MathUtils.murmurHash and
KeyGroupRangeAssignment.
"""

from __future__ import annotations

from collections import deque
from functools import cache

KEY_GROUPS = 128
"""Flink's, up to a parallelism of 85."""
_WORD = 0xFFFFFFFF


@cache
def bucket_keys(buckets: int) -> tuple[int, ...]:
    """The key of each bucket (a power of two of them): distinct, the same in every process, for ever."""
    missing: list[deque[int]] = [deque() for _ in range(KEY_GROUPS)]
    for bucket in range(buckets):
        missing[bucket * KEY_GROUPS // buckets].append(bucket)
    keys, found, key = [0] * buckets, 0, 0
    while found < buckets:
        waiting = missing[key_group(key)]
        if waiting:
            keys[waiting.popleft()] = key
            found += 1
        key += 1
    return tuple(keys)


def key_group(key: int) -> int:
    """The key group of a key >= 0 that Beam's VarIntCoder encodes."""
    code = 1
    for byte in reversed(_varint(key)):
        code = (31 * code + (byte - 256 if byte > 127 else byte)) & _WORD
    code = code * 0xCC9E2D51 & _WORD
    code = _rotated(code, 15) * 0x1B873593 & _WORD
    code = (_rotated(code, 13) * 5 + 0xE6546B64) & _WORD
    code ^= 4
    code = (code ^ code >> 16) * 0x85EBCA6B & _WORD
    code = (code ^ code >> 13) * 0xC2B2AE35 & _WORD
    code ^= code >> 16
    return abs(code - (1 << 32) if code >> 31 else code) % KEY_GROUPS


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _WORD


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))
