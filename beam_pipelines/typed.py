"""Paths and the command's own name as a person in the current folder would type them."""

from __future__ import annotations

import sys
from pathlib import Path


def short(path: Path) -> str:
    """A path, from the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def program() -> str:
    """``beamrec``, as it was typed now: in a checkout without an active environment that is .venv/bin/beamrec."""
    typed = Path(sys.argv[0])
    return short(typed.absolute()) if typed.name == "beamrec" else "beamrec"
