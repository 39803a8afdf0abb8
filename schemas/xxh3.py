"""XXH3-64 and XXH3-128 (seed 0) of many short strings at once, in NumPy.

The formulas are those of the xxHash specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md); a test compares every
length with the xxhash library. An id a row (a million event ids) would cost a Python call each; here it is some thirty
array operations per length of string. Longer strings than MAX_BYTES go to the library.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

U64 = npt.NDArray[np.uint64]
MAX_BYTES = 128
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a"
    "51e04bcdb45931c89f7ec9d9787364")
_P1, _P2, _P3, _P4 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63
_MX1, _MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
_MASK = (1 << 64) - 1
_CHUNK = 16_384  # rows at a time: temporaries stay in the processor's cache


def _u(value: int) -> np.uint64:
    return np.uint64(value & _MASK)


def _secret(at: int, size: int = 8) -> int:
    return int.from_bytes(_SECRET[at : at + size], "little")


def _read(strings: npt.NDArray[np.uint8], at: int, size: int = 8) -> U64:
    return np.ascontiguousarray(strings[:, at : at + size]).view(f"<u{size}").ravel().astype(np.uint64)


def _fold(a: U64, b: U64) -> U64:
    """Low xor high half of the 128-bit product."""
    low32, s32 = _u(0xFFFFFFFF), _u(32)
    a0, a1, b0, b1 = a & low32, a >> s32, b & low32, b >> s32
    mid = a1 * b0 + (a0 * b0 >> s32)
    carry = a0 * b1 + (mid & low32)
    return (a * b) ^ (a1 * b1 + (mid >> s32) + (carry >> s32))


def _avalanche(h: U64) -> U64:
    h = (h ^ (h >> _u(37))) * _u(_MX1)
    return h ^ (h >> _u(32))


def _rotl(h: U64, bits: int) -> U64:
    return (h << _u(bits)) | (h >> _u(64 - bits))


def _mix16(strings: npt.NDArray[np.uint8], at: int, secret: int) -> U64:
    return _fold(_read(strings, at) ^ _u(_secret(secret)), _read(strings, at + 8) ^ _u(_secret(secret + 8)))


def _short(s: npt.NDArray[np.uint8]) -> U64:
    size = s.shape[1]
    if size == 0:
        h = np.full(len(s), _secret(56) ^ _secret(64), np.uint64)
    elif size <= 3:
        first, middle, last = (s[:, i].astype(np.uint64) for i in (0, size >> 1, size - 1))
        h = ((first << _u(16)) | (middle << _u(24)) | last | _u(size << 8)) ^ _u(_secret(0, 4) ^ _secret(4, 4))
    elif size <= 8:
        h = (_read(s, size - 4, 4) + (_read(s, 0, 4) << _u(32))) ^ _u(_secret(8) ^ _secret(16))
        h = (h ^ _rotl(h, 49) ^ _rotl(h, 24)) * _u(_MX2)
        h = (h ^ ((h >> _u(35)) + _u(size))) * _u(_MX2)
        return h ^ (h >> _u(28))
    else:
        low = _read(s, 0) ^ _u(_secret(24) ^ _secret(32))
        high = _read(s, size - 8) ^ _u(_secret(40) ^ _secret(48))
        return _avalanche(_u(size) + low.byteswap() + high + _fold(low, high))
    h = (h ^ (h >> _u(33))) * _u(_P2)  # the XXH64 avalanche
    h = (h ^ (h >> _u(29))) * _u(_P3)
    return h ^ (h >> _u(32))


def xxh3_64(strings: npt.NDArray[np.uint8]) -> U64:
    """XXH3-64 of n strings of one length: (n, length) bytes -> (n,) uint64.

    Raises:
      ValueError: the length is over MAX_BYTES.
    """
    size = strings.shape[1]
    if size > MAX_BYTES:
        raise ValueError(f"strings of at most {MAX_BYTES} bytes, not {size}")
    out = np.empty(len(strings), np.uint64)
    for at in range(0, len(strings), _CHUNK):
        s = strings[at : at + _CHUNK]
        if size <= 16:
            out[at : at + _CHUNK] = _short(s)
            continue
        acc = np.full(len(s), _u(size * _P1))
        for i in range((size - 1) // 32, -1, -1):
            acc += _mix16(s, 16 * i, 32 * i) + _mix16(s, size - 16 * (i + 1), 32 * i + 16)
        out[at : at + _CHUNK] = _avalanche(acc)
    return out


def xxh3_128_hex(strings: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """XXH3-128 of n strings of one length, as (n, 32) ASCII hex digits, most significant first.

    Raises:
      ValueError: the length is over MAX_BYTES.
    """
    size = strings.shape[1]
    if size > MAX_BYTES:
        raise ValueError(f"strings of at most {MAX_BYTES} bytes, not {size}")
    if size <= 16:  # rare: not worth four more formulas
        digests = b"".join(xxhash.xxh3_128_digest(row.tobytes()) for row in strings)
        return _hex(np.frombuffer(digests, np.uint8).reshape(-1, 16))
    out = np.empty((len(strings), 32), np.uint8)
    for at in range(0, len(strings), _CHUNK):
        s = strings[at : at + _CHUNK]
        low, high = np.full(len(s), _u(size * _P1)), np.zeros(len(s), np.uint64)
        for i in range((size - 1) // 32, -1, -1):
            head, tail = 16 * i, size - 16 * (i + 1)
            low = (low + _mix16(s, head, 32 * i)) ^ (_read(s, tail) + _read(s, tail + 8))
            high = (high + _mix16(s, tail, 32 * i + 16)) ^ (_read(s, head) + _read(s, head + 8))
        digest = np.empty((len(s), 2), ">u8")
        digest[:, 0] = _u(0) - _avalanche(low * _u(_P1) + high * _u(_P4) + _u(size * _P2))
        digest[:, 1] = _avalanche(low + high)
        out[at : at + _CHUNK] = _hex(digest.view(np.uint8))
    return out


_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)


def _hex(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return _HEX[digests].view(np.uint8).reshape(len(digests), 2 * digests.shape[1])


def hash64_strings(column: pa.Array) -> U64:
    """XXH3-64 of each value of an Arrow string or binary column, shape (n,); a null hashes as ""."""
    values = column.cast(pa.large_binary())
    if values.null_count:
        values = values.fill_null(b"")
    n = len(values)
    if n == 0:
        return np.zeros(0, np.uint64)
    _, offset_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, n + 1, values.offset * 8)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    out = np.empty(n, np.uint64)
    capped = np.minimum(lengths, MAX_BYTES + 1)  # longer strings are hashed one by one
    for length in np.flatnonzero(np.bincount(capped)).tolist():
        rows = np.flatnonzero(capped == length)
        if length > MAX_BYTES or len(rows) < 16:  # array operations do not pay for a handful
            for row in rows.tolist():
                out[row] = xxhash.xxh3_64_intdigest(data[offsets[row] : offsets[row + 1]].tobytes())
        elif len(rows) == n:
            out[:] = xxh3_64(data[offsets[0] : offsets[-1]].reshape(n, length))
        else:
            out[rows] = xxh3_64(data[offsets[rows][:, None] + np.arange(length)])
    return out


def import_event_ids(source: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """schemas.keys.import_event_id of many rows (>= 0) of one source, as (n, 32) ASCII hex digits."""
    head = np.frombuffer(f"{source}\x00".encode(), np.uint8)
    out = np.empty((len(rows), 32), np.uint8)
    digits = np.searchsorted(10 ** np.arange(1, 19), rows, side="right") + 1
    for width in np.unique(digits).tolist():
        at = np.flatnonzero(digits == width)
        if len(head) + width > MAX_BYTES:
            texts = [xxhash.xxh3_128_hexdigest(head.tobytes() + str(row).encode()).encode() for row in rows[at].tolist()]
            out[at] = np.frombuffer(b"".join(texts), np.uint8).reshape(-1, 32)
            continue
        strings = np.empty((len(at), len(head) + width), np.uint8)
        strings[:, : len(head)] = head
        strings[:, len(head) :] = rows[at, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")
        out[at] = xxh3_128_hex(strings)
    return out


def fixed_strings(matrix: npt.NDArray[np.uint8]) -> pa.StringArray:
    """(n, length) ASCII bytes as an Arrow string column of n values."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * np.int32(matrix.shape[1])
    return pa.StringArray.from_buffers(len(matrix), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(matrix)))
