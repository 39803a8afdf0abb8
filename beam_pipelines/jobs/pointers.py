"""Moves the active pointer of a surface: roll back, promote or withdraw a challenger, change its share. Loads no Beam."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.options import Config
from serving.pointer import PointerError, promoted, rolled_back, shared, withdrawn
from serving.stores import Store, StoreError, open_store
from serving.stores.base import Active


@dataclass(frozen=True)
class PointerReport:
    """What a surface serves now.

    Attributes:
      version: for everybody, or for all but the challenger's users.
      challenger, percent: the version that a share of the users sees, None and 0 without one.
      previous: what a rollback would return to.
      left: the version that users saw before and see no more; None where only a share changed.
    """

    surface: str
    version: str
    challenger: str | None
    percent: float
    previous: str | None
    left: str | None
    seconds: float


def rollback(config: Config, surface: str = "homepage") -> PointerReport:
    """One step back: withdraws the challenger where there is one, else makes the previous version active again; that one is
    not kept as previous, so that a second rollback cannot return to it.

    Raises:
      UserError: nothing was published before the active version, or its lists are gone.
      KeptPrevious: another publish came between.
    """
    return _move(config, surface, rolled_back, "nothing was rolled back")


def promote(config: Config, surface: str = "homepage") -> PointerReport:
    """Gives the challenger to everybody; raises as ``rollback``."""
    return _move(config, surface, promoted, "nothing was promoted")


def withdraw(config: Config, surface: str = "homepage") -> PointerReport:
    """Takes the challenger back; raises as ``rollback``."""
    return _move(config, surface, withdrawn, "nothing was withdrawn")


def share(config: Config, percent: float, surface: str = "homepage") -> PointerReport:
    """Gives the challenger to another share of the users; raises as ``rollback``."""
    return _move(config, surface, lambda active: shared(active, percent), "the share was not changed")


def flip(store: Store, surface: str, active: Active | None, new: Active, otherwise: str) -> None:
    """Sets the pointer if it still is ``active``; else raises KeptPrevious that begins with ``otherwise``."""
    if not store.flip(surface, active, new):
        raise KeptPrevious(f"{otherwise}: another publish changed {surface} meanwhile")


def _move(config: Config, surface: str, change: Callable[[Active | None], Active], otherwise: str) -> PointerReport:
    started = time.monotonic()
    try:
        store = open_store(config.store, create=False)
    except StoreError as error:
        raise UserError(f"nothing is published on {surface} yet: {error}") from error
    try:
        active = store.active(surface)
        try:
            new = change(active)
        except PointerError as error:
            raise UserError(f"{surface}: {error}") from error
        if (active is None or new.champion != active.champion) and new.champion not in store.versions():
            raise UserError(f"the lists of version {new.champion} are gone: publish another version instead")
        flip(store, surface, active, new, otherwise)
    finally:
        store.close()
    seen = {active.champion, active.challenger} if active else set()
    left = next(iter(seen - {new.champion, new.challenger, None}), None)
    return PointerReport(surface, new.champion, new.challenger, new.percent, new.previous, left, time.monotonic() - started)
