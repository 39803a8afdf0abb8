"""The parameters of a list: from a query string to an Ask, without a framework between; their description for /openapi.json."""

from __future__ import annotations

import re
import secrets
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from schemas.keys import hash64
from serving.api.cursors import MAX_CURSOR, CursorError, decode_cursor
from serving.api.limits import MAX_EXCLUDE, MAX_EXCLUDE_BYTES, MAX_ID, MAX_ITEMS, MAX_PAGE, MAX_QUERY
from serving.api.problems import ProblemError, invalid
from serving.ranking.model import Ask
from serving.responses import ParameterError

CONTEXT, PAGE = "homepage", 20
MAX_REQUEST_ID = 128
_ID, _SURFACE, _TOKEN = r"^[^\x00-\x1f\x7f]+$", r"^[a-z0-9][a-z0-9_-]*$", r"^[\x21-\x7e]+$"
_IS_ID, _IS_SURFACE, _IS_TOKEN = (re.compile(pattern[:-1] + r"\Z") for pattern in (_ID, _SURFACE, _TOKEN))
_NO_ONE = np.zeros(0, np.uint32)
Fields = dict[str, list[str]]


def fields_of(query: bytes) -> Fields:
    """The values of each parameter, in order; raises ProblemError 422."""
    if len(query) > MAX_QUERY:
        raise ProblemError(422, f"a query string has at most {MAX_QUERY:,} bytes")
    found: Fields = {}
    if query.isascii() and b"%" not in query and b"+" not in query:  # it stands for itself
        for field in str(query, "ascii").split("&"):
            if field:
                key, _, said = field.partition("=")
                if key in found:
                    found[key].append(said)
                else:
                    found[key] = [said]
        return found
    for part in query.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            key = _text(name, "name of a parameter")
            found.setdefault(key, []).append(_text(value, key))
    return found


def _text(raw: bytes, name: str) -> str:
    if b"%" in raw or b"+" in raw:
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise invalid([ParameterError(name[:64], "is not UTF-8")]) from None


class Reader:
    """Reads typed values out of fields and collects what is wrong with them."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self.errors: list[ParameterError] = []

    def wrong(self, name: str, detail: str) -> None:
        """Notes what is wrong with a parameter."""
        self.errors.append(ParameterError(name, detail))

    def done(self) -> None:
        """Raises ProblemError 422 when anything was wrong."""
        if self.errors:
            raise invalid(self.errors)

    def id(self, name: str, required: bool = False) -> str:
        """An id, "" where it may be missing and is."""
        values = self._fields.get(name)
        if values is None:
            if required:
                self.wrong(name, "is required")
            return ""
        return self.check_id(name, values[-1])

    def check_id(self, name: str, value: str) -> str:
        """An id that was found elsewhere, such as in a path."""
        if not 0 < len(value) <= MAX_ID:
            self.wrong(name, f"has 1 to {MAX_ID} characters")
        elif not _IS_ID.match(value):
            self.wrong(name, "has no control characters")
        return value

    def ids(self, name: str, most: int) -> tuple[str, ...]:
        """Ids, repeated."""
        values = self._fields.get(name)
        if values is None:
            return ()
        if len(values) > most:
            self.wrong(name, f"at most {most} ids")
            return ()
        for value in values:
            if not 0 < len(value) <= MAX_ID or not _IS_ID.match(value):
                self.wrong(name, f"an id has 1 to {MAX_ID} characters, none of control")
                return ()
        return tuple(dict.fromkeys(values))

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number."""
        values = self._fields.get(name)
        if values is None:
            return default
        text = values[-1]
        if text.isascii() and text.isdecimal() and len(text) <= 9 and low <= int(text) <= high:
            return int(text)
        self.wrong(name, f"is a whole number from {low} to {high}")
        return default

    def share(self, name: str) -> float | None:
        """A number from 0 to 1, None where it is missing."""
        values = self._fields.get(name)
        if values is None:
            return None
        try:
            value = float(values[-1]) if len(values[-1]) <= 32 and values[-1].isascii() else -1.0
        except ValueError:
            value = -1.0
        if 0.0 <= value <= 1.0:
            return value
        self.wrong(name, "is a number from 0 to 1")
        return None

    def surface(self, name: str) -> str:
        """The name of a surface or context."""
        values = self._fields.get(name)
        if values is None:
            return CONTEXT
        if len(values[-1]) > 32 or not _IS_SURFACE.match(values[-1]):
            self.wrong(name, "has 1 to 32 characters: a-z, 0-9, - and _")
        return values[-1]

    def request_id(self) -> str:
        """The client's, or a new one."""
        values = self._fields.get("request_id")
        if values is None:
            return _new_id()
        if len(values[-1]) > MAX_REQUEST_ID or not _IS_TOKEN.match(values[-1]):
            self.wrong("request_id", f"has 1 to {MAX_REQUEST_ID} visible ASCII characters")
        return values[-1]

    def exclude(self) -> frozenset[str]:
        """Item ids; a value with commas stands for itself and for its parts."""
        values = self._fields.get("exclude")
        if values is None:
            return frozenset()
        if len(values) > MAX_EXCLUDE or sum(map(len, values)) > MAX_EXCLUDE_BYTES:
            self.wrong("exclude", f"at most {MAX_EXCLUDE} ids of {MAX_EXCLUDE_BYTES} characters together")
            return frozenset()
        ids = frozenset(part for value in values for part in (value, *value.split(",")) if part)
        if len(ids) > MAX_EXCLUDE + len(values):
            self.wrong("exclude", f"at most {MAX_EXCLUDE} item ids")
        return ids

    def cursor(self) -> tuple[str | None, np.ndarray]:
        """(version, shown) of the pages before."""
        values = self._fields.get("cursor")
        if values is None:
            return None, _NO_ONE
        try:
            return decode_cursor(values[-1])
        except CursorError as error:
            self.wrong("cursor", str(error))
            return None, _NO_ONE


