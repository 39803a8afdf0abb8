"""The workers of a server count each for itself and leave their counts in a folder every second; whoever is asked adds them.

Counts are samples of the Prometheus text: counters and histograms are added, of gauges the greatest counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from serving.logs import LOGGER

PERIOD_S, LOST_S = 1.0, 10.0
"""A file that is older is that of a worker which is gone: its counts stay, its gauges do not."""
_log = logging.getLogger(LOGGER)
Samples = dict[str, float]


class Peers:
    """The counts of all workers of a server. For one event loop.

    Args:
      folder: shared by the workers; None: there is this one only.
      lines: of this worker, in the Prometheus text format.
    """

    def __init__(self, folder: Path | None, lines: Callable[[], list[str]]) -> None:
        self._folder, self._lines = folder, lines
        self._file = folder / f"{os.getpid()}.prom" if folder is not None else None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to tell the others, in the running loop."""
        if self._file is not None:
            self._task = asyncio.get_running_loop().create_task(self._keep_telling())

    async def close(self) -> None:
        """Leaves the last counts behind."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._tell()

    def merged(self) -> list[str]:
        """Lines of all workers together, with the types first."""
        types, samples = merge([self._lines(), *self._others()])
        return [*(f"# TYPE {name} {kind}" for name, kind in types.items()),
                *(f"{name} {value:.10g}" for name, value in samples.items())]

    def samples(self) -> Samples:
        """Value by name with labels, of all workers together."""
        return merge([self._lines(), *self._others()])[1]

    def _others(self) -> Iterable[list[str]]:
        if self._folder is None:
            return
        now = time.time()
        for path in sorted(self._folder.glob("*.prom")):
            if path == self._file:
                continue
            with contextlib.suppress(OSError):
                lines = path.read_text().splitlines()
                yield lines if now - path.stat().st_mtime < LOST_S else _without_gauges(lines)

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            self._tell()

    def _tell(self) -> None:
        assert self._file is not None
        try:
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text("\n".join(self._lines()))
            os.replace(temporary, self._file)
        except OSError as error:
            _log.warning("counts could not be told to the other workers", extra={"fields": {"detail": str(error)}})


def merge(texts: Iterable[list[str]]) -> tuple[dict[str, str], Samples]:
    """(type by name, value by sample) of several expositions together."""
    types: dict[str, str] = {}
    samples: Samples = {}
    for lines in texts:
        for line in lines:
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ", 3)
                types[name] = kind
            elif line:
                name, _, value = line.rpartition(" ")
                held = samples.get(name)
                if held is None:
                    samples[name] = float(value)
                elif types.get(name.partition("{")[0]) == "gauge":
                    samples[name] = max(held, float(value))
                else:
                    samples[name] = held + float(value)
    return types, samples


def _without_gauges(lines: list[str]) -> list[str]:
    gauges = {line.split(" ")[2] for line in lines if line.startswith("# TYPE ") and line.endswith(" gauge")}
    return [line for line in lines if line.startswith("#") or line.rpartition(" ")[0].partition("{")[0] not in gauges]
