"""The HTTP API of a worker: app.py wires, one module per area has its routes (``router(state)``), the rest is shared.

A new route goes into the module of its area; a new area is a module and one line in app.AREAS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.api.app import App
    from serving.settings import Settings


def create_app(settings: Settings | None = None) -> App:
    """The application of a worker: see serving.api.app. Imported late, for the collector has its keys from here too."""
    from serving.api import app

    return app.create_app(settings)


__all__ = ["create_app"]
