"""Compiled reading of JSON values at addresses: where a text ends, what a number or a time is. No GIL; a zero byte ends.

What is unusual (an escape in a string, a float that needs more than one rounding) is told as the place NO. Grammar: RFC 8259;
UTF-8: RFC 3629; times: RFC 3339; floats by Clinger's exact case ("How to Read Floating Point Numbers Accurately", 1990):
integers below 2^53 times or divided by a power of ten up to 10^22.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from transforms.records.kernels import utf8
from transforms.records.memory import byte_at, int64_at

Bytes = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

NO = -1
"""No place: what stands there is not what was asked for, or unusual."""
_POWERS = 10.0 ** np.arange(23)
_ONES = 0x0101010101010101
_QUOTES, _SLASHES, _SPACES = 0x22 * _ONES, 0x5C * _ONES, 0x20 * _ONES
_HIGH = np.int64(-0x7F7F7F7F7F7F7F80)  # 0x8080808080808080


def words_of(texts: list[str]) -> npt.NDArray[np.int64]:
    """(n, 4) each text and a closing quote as two little-endian words, and the masks of what counts in them."""
    rows = []
    for text in texts:
        size = len(text) + 1
        assert size <= 16
        masks = (b"\xff" * size).ljust(16, b"\0")
        rows.append(np.frombuffer((text + '"').encode().ljust(16, b"\0") + masks, np.int64))
    return np.array(rows)


@njit(cache=True, nogil=True)
def skip_spaces(base: int, at: int) -> int:
    """The place of the next byte that is no space."""
    while True:
        byte = byte_at(base, at)
        if byte != 32 and byte != 10 and byte != 13 and byte != 9:
            return at
        at += 1


@njit(cache=True, nogil=True)
def end_of_text(base: int, at: int) -> int:
    """The closing quote of the string whose first byte is at a place; -1 for an escape, a control byte or broken UTF-8."""
    begin, ascii_only = at, True
    while True:
        word = int64_at(base, at)
        quote, slash = word ^ _QUOTES, word ^ _SLASHES
        if ((((quote - _ONES) & ~quote) | ((slash - _ONES) & ~slash) | ((word - _SPACES) & ~word)) & _HIGH) == 0:
            ascii_only &= (word & _HIGH) == 0
            at += 8
            continue
        for _ in range(8):
            byte = byte_at(base, at)
            if byte == 34:
                return at if ascii_only or utf8(base, begin, at) else NO
            if byte == 92 or byte < 32:
                return NO
            ascii_only &= byte < 128
            at += 1


@njit(cache=True, nogil=True)
def which_word(base: int, at: int, words: I64, guess: int) -> int:
    """Which of the texts stands at a place, the guess tried first; -1 for none."""
    one, two = int64_at(base, at), int64_at(base, at + 8)
    if guess >= 0 and one & words[guess, 2] == words[guess, 0] and two & words[guess, 3] == words[guess, 1]:
        return guess
    for i in range(len(words)):
        if one & words[i, 2] == words[i, 0] and two & words[i, 3] == words[i, 1]:
            return i
    return NO


@njit(cache=True, nogil=True)
def is_null(base: int, at: int) -> bool:
    """Whether null stands at a place."""
    return int64_at(base, at) & 0xFFFFFFFF == 0x6C6C756E


@njit(cache=True, nogil=True)
def _digits(base: int, at: int) -> tuple[int, int]:
    """(value, place after it) of up to 18 digits; the place is -1 without any, or with more."""
    begin, value = at, 0
    byte = byte_at(base, at)
    while 48 <= byte <= 57:
        value = value * 10 + byte - 48
        at += 1
        byte = byte_at(base, at)
    return value, at if 0 < at - begin <= 18 else NO


@njit(cache=True, nogil=True)
def whole_number(base: int, at: int) -> tuple[int, int]:
    """(value, place after it) of an integer that is not negative; the place is -1 for anything else."""
    value, end = _digits(base, at)
    if end - at > 1 and byte_at(base, at) == 48:
        return 0, NO
    return value, end


@njit(cache=True, nogil=True)
def decimal(base: int, at: int) -> tuple[float, int]:
    """(value, place after it) of a number that one multiplication or division gives exactly; the place is -1 for others."""
    negative = byte_at(base, at) == 45
    at += negative
    mantissa, end = whole_number(base, at)
    if end < 0:
        return 0.0, NO
    size, exponent, at = end - at, 0, end
    if byte_at(base, at) == 46:
        more, end = _digits(base, at + 1)
        if end < 0 or size + end - at > 17:
            return 0.0, NO
        exponent = at + 1 - end
        for _ in range(-exponent):
            mantissa *= 10
        mantissa += more
        at = end
    if byte_at(base, at) | 32 == 101:
        return 0.0, NO
    if mantissa > 1 << 53 or (negative and mantissa == 0):
        return 0.0, NO
    value = mantissa / _POWERS[-exponent]
    return -value if negative else value, at


@njit(cache=True, nogil=True)
def texts(base: int, at: int, begin: I64, size: I32, used: int, most: int, longest: int) -> tuple[int, int]:
    """(used, place after it) of an array of strings, of 1 to ``longest`` bytes each; the place is -1 for anything else."""
    if byte_at(base, at) != 91:
        return used, NO
    at = skip_spaces(base, at + 1)
    if byte_at(base, at) == 93:
        return used, at + 1
    last = min(used + most, len(begin))
    while used < last and byte_at(base, at) == 34:
        end = end_of_text(base, at + 1)
        if not 1 <= end - at - 1 <= longest:
            return used, NO
        begin[used], size[used] = at + 1, end - at - 1
        used += 1
        at = skip_spaces(base, end + 1)
        byte = byte_at(base, at)
        if byte == 93:
            return used, at + 1
        if byte != 44:
            return used, NO
        at = skip_spaces(base, at + 1)
    return used, NO


@njit(cache=True, nogil=True)
def _twice(base: int, begin: I64, size: I32, first: int, last: int) -> bool:
    """Whether the key before ``last`` stands there before."""
    for i in range(first, last - 2, 2):
        if size[i] == size[last - 2]:
            k = 0
            while k < size[i] and byte_at(base, begin[i] + k) == byte_at(base, begin[last - 2] + k):
                k += 1
            if k == size[i]:
                return True
    return False


@njit(cache=True, nogil=True)
def pairs(base: int, at: int, begin: I64, size: I32, used: int, most: int) -> tuple[int, int]:
    """(used, place after it) of an object of strings, keys and values in turn; the place is -1 for anything else."""
    if byte_at(base, at) != 123:
        return used, NO
    at = skip_spaces(base, at + 1)
    if byte_at(base, at) == 125:
        return used, at + 1
    first, last = used, min(used + 2 * most, len(begin) - 1)
    while used < last and byte_at(base, at) == 34:
        for part in range(2):
            end = end_of_text(base, at + 1)
            if byte_at(base, at) != 34 or end < 0 or end - at - 1 > (2048 if part else 128):
                return used, NO
            begin[used], size[used] = at + 1, end - at - 1
            used += 1
            at = skip_spaces(base, end + 1)
            if part == 0:
                if byte_at(base, at) != 58:
                    return used, NO
                at = skip_spaces(base, at + 1)
        if _twice(base, begin, size, first, used):
            return used, NO
        byte = byte_at(base, at)
        if byte == 125:
            return used, at + 1
        if byte != 44:
            return used, NO
        at = skip_spaces(base, at + 1)
    return used, NO


@njit(cache=True, nogil=True)
def _pair(base: int, at: int) -> int:
    """Two digits as a number, -1 for anything else."""
    tens, ones = byte_at(base, at) - 48, byte_at(base, at + 1) - 48
    return tens * 10 + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else NO


@njit(cache=True, nogil=True)
def moment(base: int, at: int) -> tuple[int, int]:
    """(microseconds since 1970, place after it) of an RFC 3339 time with its closing quote; the place is -1 for others."""
    century, year = _pair(base, at), _pair(base, at + 2)
    month, day = _pair(base, at + 5), _pair(base, at + 8)
    hour, minute, second = _pair(base, at + 11), _pair(base, at + 14), _pair(base, at + 17)
    if (min(century, year, hour, minute, second) < 0 or month < 1 or month > 12 or day < 1 or hour > 23 or minute > 59
            or second > 59 or byte_at(base, at + 4) != 45 or byte_at(base, at + 7) != 45 or byte_at(base, at + 10) != 84
            or byte_at(base, at + 13) != 58 or byte_at(base, at + 16) != 58):
        return 0, NO
    year += 100 * century
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if year < 1970 or day > (28 + leap if month == 2 else 30 + (month + month // 8) % 2):
        return 0, NO
    at += 19
    micros = 0
    if byte_at(base, at) == 46:
        more, end = _digits(base, at + 1)
        if end < 0 or end - at > 7:
            return 0, NO
        for _ in range(7 - (end - at)):
            more *= 10
        micros, at = more, end
    offset = 0
    sign = byte_at(base, at)
    if sign == 90:
        at += 1
    elif sign == 43 or sign == 45:
        hours, minutes = _pair(base, at + 1), _pair(base, at + 4)
        if hours < 0 or hours > 23 or minutes < 0 or minutes > 59 or byte_at(base, at + 3) != 58:
            return 0, NO
        offset = (hours * 60 + minutes) * (1 if sign == 43 else -1)
        at += 6
    else:
        return 0, NO
    if byte_at(base, at) != 34:
        return 0, NO
    # Days since 1970 in the proleptic Gregorian calendar, years begun in March (Hinnant, "chrono-compatible low-level dates").
    shifted = year - (month <= 2)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = shifted * 365 + shifted // 4 - shifted // 100 + shifted // 400 + of_year - 719_468
    return ((days * 24 + hour) * 60 + minute - offset) * 60_000_000 + second * 1_000_000 + micros, at + 1
