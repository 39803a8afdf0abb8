"""Cursors: which version the pages before came from, and what they showed; so no item comes twice, whatever changes between.

Base64url of: layout (1 byte), CRC-32 of what follows (4), length of the version (1), version, then 4 bytes per item shown.
The CRC is no signature: a forged cursor can only hide items from whoever forged it, and versions that are not served are
never read.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schemas.keys import hash64

MAX_SHOWN = 1000
"""Items over all pages: then there is no next one."""
_LAYOUT = b"\x02"
_HEAD = 6
MAX_CURSOR = 4 * (_HEAD + 255 + 4 * MAX_SHOWN) // 3 + 4
"""Characters."""


class CursorError(ValueError):
    """A cursor that this API did not hand out."""

    def __init__(self) -> None:
        super().__init__("not a cursor of this API; leave it out to start at the first page")


def encode_cursor(version: str, shown: npt.NDArray[np.uint32], page: Sequence[str]) -> str | None:
    """The cursor of the next page: ``shown`` (n,) before this page, and the ids of this page; None when too long."""
    named = version.encode()
    if len(shown) + len(page) > MAX_SHOWN or len(named) > 255:
        return None
    hashes = np.array([hash64(item) for item in page], np.uint64).astype("<u4")  # their low halves
    rest = bytes((len(named),)) + named + shown.tobytes() + hashes.tobytes()
    return base64.urlsafe_b64encode(_LAYOUT + zlib.crc32(rest).to_bytes(4, "little") + rest).decode().rstrip("=")


def decode_cursor(text: str) -> tuple[str, npt.NDArray[np.uint32]]:
    """(version, shown (n,)); raises CursorError."""
    if len(text) > MAX_CURSOR:
        raise CursorError
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CursorError from error
    if len(raw) < _HEAD or raw[:1] != _LAYOUT or zlib.crc32(raw[5:]) != int.from_bytes(raw[1:5], "little"):
        raise CursorError
    at = _HEAD + raw[5]
    if len(raw) < at or (len(raw) - at) % 4 or len(raw) - at > 4 * MAX_SHOWN:
        raise CursorError
    try:
        return raw[_HEAD:at].decode(), np.frombuffer(raw, "<u4", offset=at)
    except UnicodeDecodeError as error:
        raise CursorError from error
