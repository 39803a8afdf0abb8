"""The file of API keys: hashed, with roles. ``beamrec keys`` writes it, the API reads it.

A key is ``br_<id>_<secret>``, the secret 256 random bits. The file holds its SHA-256 only; a fast hash is enough for a random
secret of this length.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Literal, get_args

import msgspec

from schemas.workspace import write_atomically

Role = Literal["read", "write_events", "write_features", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""admin may do everything."""


class KeyFileError(ValueError):
    """A file of keys that cannot be read."""


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key as the file has it.

    Attributes:
      id: not secret: names it in logs and to ``beamrec keys revoke``.
      sha256: of the whole key, hex.
      roles: what it may do.
      name: who has it.
      rate: requests a second, 0 for no limit.
      created_at, revoked_at: microseconds since 1970.
    """

    id: str
    sha256: str
    roles: tuple[Role, ...]
    name: str = ""
    rate: float = 0.0
    created_at: int = 0
    revoked_at: int | None = None


class KeyFile(msgspec.Struct, frozen=True):
    """The file: keys, and the secret under which user ids are hashed in logs."""

    keys: tuple[Key, ...] = ()
    mask: str = ""

    @classmethod
    def read(cls, path: Path) -> KeyFile:
        """The keys of a file; raises KeyFileError, FileNotFoundError."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise KeyFileError(f"{path} is no file of keys: {error}") from error

    def write(self, path: Path) -> None:
        """Replaces the file, readable by its owner alone."""
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n", mode=0o600)


def new_key(roles: tuple[Role, ...], name: str, rate: float, now: int) -> tuple[str, Key]:
    """(the key to hand out, what the file keeps of it)."""
    key_id = secrets.token_hex(4)
    text = f"br_{key_id}_{secrets.token_urlsafe(32)}"
    return text, Key(key_id, hashlib.sha256(text.encode()).hexdigest(), roles, name, rate, now)
