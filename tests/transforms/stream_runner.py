"""A runner of one bucket, played by hand: bundles that are committed or fail, workers that die, timers at given times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp

from transforms.beam.stream import stages
from transforms.beam.stream.bucket import FINAL, BucketDoFn, Held, Timers
from transforms.beam.stream.state import Final, Rules


@dataclass
class _Bag:
    values: list[bytes]

    def read(self) -> list[bytes]:
        return list(reversed(self.values))  # bags have no order

    def add(self, value: bytes) -> None:
        self.values.append(value)

    def clear(self) -> None:
        self.values.clear()


@dataclass
class _Value:
    value: bytes | None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


@dataclass
class _Timer:
    at: int | None

    def set(self, at: Timestamp) -> None:
        self.at = at.micros

    def clear(self) -> None:
        self.at = None


class FailedError(Exception):
    """A bundle that the runner throws away."""


@dataclass
class OneBucket:
    """A stateful stage with one bucket. ``cells`` is the store; ``messages`` went on to the items; ``finals`` are parts."""

    dofn: BucketDoFn[Any]
    marker: bytes | None = None
    deltas: list[bytes] = field(default_factory=list)
    snapshot: list[bytes] = field(default_factory=list)
    tick: int | None = None
    end: int | None = None
    cells: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    messages: list[bytes] = field(default_factory=list)
    finals: dict[tuple[str, int], list[dict[str, Any]]] = field(default_factory=dict)
    stats: list[str] = field(default_factory=list)

    @classmethod
    def of_users(cls, rules: Rules, flush_s: float | None = 1.0) -> OneBucket:
        """The user state."""
        return cls._of(stages._Users(rules, "job", flush_s, 1))

    @classmethod
    def of_items(cls, rules: Rules, flush_s: float | None = 1.0) -> OneBucket:
        """The item state."""
        return cls._of(stages._Items(rules, "job", flush_s))

    @classmethod
    def _of(cls, dofn: BucketDoFn[Any]) -> OneBucket:
        dofn.setup()
        return cls(dofn)

    def bundle(self, *steps: Any, fails: bool = False) -> None:
        """One bundle of (method, argument) steps; with ``fails`` its state and outputs are thrown away after it has run."""
        held = Held(_Value(self.marker), _Bag(list(self.deltas)), _Bag(list(self.snapshot)))
        timers = Timers(_Timer(self.tick), _Timer(self.end), _Timer(None))
        out: list[Any] = []
        self.dofn.start_bundle()
        for name, argument in steps:
            if name == "add":
                out += self.dofn.added(0, argument, Timestamp(0), held, timers)
            elif name == "flush":
                out += self.dofn.flush_due(0, Timestamp(0), held, timers.flush)
            elif name == "tick":
                timers.tick.clear()
                out += self.dofn.ticked(0, Timestamp(micros=argument), held, timers.tick, timers.flush)
            else:
                out += self.dofn.ended(0, Timestamp(micros=argument), held, timers.tick)
        out += self.dofn.finish_bundle()
        if fails:
            return
        self.marker, self.deltas, self.snapshot = held.marker.value, held.deltas.values, held.snapshot.values
        self.tick, self.end = timers.tick.at, timers.end.at
        for output in out:
            self._emit(output)

    def _emit(self, output: Any) -> None:
        if isinstance(output, pa.RecordBatch):
            for cell in output.to_pylist():
                at = (cell["row"], cell["group"])
                if cell["timestamp"] >= self.cells.get(at, (0, b""))[0]:
                    self.cells[at] = (cell["timestamp"], cell["value"])
        elif isinstance(output, beam.pvalue.TaggedOutput) and output.tag == FINAL:
            final: Final = output.value[1]
            self.finals[final.table, final.hour] = final.rows.to_pylist()
        elif output.tag == stages.ITEMS:
            self.messages.append(output.value.value[1])
        else:
            self.stats.append(output.value.value[1])

    def watermark(self, to: int) -> None:
        """Event time has come this far: timers fire in their order."""
        while self.tick is not None and self.tick <= to:
            self.bundle(("tick", self.tick))

    def dies(self) -> None:
        """The worker dies: its live copies are gone."""
        self.dofn._live.clear()
