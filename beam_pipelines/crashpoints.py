"""Named moments at which a test kills the process: ``BEAMREC_CRASH_AT=NAME`` (or NAME:3 for the third time) means SIGKILL.

Points stand between things that must hold together, such as a commit and its manifest. Without the variable they do nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "BEAMREC_CRASH_AT"
_passed = Counter[str]()


def reached(name: str) -> None:
    """Dies here, as by kill -9, when the variable names this point."""
    wanted, _, count = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
