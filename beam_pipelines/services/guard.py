"""Kills servers when the process that wanted them is gone: ``python -m beam_pipelines.services.guard PID``, tokens on stdin."""

from __future__ import annotations

import os
import select
import sys

from beam_pipelines.services.process import kill_marked


def watch(parent: int) -> None:
    """Reads tokens, one a line, until stdin ends or ``parent`` is no longer ours; then kills what runs under them."""
    tokens = b""
    while os.getppid() == parent:  # a forked child may hold the pipe open, so its end alone does not tell
        if select.select([0], [], [], 0.5)[0]:
            chunk = os.read(0, 4096)
            if not chunk:
                break
            tokens += chunk
    for token in tokens.decode().split():
        kill_marked(token)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
