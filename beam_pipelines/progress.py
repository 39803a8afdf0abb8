"""Progress bars on stderr; nothing at all when quiet or when stderr is not a terminal and --json was asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

T = TypeVar("T")


class Stage:
    """One bar. ``with Stage("import", total=10, unit="files") as stage: stage.advance()``.

    On a terminal it draws a bar; otherwise it prints one line when it ends, so that a log stays readable.
    """

    def __init__(self, title: str, total: float | None = None, quiet: bool = False) -> None:
        self.title, self.total, self.quiet = title, total, quiet
        self._console = Console(stderr=True, quiet=quiet)
        self._progress: Progress | None = None
        self._started = time.monotonic()
        self.seconds = 0.0

    def __enter__(self) -> Stage:
        if not self.quiet and sys.stderr.isatty():
            self._progress = Progress(
                SpinnerColumn(), TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=self._console)
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=self.total, note="")
        return self

    def advance(self, steps: float = 1, note: str | None = None) -> None:
        """Moves the bar on; ``note`` stands to its right."""
        if self._progress is not None:
            if note is not None:
                self._progress.update(self._task, note=note)
            self._progress.advance(self._task, steps)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items, one step each."""
        for item in items:
            yield item
            self.advance()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds = time.monotonic() - self._started
        if self._progress is not None:
            if kind is None and self.total is None:
                self._progress.update(self._task, total=1, completed=1)
            self._progress.stop()
        elif not self.quiet and kind is not KeyboardInterrupt:  # of that the command tells
            state = "done" if kind is None else "failed"
            self._console.print(f"{self.title}: {state} in {self.seconds:.1f} s", highlight=False)
