"""The HTTP API of a worker: app.py wires, one module per area has its routes (``router(state)``), the rest is shared.

A new route goes into the module of its area; a new area is a module and one line in app.AREAS.
"""

from serving.api.app import create_app

__all__ = ["create_app"]
