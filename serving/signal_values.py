"""Numbers of a user by feature name, of Signals.values: those that are no defaults, and where each is from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from schemas.cells import CellError, decode_vector
from schemas.features import REGISTRY
from schemas.put_cells import Put
from schemas.stream_cells import Session, ring_values, session_numbers
from serving.merge import Cells, is_fresh

USER_FEATURES = {f.name: f for f in REGISTRY.of("user")}
STATS = REGISTRY.features_of("user_stats")
RING_NAMES = {group: [f.name for f in REGISTRY.features_of(group)] for group in ("user_panes", "user_day")}
_NO_TIMES = np.zeros(0, np.int64)
_NO_SESSION = Session(0, 0, 0, 0, 0, 0, 0, 0, 0, ([], _NO_TIMES, np.zeros(0, np.float32)), [], _NO_TIMES)
NUMBERS = (*(f.name for f in STATS), *(name for names in RING_NAMES.values() for name in names), *session_numbers(_NO_SESSION))
"""Numbers of a user, in the order in which they are told."""


class Values(Mapping[str, float]):
    """Numbers of a user that are no defaults, by feature name: made when the first is asked for."""

    @cached_property
    def found(self) -> dict[str, tuple[float, str]]:
        """(value, source) by name; those of a broken cell are left out: they are only logged."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> float:
        return self.found[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


class AtOnce(Values):
    """Those that read_cells found, (len(NUMBERS),), NaN for none."""

    def __init__(self, numbers: npt.NDArray[np.float64]) -> None:
        self.numbers = numbers

    @cached_property
    def found(self) -> dict[str, tuple[float, str]]:
        """See Values."""
        return {name: (value, "batch" if at < len(STATS) else "stream")
                for at, (name, value) in enumerate(zip(NUMBERS, self.numbers.tolist(), strict=True)) if value == value}


class Each(Values):
    """Those of cells that are read one by one."""

    def __init__(self, batch: Cells, stream: Cells, puts: Mapping[str, Put], session: Session | None, alive: bool,
                 now: int) -> None:
        self._batch, self._stream, self._puts, self._session = batch, stream, puts, session
        self._alive, self._now = alive, now

    @cached_property
    def found(self) -> dict[str, tuple[float, str]]:
        """See Values."""
        found: dict[str, tuple[float, str]] = {}
        with contextlib.suppress(CellError):
            self._add_batch(found)
        with contextlib.suppress(CellError):
            self._add_stream(found)
        return found

    def _add_batch(self, found: dict[str, tuple[float, str]]) -> None:
        stats, since = self._batch.get("user_stats"), math.inf
        if stats is not None:
            age = (self._now - stats.timestamp) / 1e6
            values = zip(STATS, decode_vector(stats.value).tolist(), strict=False)
            found.update((f.name, (value, "batch")) for f, value in values if value == value and age <= f.ttl)
            since = stats.timestamp
        for name, put in self._puts.items():
            feature = USER_FEATURES.get(name)
            if feature is None or isinstance(put.value, tuple) or not is_fresh(put, feature, self._now):
                continue
            if name not in found or put.computed_at >= since:
                found[name] = put.value, "batch"

    def _add_stream(self, found: dict[str, tuple[float, str]]) -> None:
        if self._alive:
            for group, names in RING_NAMES.items():
                if (cell := self._stream.get(group)) is not None:
                    sums = ring_values(group, cell.value, self._now)
                    found.update((name, (float(value), "stream")) for name, value in zip(names, sums, strict=False))
            if self._session is not None:
                found.update((name, (value, "stream")) for name, value in session_numbers(self._session).items()
                             if value == value)


def numbers_of(values: Mapping[str, float]) -> npt.NDArray[np.float64] | None:
    """(len(NUMBERS),) Signals.values, NaN for none; None where they may be others than those of NUMBERS."""
    return values.numbers if isinstance(values, AtOnce) else None


class Sources(Mapping[str, str]):
    """Where the numbers of Values are from."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values.found[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values.found)

    def __len__(self) -> int:
        return len(self._values.found)