_random = bytearray()


def _new_id() -> str:
    """32 random hex digits; the system is asked for many at once."""
    if not _random:
        _random.extend(secrets.token_bytes(4096))
    found = _random[-16:].hex()
    del _random[-16:]
    return found


def list_ask(query: bytes) -> Ask:
    """What GET /v1/recommendations asks for; raises ProblemError 422."""
    read = Reader(fields_of(query))
    version, shown = read.cursor()
    ask = Ask(read.id("user_id", required=True), read.surface("context"), read.ids("item_id", MAX_ITEMS),
              read.whole("page_size", PAGE, 1, MAX_PAGE), read.exclude(), shown, version, read.request_id())
    read.done()
    return ask


def user_ask(user_id: str, query: bytes) -> Ask:
    """What GET /recommendations/{user_id} asks for; raises ProblemError 422."""
    read = Reader(fields_of(query))
    ask = Ask(read.check_id("user_id", user_id), read.surface("surface"), page_size=read.whole("limit", PAGE, 1, MAX_PAGE),
              request_id=read.request_id())
    read.done()
    return ask


def shown_hash(item_id: str) -> int:
    """What stands for an item in Ask.shown."""
    return hash64(item_id) & 0xFFFFFFFF


def parameter(name: str, schema: dict[str, Any], description: str, place: str = "query",
              required: bool = False) -> dict[str, Any]:
    """One entry of an operation's ``parameters``."""
    return {"name": name, "in": place, "required": required, "schema": schema, "description": description}


def text(most: int, pattern: str = "", **more: Any) -> dict[str, Any]:
    """The schema of a text."""
    return {"type": "string", "minLength": 1, "maxLength": most, **({"pattern": pattern} if pattern else {}), **more}


ID, SURFACE = text(MAX_ID, _ID), text(32, _SURFACE, default=CONTEXT)
WHOLE = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE}
REQUEST = parameter("request_id", text(MAX_REQUEST_ID, _TOKEN), "names the answer in logs and in the "
                    "events that follow from it; a new one by default")
LIST_PARAMETERS = [
    parameter("user_id", ID, "whose list; somebody never seen gets what is popular", required=True),
    parameter("context", SURFACE, "where it is shown: homepage, item, cart or email; another one is ranked as homepage"),
    parameter("item_id", {"type": "array", "items": ID, "maxItems": MAX_ITEMS}, "the item, or those in the cart, that the list "
              "goes with; repeated"),
    parameter("page_size", WHOLE, "items of the page"),
    parameter("cursor", text(MAX_CURSOR), "next_cursor of the page before"),
    parameter("exclude", {"type": "array", "maxItems": MAX_EXCLUDE, "items": {"type": "string"}}, "item ids to leave out: "
              f"repeated, or with commas; {MAX_EXCLUDE_BYTES:,} characters together"),
    REQUEST,
]
USER_PARAMETERS = [
    parameter("user_id", ID, "whose list", "path", required=True),
    parameter("surface", SURFACE, "as context of /v1/recommendations"),
    parameter("limit", WHOLE, "items"),
    REQUEST,
]
