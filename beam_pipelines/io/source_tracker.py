"""What one reader of an event log has to read, and how far it is: the restriction of ``io.source`` and its tracker."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from apache_beam.coders import Coder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker

FOR_EVER = 2**63 - 1
"""The stop of a partition that is read without end."""

NOTHING_YET = -(2**63)
"""The event time of a partition of which no valid event was read."""

_LAYOUT = 1
_HEADER = struct.Struct("<BBI")
_PLACE = struct.Struct("<iqqqqq")


class Place(NamedTuple):
    """Where the reading of one partition stands.

    Attributes:
      next: offset of the next record to read.
      stop: the first offset that is not read; FOR_EVER for none.
      newest: the newest event time read (microseconds), NOTHING_YET for none.
      high: the next offset to be written, when last seen.
      read: records read so far, by any bundle.
    """

    next: int
    stop: int = FOR_EVER
    newest: int = NOTHING_YET
    high: int = 0
    read: int = 0

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return self.next >= self.stop

    @property
    def lag(self) -> int:
        """Records that wait, as far as known."""
        return max(min(self.high, self.stop) - self.next, 0)


@dataclass(frozen=True)
class Span:
    """The partitions of one reader, each with its place. Never changed: a claim brings a new one.

    Attributes:
      places: by partition.
      started: False until the log was asked where to begin (and, of a bounded read, where to end).
      closed: whether the read ends: every place has a stop and new partitions are left alone.
    """

    places: Mapping[int, Place] = field(default_factory=dict)
    started: bool = False
    closed: bool = False

    @property
    def done(self) -> bool:
        """Whether all was read; a read without end never is, even one that has no partition yet."""
        return self.started and self.closed and all(p.done for p in self.places.values())

    def ended_here(self) -> Span:
        """What was read so far, as a span that is done."""
        return Span({k: p._replace(stop=p.next) for k, p in self.places.items()}, True, True)

    def to_bytes(self) -> bytes:
        """At most 50 bytes a partition."""
        parts = [_HEADER.pack(_LAYOUT, self.started | self.closed << 1, len(self.places))]
        parts += [_PLACE.pack(partition, *place) for partition, place in sorted(self.places.items())]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Span:
        """Raises ValueError: the bytes are of another layout, from another version of beamrec."""
        layout, flags, count = _HEADER.unpack_from(data)
        if layout != _LAYOUT or len(data) != _HEADER.size + count * _PLACE.size:
            raise ValueError(f"positions in the log are kept in layout {layout}, this version reads {_LAYOUT}: start anew "
                             "from a timestamp or from exact offsets")
        rows = _PLACE.iter_unpack(data[_HEADER.size:])
        return cls({row[0]: Place(*row[1:]) for row in rows}, bool(flags & 1), bool(flags & 2))


class SpanCoder(Coder):
    """Writes a Span in its own compact bytes."""

    def encode(self, value: Span) -> bytes:
        """A span to bytes."""
        return value.to_bytes()

    def decode(self, encoded: bytes) -> Span:
        """Bytes to a span."""
        return Span.from_bytes(encoded)

    def is_deterministic(self) -> bool:
        """Equal spans are equal bytes: partitions are written in order."""
        return True


class SpanTracker(RestrictionTracker):
    """Hands out a span bit by bit: what try_claim granted will be emitted by whoever claimed it, and nothing else.

    The one split there is, at fraction 0, ends this bundle after the last claim; the residual goes on right there. A log's
    partitions are read by one consumer in order, so dividing a span would only make two consumers seek.
    """

    def __init__(self, span: Span) -> None:
        self._span, self._split = span, False

    def current_restriction(self) -> Span:
        """Up to the last claim, once split; else all there is to do."""
        return self._span

    def try_claim(self, position: Span) -> bool:
        """Claims everything up to ``position``; False (and nothing claimed) once the rest was given away.

        Raises:
          ValueError: the claim goes backwards or drops a partition, which would read records twice or lose them.
        """
        if self._split:
            return False
        for partition, place in self._span.places.items():
            claimed = position.places.get(partition)
            if claimed is None or claimed.next < place.next or claimed.stop != place.stop:
                raise ValueError(f"partition {partition}: a claim goes from {place} to {claimed}")
        self._span = position
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Span, Span] | None:
        """(what was claimed, the rest) at fraction 0, once; None for every other split."""
        if self._split or fraction_of_remainder != 0 or self._span.done:
            return None
        rest, self._split = self._span, True
        self._span = rest.ended_here()
        return self._span, rest

    def check_done(self) -> None:
        """Raises ValueError if records would be lost: neither all was read nor the rest given away."""
        if not self._split and not self._span.done:
            raise ValueError(f"the log is not read to its end and the rest was not deferred: {dict(self._span.places)}")

    def current_progress(self) -> RestrictionProgress:
        """Records read, and those known to wait."""
        places = self._span.places.values()
        return RestrictionProgress(completed=sum(p.read for p in places), remaining=sum(p.lag for p in places))

    def is_bounded(self) -> bool:
        """Whether the read ends."""
        return self._span.closed
