"""A request's head compared with one that was parsed before: the same bytes, but for the digits of the body's length."""

from __future__ import annotations

import re
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"
_DIGITS = 10


class KnownHead(NamedTuple):
    """A head to compare with.

    Attributes:
      before, after: its bytes before the length's digits, and after them to the body.
      key: what its Authorization says.
    """

    before: bytes
    after: bytes
    key: bytes


def head_of(data: bytes, key: bytes) -> KnownHead | None:
    """The head of data that is one whole request; None where its length is not to be found."""
    end = data.find(_END) + len(_END)
    found = _LENGTH.search(data, 0, end)
    if found is None or int(found[1]) != len(data) - end:
        return None
    return KnownHead(data[: found.start(1)], data[found.end(1) : end], key)


def body_of(data: bytes, known: KnownHead) -> bytes | None:
    """The body of data that is one whole request with the head known; else None."""
    before, after, _ = known
    if not data.startswith(before):
        return None
    first = len(before)
    last = data.find(b"\r", first, first + _DIGITS)
    if last < 0 or not data.startswith(after, last):
        return None
    digits, begin = data[first:last], last + len(after)
    return data[begin:] if digits.isdigit() and int(digits) == len(data) - begin else None
