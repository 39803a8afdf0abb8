"""Bearer keys: what a request may do, how often, and the audit line of what it did.

Keys and roles are those of serving.api_keys; their file is looked at once a second, also while it is not there yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from fastapi import Depends, Request
from starlette.datastructures import Headers

from serving.api.limits import SharedBuckets, TokenBuckets
from serving.api.problems import ProblemError
from serving.api_keys import Key, KeyFile, KeyFileError, Role
from serving.logs import LOGGER
from serving.settings import Settings

LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))
RELOAD_SECONDS = 1.0
BURST_SECONDS = 2.0
"""A key may use so many seconds' worth of its rate at once."""
_NO_KEY = hashlib.sha256(b"").hexdigest()
_log = logging.getLogger(LOGGER)


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the id of a key, "" for none, and what it may do; ``limited``: only so often."""

    key: str
    roles: frozenset[str]
    address: str = ""
    limited: bool = False


class RawHeaders:
    """Headers as they came.

    Args:
      held: by name in small letters; of equal ones the first.
    """

    def __init__(self, held: Mapping[bytes, bytes]) -> None:
        self._held = held

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of a header."""
        value = self._held.get(name.encode())
        return value.decode("latin-1") if value is not None else default


class Guard:
    """Decides who may do what. For one event loop.

    Args:
      settings: file of keys, roles without a key, limits.
      changed: called when there are keys, or others than before.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic,
                 changed: Callable[[], object] | None = None) -> None:
        self._settings, self._now, self._changed = settings, now, changed
        shared = settings.run if settings.workers > 1 else None
        self._buckets = SharedBuckets(shared / "limits", now) if shared is not None else TokenBuckets(now)
        self._share = 1.0 if shared is not None else 1.0 / settings.workers
        self._anonymous = frozenset(settings.anonymous)
        self._keys: dict[str, Key] = {}
        self._checked, self._modified = -RELOAD_SECONDS, 0
        self._open = "admin" in self._anonymous and (settings.keys is None or not settings.keys.exists())
        self._trouble = ""
        self._look: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to look at the file of keys, in the running loop."""
        if self._settings.keys is not None:
            self._read(self._settings.keys)
            self._look = asyncio.get_running_loop().call_later(RELOAD_SECONDS, self.start)

    def close(self) -> None:
        """Ends."""
        if self._look is not None:
            self._look.cancel()

    def passes(self, role: Role) -> bool:
        """Whether a request without a key has a role now."""
        return _may(self._anonymous, role)

    def check(self, headers: Headers | RawHeaders, role: Role | None, address: str = "") -> Caller:
        """Who asks; raises ProblemError 401, 403 or 429. ``role`` None asks for a right to anything."""
        said = headers.get("authorization")
        if said is None:
            if self._open:
                _refuse_foreign_pages(headers)
            elif not self._anonymous or (role is not None and not _may(self._anonymous, role)):
                raise _unknown("send the header Authorization: Bearer KEY")
            if self._settings.anonymous_rate:
                self._take(f"@{address}", self._settings.anonymous_rate)
            return Caller("", self._anonymous, address, self._settings.anonymous_rate > 0)
        scheme, _, text = said.partition(" ")
        key = self._find(text.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            self._take(f"!{address}", 20.0)  # who tries keys is slowed down
            raise _unknown("the key is not known, or was revoked")
        if key.rate:
            self._take(key.id, key.rate)
        if role is not None and not _may(frozenset(key.roles), role):
            raise ProblemError(403, f"this key has no role {role}")
        return Caller(key.id, frozenset(key.roles), address, key.rate > 0)

    def needs(self, role: Role) -> Any:
        """A FastAPI dependency that lets a role pass and gives the Caller."""

        def who(request: Request) -> Caller:
            return self.check(request.headers, role, request.client.host if request.client else "")

        who.role = role  # type: ignore[attr-defined]  # the description says it
        return Depends(who)

    def _take(self, name: str, rate: float) -> None:
        share = rate * self._share
        wait = self._buckets.take(name, share, max(1.0, share * BURST_SECONDS))
        if wait:
            raise ProblemError(429, f"more than {rate:g} requests a second", headers={"Retry-After": str(int(wait) + 1)})

    def _find(self, text: str) -> Key | None:
        self._reload()
        parts = text.split("_", 2)
        key = self._keys.get(parts[1]) if len(parts) == 3 and len(text) <= 256 else None
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        same = hmac.compare_digest(digest, key.sha256 if key is not None else _NO_KEY)
        return key if same and key is not None and key.revoked_at is None else None

    def _reload(self) -> None:
        """Looks at the file once a second."""
        path = self._settings.keys
        if path is not None and self._now() - self._checked >= RELOAD_SECONDS:
            self._read(path)

    def _read(self, path: Path) -> None:
        """Reads the file if it has changed; one that cannot be read leaves the keys as they were."""
        self._checked = self._now()
        try:
            modified = path.stat().st_mtime_ns
            if modified != self._modified:
                self._close_door()
                self._keys = {key.id: key for key in KeyFile.read(path).keys}
                self._modified = modified
            self._trouble = ""
        except (OSError, KeyFileError) as error:
            waits = not self._modified and isinstance(error, FileNotFoundError)
            if not waits and str(error) != self._trouble:
                self._trouble = str(error)
                _log.warning("keys unreadable", extra={"fields": {"detail": self._trouble}})

    def _close_door(self) -> None:
        """There is a file of keys, and it is new: whoever was let in before is looked at again."""
        self._open = False
        if self._settings.until_keys:
            self._anonymous = frozenset()
        if self._changed is not None:
            self._changed()


def audit(caller: Caller, action: str, **fields: object) -> None:
    """The line of a write or an admin call; mask user ids (serving.logs.mask) before."""
    _log.info("audit", extra={"fields": {"action": action, "key": caller.key or "anonymous", "address": caller.address,
                                         **fields}})


def _may(roles: frozenset[str], role: str) -> bool:
    return role in roles or "admin" in roles


def _unknown(detail: str) -> ProblemError:
    return ProblemError(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _refuse_foreign_pages(headers: Headers | RawHeaders) -> None:
    """A server without keys listens on this machine only: but a page of the web that its user looks at could reach it."""
    refused = _foreign((headers.get("host") or "")[:300], headers.get("origin"))
    if refused:
        raise ProblemError(403, refused)


@lru_cache(256)
def _foreign(named: str, origin: str | None) -> str:
    """Why a request to a host, by a page of an origin, is refused; "" where it is not."""
    try:
        host = urlsplit(f"//{named}")
        mine, same = host.hostname in LOOPBACK, origin is None or urlsplit(origin).netloc == host.netloc
    except ValueError:
        mine = same = False
    if not mine:
        return "a server without keys answers to localhost only"
    return "" if same else "a server without keys takes no requests of other pages"
