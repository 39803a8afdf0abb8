"""schemas.keys.hash64 of ids that lie packed in a cell, compiled: no Python string is made of them.

XXH3-64 (seed 0) by the xxHash specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), for at most MAX_BYTES bytes.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from schemas.xxh3 import _SECRET, MAX_BYTES

__all__ = ["MAX_BYTES", "hash_packed"]

U8 = npt.NDArray[np.uint8]
_KEYS = np.array([int.from_bytes(_SECRET[at : at + 8].ljust(8, b"\0"), "little") for at in range(136)], np.uint64)
_KEY32 = np.uint64(int.from_bytes(_SECRET[:4], "little") ^ int.from_bytes(_SECRET[4:8], "little"))
_P1, _P2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_MX1, _MX2 = np.uint64(0x165667919E3779F9), np.uint64(0x9FB21C651E98DF25)
_LOW = np.uint64(0xFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def _read(raw: U8, at: int, size: int) -> np.uint64:
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(raw[at + i]) << np.uint64(8 * i)
    return value


@numba.njit(cache=True, nogil=True)
def _fold(a: np.uint64, b: np.uint64) -> np.uint64:
    """Low xor high half of the 128-bit product."""
    s32 = np.uint64(32)
    a0, a1, b0, b1 = a & _LOW, a >> s32, b & _LOW, b >> s32
    mid = a1 * b0 + ((a0 * b0) >> s32)
    carry = a0 * b1 + (mid & _LOW)
    return (a * b) ^ (a1 * b1 + (mid >> s32) + (carry >> s32))


@numba.njit(cache=True, nogil=True)
def _swap(a: np.uint64) -> np.uint64:
    out = np.uint64(0)
    for i in range(8):
        out = (out << np.uint64(8)) | ((a >> np.uint64(8 * i)) & np.uint64(255))
    return out


@numba.njit(cache=True, nogil=True)
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(37))) * _MX1
    return h ^ (h >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def _avalanche64(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def _rotl(h: np.uint64, bits: int) -> np.uint64:
    return (h << np.uint64(bits)) | (h >> np.uint64(64 - bits))


@numba.njit(cache=True, nogil=True)
def _mix16(raw: U8, at: int, secret: int) -> np.uint64:
    return _fold(_read(raw, at, 8) ^ _KEYS[secret], _read(raw, at + 8, 8) ^ _KEYS[secret + 8])


@numba.njit(cache=True, nogil=True)
def hash_one(raw: U8, at: int, size: int) -> np.uint64:
    """XXH3-64 of ``size`` <= MAX_BYTES bytes from ``at`` on."""
    n = np.uint64(size)
    if size == 0:
        return _avalanche64(_KEYS[56] ^ _KEYS[64])
    if size <= 3:
        first, middle, last = np.uint64(raw[at]), np.uint64(raw[at + (size >> 1)]), np.uint64(raw[at + size - 1])
        joined = (first << np.uint64(16)) | (middle << np.uint64(24)) | last | (n << np.uint64(8))
        return _avalanche64(joined ^ _KEY32)
    if size <= 8:
        h = (_read(raw, at + size - 4, 4) + (_read(raw, at, 4) << np.uint64(32))) ^ (_KEYS[8] ^ _KEYS[16])
        h = (h ^ _rotl(h, 49) ^ _rotl(h, 24)) * _MX2
        h = (h ^ ((h >> np.uint64(35)) + n)) * _MX2
        return h ^ (h >> np.uint64(28))
    if size <= 16:
        low = _read(raw, at, 8) ^ (_KEYS[24] ^ _KEYS[32])
        high = _read(raw, at + size - 8, 8) ^ (_KEYS[40] ^ _KEYS[48])
        return _avalanche(n + _swap(low) + high + _fold(low, high))
    total = n * _P1
    for i in range((size - 1) // 32, -1, -1):
        total += _mix16(raw, at + 16 * i, 32 * i) + _mix16(raw, at + size - 16 * (i + 1), 32 * i + 16)
    return _avalanche(total)


@numba.njit(cache=True, nogil=True)
def hash_packed(raw: U8, ends: npt.NDArray[np.uint32], out: npt.NDArray[np.uint64]) -> bool:
    """Fills (n,) hashes of ids that end at ``ends``; False where one is longer than MAX_BYTES."""
    start = np.int64(0)
    for i in range(len(ends)):
        end = np.int64(ends[i])
        if end - start > 128:
            return False
        out[i] = hash_one(raw, start, end - start)
        start = end
    return True
