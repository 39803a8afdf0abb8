"""Cursors: which version the pages before came from, and what they showed; so no item comes twice, whatever changes between.

Base64url of: layout (1 byte), CRC-32 of what follows (4), length of the version (1), version, then 4 bytes per item shown.
The CRC is no signature: a forged cursor can only hide items from whoever forged it, and versions that are not served are
never read.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np
import numpy.typing as npt

MAX_SHOWN = 1000
"""Items over all pages: then there is no next one."""
_LAYOUT = b"\x02"
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_HEAD = 6
_U32 = np.dtype("<u4")
MAX_CURSOR = 4 * (_HEAD + 255 + 4 * MAX_SHOWN) // 3 + 4
"""Characters."""


class CursorError(ValueError):
    """A cursor that this API did not hand out."""

    def __init__(self) -> None:
        super().__init__("not a cursor of this API; leave it out to start at the first page")


def encode_cursor(version: str, shown: npt.NDArray[np.uint32], page: npt.NDArray[np.uint32]) -> str | None:
    """The cursor of the next page: what was shown before this page (n,), and on it (k,); None when too long."""
    named = version.encode()
    if len(shown) + len(page) > MAX_SHOWN or len(named) > 255:
        return None
    rest = b"%c%b%b%b" % (len(named), named, shown.tobytes(), (page if page.dtype == _U32 else page.astype(_U32)).tobytes())
    raw = _LAYOUT + zlib.crc32(rest).to_bytes(4, "little") + rest
    return binascii.b2a_base64(raw, newline=False).translate(_URL_SAFE, b"=").decode()


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
