"""What may become of a surface's active pointer: publish, canary, promote, withdraw, roll back. Pure; a flip stores it."""

from __future__ import annotations

from dataclasses import replace

from serving.stores.base import Active

GRAIN = 0.01
"""Percent: the finest share of users that a challenger can have."""


class PointerError(ValueError):
    """What was asked makes no sense for this pointer; says why."""


def versions_of(active: Active) -> list[str]:
    """The versions that a pointer names: champion, challenger, previous."""
    return [v for v in (active.champion, active.challenger, active.previous) if v is not None]


def parse_percent(text: str) -> float:
    """The share of users in ``1%``, ``0.5%`` or ``25``: a percentage from GRAIN to 100; raises PointerError."""
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not GRAIN <= percent <= 100:
        raise PointerError(f"a share of users is from {GRAIN:g}% to 100%, like 1% or 0.5%, not {text!r}")
    return round(percent, 2)


def published(active: Active | None, version: str) -> Active:
    """A version for everybody; what was champion is what a rollback returns to. A challenger of that version is done."""
    if active is None:
        return Active(version)
    if active.champion == version:
        return active
    if active.challenger == version:
        return promoted(active)
    return replace(active, champion=version, previous=active.champion)


def challenged(active: Active | None, version: str, percent: float) -> Active:
    """A version for ``percent`` of the users; raises PointerError."""
    if active is None:
        raise PointerError("nothing is served yet, so there is nothing to compare with: publish a version for everybody first")
    if active.champion == version:
        raise PointerError(f"version {version} is served to everybody already")
    return replace(active, challenger=version, percent=percent)


def shared(active: Active | None, percent: float) -> Active:
    """Another share for the challenger that is there; users that had it keep it when the share grows."""
    return replace(_with_challenger(active), percent=percent)


def promoted(active: Active | None) -> Active:
    """The challenger for everybody."""
    found = _with_challenger(active)
    assert found.challenger is not None
    return Active(found.challenger, previous=found.champion)


def withdrawn(active: Active | None) -> Active:
    """No challenger: the champion for everybody."""
    return replace(_with_challenger(active), challenger=None, percent=0)


def rolled_back(active: Active | None) -> Active:
    """One step back: without the challenger where there is one, else the version before. That version is not kept as
    previous, so that a second rollback cannot return to it. Raises PointerError."""
    if active is None:
        raise PointerError("nothing is published yet")
    if active.challenger is not None:
        return withdrawn(active)
    if active.previous is None:
        raise PointerError(f"no version was active before {active.champion}: nothing to roll back to")
    return replace(active, champion=active.previous, previous=None)


def _with_challenger(active: Active | None) -> Active:
    if active is None:
        raise PointerError("nothing is published yet")
    if active.challenger is None:
        raise PointerError(f"no challenger runs beside {active.champion}: start one with 'beamrec publish VERSION --canary 1%'")
    return active
