"""The store protocol (base), its implementations, and ``open_store``; one contract suite runs over all implementations."""

from __future__ import annotations

from serving.stores.base import Store, StoreError
from serving.stores.sqlite import SqliteStore

__all__ = ["Store", "StoreError", "StoreUriError", "open_store"]


class StoreUriError(StoreError):
    """A store URI that names no store this build can open."""


def open_store(uri: str, create: bool = True, patient: bool | None = None) -> Store:
    """The store behind a URI, ``sqlite:PATH`` or ``bigtable://PROJECT/INSTANCE``.

    Args:
      uri: as the flag --store takes it.
      create: make the store when it is not there; readers pass False, and workers whose job made it: one that is away for
        a while must not be replaced by an empty one.
      patient: wait for locks and servers as jobs do, a minute; default: as ``create``.

    Raises:
      StoreUriError: no PATH, a scheme that this build does not know, or Bigtable's client is not installed.
      StoreError: the store cannot be opened, or is not there and create is False.
    """
    patient = create if patient is None else patient
    scheme, colon, rest = uri.partition(":")
    if scheme == "sqlite" and colon:
        if not rest:
            raise StoreUriError("--store sqlite:PATH needs a path")
        return SqliteStore(rest, create, patient)
    if scheme == "bigtable" and colon:
        return _open_bigtable(uri, create, patient)
    raise StoreUriError(f"--store {uri!r} is not a store; use sqlite:PATH or bigtable://PROJECT/INSTANCE")


def _open_bigtable(uri: str, create: bool, patient: bool) -> Store:
    try:
        from serving.stores.bigtable import BigtableStore, Layout  # seconds of Google's modules
    except ImportError as error:
        raise StoreUriError(f"{uri} needs Bigtable's client: pip install 'beamrec[bigtable]'") from error
    try:
        Layout.of(uri)
    except StoreError as error:
        raise StoreUriError(str(error)) from error
    return BigtableStore(uri, create, patient)
