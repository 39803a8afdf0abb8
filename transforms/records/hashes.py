"""XXH3-64 (seed 0) of strings where they lie, compiled: the hash that schemas.keys.hash64 is, without a string for each.

Formulas: xxHash specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), those of at most 128 bytes; constants as in
schemas.xxh3. Property tests compare them with the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from numba import njit

from schemas import xxh3
from transforms.records.memory import byte_at, int32_at, int64_at

MAX_BYTES = xxh3.MAX_BYTES
Bytes = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

_u = np.uint64
_P1, _P2, _P3 = _u(xxh3._P1), _u(xxh3._P2), _u(xxh3._P3)
_MX1, _MX2 = _u(xxh3._MX1), _u(xxh3._MX2)
_SECRETS = np.array([xxh3._secret(at) for at in range(0, 136, 8)], np.uint64)
_FLIP3, _FLIP8 = _u(xxh3._secret(0, 4) ^ xxh3._secret(4, 4)), _u(xxh3._secret(8) ^ xxh3._secret(16))
_FLIP16_LOW, _FLIP16_HIGH = _u(xxh3._secret(24) ^ xxh3._secret(32)), _u(xxh3._secret(40) ^ xxh3._secret(48))
_LOW32 = _u(0xFFFFFFFF)
_OF_NOTHING = _u(xxhash.xxh3_64_intdigest(b""))


@njit(cache=True, nogil=True)
def _read(base: int, at: int) -> Any:
    return _u(int64_at(base, at))


@njit(cache=True, nogil=True)
def _read32(base: int, at: int) -> Any:
    return _u(int32_at(base, at)) & _LOW32


@njit(cache=True, nogil=True)
def _fold(a: Any, b: Any) -> Any:
    """Low xor high half of the 128-bit product."""
    a0, a1, b0, b1 = a & _LOW32, a >> _u(32), b & _LOW32, b >> _u(32)
    mid = a1 * b0 + (a0 * b0 >> _u(32))
    carry = a0 * b1 + (mid & _LOW32)
    return (a * b) ^ (a1 * b1 + (mid >> _u(32)) + (carry >> _u(32)))


@njit(cache=True, nogil=True)
def _avalanche(h: Any) -> Any:
    h = (h ^ (h >> _u(37))) * _MX1
    return h ^ (h >> _u(32))


@njit(cache=True, nogil=True)
def _swapped(h: Any) -> Any:
    """Bytes in the other order."""
    h = ((h << _u(8)) & _u(0xFF00FF00FF00FF00)) | ((h >> _u(8)) & _u(0x00FF00FF00FF00FF))
    h = ((h << _u(16)) & _u(0xFFFF0000FFFF0000)) | ((h >> _u(16)) & _u(0x0000FFFF0000FFFF))
    return (h << _u(32)) | (h >> _u(32))


@njit(cache=True, nogil=True)
def _mix16(base: int, at: int, secret: int) -> Any:
    return _fold(_read(base, at) ^ _SECRETS[secret], _read(base, at + 8) ^ _SECRETS[secret + 1])


@njit(cache=True, nogil=True)
def _hash(base: int, at: int, size: int) -> Any:
    length = _u(size)
    if size == 0:
        return _OF_NOTHING
    if size <= 3:
        first, middle, last = _u(byte_at(base, at)), _u(byte_at(base, at + (size >> 1))), _u(byte_at(base, at + size - 1))
        h = ((first << _u(16)) | (middle << _u(24)) | last | (length << _u(8))) ^ _FLIP3
        h = (h ^ (h >> _u(33))) * _P2
        h = (h ^ (h >> _u(29))) * _P3
        return h ^ (h >> _u(32))
    if size <= 8:
        h = (_read32(base, at + size - 4) + (_read32(base, at) << _u(32))) ^ _FLIP8
        h = (h ^ ((h << _u(49)) | (h >> _u(15))) ^ ((h << _u(24)) | (h >> _u(40)))) * _MX2
        h = (h ^ ((h >> _u(35)) + length)) * _MX2
        return h ^ (h >> _u(28))
    if size <= 16:
        low, high = _read(base, at) ^ _FLIP16_LOW, _read(base, at + size - 8) ^ _FLIP16_HIGH
        return _avalanche(length + _swapped(low) + high + _fold(low, high))
    h = length * _P1
    for i in range((size - 1) // 32, -1, -1):
        h += _mix16(base, at + 16 * i, 4 * i) + _mix16(base, at + size - 16 * (i + 1), 4 * i + 2)
    return _avalanche(h)


@njit(cache=True, nogil=True)
def hash_one(data: Bytes, at: int, size: int) -> Any:
    """XXH3-64 of ``size`` <= MAX_BYTES bytes of ``data`` from ``at`` on, as uint64."""
    return _hash(np.int64(data.ctypes.data), at, size)


@njit(cache=True, nogil=True)
def hash_packed(data: Bytes, ends: U32, out: U64) -> bool:
    """Fills (n,) hashes of strings that end at ``ends``, one behind the other; False where one is longer than MAX_BYTES."""
    base, start = np.int64(data.ctypes.data), np.int64(0)
    for i in range(len(ends)):
        end = np.int64(ends[i])
        if not 0 <= end - start <= MAX_BYTES or end > len(data):
            return False
        out[i] = _hash(base, start, end - start)
        start = end
    return True


@njit(cache=True, nogil=True)
def hashes(data: Bytes, begin: I64, size: I32) -> U64:
    """XXH3-64 of n strings of 1 to MAX_BYTES bytes, at their places in ``data``; of others 0."""
    base = np.int64(data.ctypes.data)
    out = np.zeros(len(begin), np.uint64)
    for i in range(len(begin)):
        if 1 <= size[i] <= MAX_BYTES:
            out[i] = _hash(base, begin[i], size[i])
    return out
