"""Logs with known events, and a runner's part of a bundle, played by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker, ThreadsafeWatermarkEstimator
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.io.source import DEAD
from beam_pipelines.io.source_lane import Reading
from beam_pipelines.io.source_tracker import Span, SpanCoder, SpanTracker
from schemas.arrow import arrow_schema
from transforms.records import pack

NOON = 1_770_000_000_000_000
"""An event time, microseconds."""
SECOND = 1_000_000


def event(name: str, occurred_at: int, **fields: object) -> dict[str, object]:
    """A view of item i1 by user u1."""
    return {"event_id": name, "user_id": "u1", "item_id": "i1", "event_type": "view", "occurred_at": occurred_at,
            "ingested_at": None, "categories": [], "attributes": [], "schema_version": 1, **fields}


def record(*events: dict[str, object]) -> bytes:
    """Events as one record of a log."""
    return pack(pa.RecordBatch.from_pylist(list(events), schema=arrow_schema("event")))


def views(first: int, count: int, occurred_at: int = NOON) -> bytes:
    """A record of ``count`` events e<first>.. a millisecond apart."""
    return record(*(event(f"e{first + i}", occurred_at + i * 1000) for i in range(count)))


def reading(uri: str, **fields: object) -> Reading:
    """Reads a log with short waits."""
    values: dict[str, object] = {
        "uri": uri, "start": "earliest", "stop": None, "readers": 1, "watermark_delay_s": 10.0, "idle_s": 10.0, "skew_s": 600.0,
        "bundle_s": 0.05, "linger_s": 0.0, "poll_bytes": 1 << 20, "discover_s": 30.0, "on_gap": "skip", "run": uri, **fields}
    return Reading(**values)  # type: ignore[arg-type]


@dataclass
class Reader:
    """One SDF element, as a runner keeps it: what the last complete bundle left to do, and what bundles gave so far.

    Attributes:
      span: the restriction to go on with; None when done.
      positions: how often each (partition, offset, index) was emitted by complete bundles.
      dead: the same of dead letters.
      watermark: reported by the last complete bundle, microseconds.
      lag: records that waited, by the last report of progress.
    """

    dofn: object
    index: int = 0
    span: Span | None = field(default_factory=Span)
    positions: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    dead: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    watermark: int | None = None
    lag: int = 0

    def bundle(self, split_at: float | None = None, killed: bool = False) -> int:
        """Runs one bundle and returns how many events it gave.

        Args:
          split_at: before and after every output the runner asks for a split at this fraction.
          killed: all that the bundle did is lost, as on a worker's death.
        """
        assert self.span is not None
        tracker = ThreadsafeRestrictionTracker(SpanTracker(SpanCoder().decode(SpanCoder().encode(self.span))))
        state = None if self.watermark is None else Timestamp(micros=self.watermark)
        estimator = ThreadsafeWatermarkEstimator(ManualWatermarkEstimator(state))
        given: Counter[tuple[int, int, int]] = Counter()
        dead: Counter[tuple[int, int, int]] = Counter()
        runner_residual: list[Span] = []

        def split() -> None:
            if split_at is not None and (parts := tracker.try_split(split_at)):
                runner_residual.append(parts[1])

        split()
        for output in self.dofn.read(self.index, RestrictionTrackerView(tracker), estimator):  # type: ignore[attr-defined]
            if isinstance(output, TaggedOutput):
                if output.tag == DEAD:
                    dead.update(_positions(output.value.value))
                else:
                    self.lag = sum(output.value.value.column("lag").to_pylist())
            else:
                assert isinstance(output, TimestampedValue)
                assert state is None or output.timestamp >= state, "an element behind the watermark"
                given.update(_positions(output.value))
            split()
        tracker.check_done()
        if killed:
            return 0
        deferred = tracker.deferred_status()
        residuals = runner_residual + ([deferred[0]] if deferred else [])
        assert len(residuals) <= 1, "the rest was given away twice"
        self.span = residuals[0] if residuals else None
        self.positions.update(given)
        self.dead.update(dead)
        mark = estimator.current_watermark()
        self.watermark = None if mark is None else mark.micros
        return given.total()

    def until_done(self, bundles: int = 1000) -> Reader:
        """Runs bundles until all is read."""
        while self.span is not None:
            self.bundle()
            bundles -= 1
            assert bundles, f"still at {self.span}"
        return self

    def until_read(self, events: int, bundles: int = 200) -> Reader:
        """Runs bundles until so many events were given in all."""
        while self.positions.total() < events:
            self.bundle()
            bundles -= 1
            assert bundles, f"{self.positions.total()} of {events} events, at {self.span}"
        return self


def _positions(batch: pa.RecordBatch) -> Iterator[tuple[int, int, int]]:
    columns = (batch.column(name).to_pylist() for name in ("partition", "offset", "index"))
    return zip(*columns, strict=True)
