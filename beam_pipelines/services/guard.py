"""Kills servers when a process is gone: ``python -m beam_pipelines.services.guard PID TICKS``, tokens on stdin, one a line."""

from __future__ import annotations

import os
import select
import sys
import time

from beam_pipelines.services.process import kill_marked, ticks


def watch(pid: int, started: int) -> None:
    """Waits until the process that started at ``started`` ticks is gone, then kills what runs under the tokens."""
    tokens, is_open = b"", True
    while ticks(pid) == started:
        if not is_open:  # the command that started the servers ended; the process to watch did not
            time.sleep(0.5)
        elif select.select([0], [], [], 0.5)[0]:
            chunk = os.read(0, 4096)
            tokens, is_open = tokens + chunk, bool(chunk)
    while is_open and select.select([0], [], [], 0)[0] and (chunk := os.read(0, 4096)):
        tokens += chunk
    for token in tokens.decode().split():
        kill_marked(token)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]))
