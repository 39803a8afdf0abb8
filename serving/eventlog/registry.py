"""A schema registry's client: which Avro schema the id of a Confluent header names."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from serving.eventlog.base import LogUnavailable, LogUriError

URL, USER_INFO = "schema.registry.url", "schema.registry.basic.auth.user.info"
"""Settings of the client file that are the registry's, not Kafka's."""

_MAX_BYTES = 1 << 20
_TIMEOUT_S = 5.0
_UNKNOWN_S = 30.0  # an id that is unknown now may be registered soon
_MAX_UNKNOWN = 10_000


class SchemaRegistry:
    """Looks schemas up by ``GET URL/schemas/ids/ID`` and keeps them: an id never changes its schema. Safe for threads."""

    def __init__(self, url: str, user_info: str | None = None) -> None:
        """Connects lazily.

        Args:
          url: http:// or https://, without credentials.
          user_info: ``USER:PASSWORD`` of basic authentication.

        Raises:
          LogUriError: the URL is none of these.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise LogUriError(f"{URL} is http://HOST:PORT or https://…, credentials go into {USER_INFO}")
        self._url = url.rstrip("/")
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json"}
        if user_info:
            self._headers["Authorization"] = f"Basic {base64.b64encode(user_info.encode()).decode()}"
        self._known: dict[int, Mapping[str, Any]] = {}
        self._unknown: dict[int, float] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SchemaRegistry({self._url})"

    def writer_schema(self, schema_id: int) -> Mapping[str, Any] | None:
        """The parsed Avro schema of an id; None when the registry has no such id, or it is no Avro schema.

        Raises:
          LogUnavailable: the registry does not answer, or not as a registry does.
        """
        with self._lock:
            if schema_id in self._known:
                return self._known[schema_id]
            if self._unknown.get(schema_id, 0.0) > time.monotonic():
                return None
            schema = self._ask(schema_id)
            if schema is None:
                if len(self._unknown) >= _MAX_UNKNOWN:
                    self._unknown.clear()
                self._unknown[schema_id] = time.monotonic() + _UNKNOWN_S
            else:
                self._known[schema_id] = schema
            return schema

    def _ask(self, schema_id: int) -> Mapping[str, Any] | None:
        request = urllib.request.Request(f"{self._url}/schemas/ids/{schema_id}", headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                found = json.loads(answer.read(_MAX_BYTES))
            if found.get("schemaType", "AVRO") != "AVRO":
                return None
            schema = json.loads(found["schema"])
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise LogUnavailable(f"the schema registry {self._url} answers {error.code}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = getattr(error, "reason", None) or type(error).__name__
            raise LogUnavailable(f"the schema registry {self._url} does not answer as one: {why}") from None
        return schema if isinstance(schema, dict) else None


def open_registry(settings: Mapping[str, str]) -> SchemaRegistry | None:
    """The registry that client settings name; None when they name none."""
    return SchemaRegistry(settings[URL], settings.get(USER_INFO)) if URL in settings else None
