"""The store protocol (base), its implementations, and ``open_store``; one contract suite runs over all implementations."""

from __future__ import annotations

from serving.stores.base import Store, StoreError
from serving.stores.sqlite import SqliteStore

__all__ = ["Store", "StoreError", "StoreUriError", "open_store"]


class StoreUriError(StoreError):
    """A store URI that names no store this build can open."""


def open_store(uri: str, create: bool = True) -> Store:
    """The store behind a URI, ``sqlite:PATH``.

    Args:
      uri: as the flag --store takes it.
      create: make the store when it is not there; readers pass False.

    Raises:
      StoreUriError: no PATH, or a scheme that this build does not know.
      StoreError: the store cannot be opened, or is not there and create is False.
    """
    scheme, colon, rest = uri.partition(":")
    if scheme == "sqlite" and colon:
        if not rest:
            raise StoreUriError("--store sqlite:PATH needs a path")
        return SqliteStore(rest, create)
    if scheme == "bigtable":
        raise StoreUriError(f"{uri}: Bigtable stores are not part of this release; use sqlite:PATH")
    raise StoreUriError(f"--store {uri!r} is not a store; use sqlite:PATH")
