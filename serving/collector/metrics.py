"""What the collector counts, and its Prometheus text. Plain integers: one process, one event loop."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from schemas import metric_names as names
from serving.logs import LOGGER

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_MAX_LABELS = 200
"""A device is any text: so many (type, device) pairs are told apart."""


class Histogram:
    """Durations in seconds, by buckets."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    @property
    def total(self) -> float:
        """Seconds of all of them."""
        return self._sum

    def lines(self, name: str) -> Iterator[str]:
        """As Prometheus has it: cumulative."""
        yield f"# TYPE {name} histogram"
        yield from self.samples(name)

    def samples(self, name: str, label: str = "") -> Iterator[str]:
        """``lines`` without the type, all with a further label."""
        total, comma, braces = 0, f"{label}," if label else "", f"{{{label}}}" if label else ""
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{comma}le="{bound}"}} {total}'
        yield f"{name}_sum{braces} {self._sum:.6f}"
        yield f"{name}_count{braces} {total}"


class Counters:
    """Counts of one worker."""

    def __init__(self) -> None:
        self.accepted: Counter[tuple[str, str]] = Counter()
        self.rejected: Counter[str] = Counter()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.suppressions: Counter[str] = Counter()
        self.upserts: Counter[str] = Counter()
        self.packs = self.pack_events = self.log_failures = self.stamp_failures = 0
        self.seconds, self.commit_seconds = Histogram(), Histogram()
        self.gauges: dict[str, Callable[[], float]] = {}

    def round(self, packs: int, events: int, seconds: float, failures: int) -> None:
        """A round of packs was answered, so many of them with a failure."""
        self.packs += packs
        self.pack_events += events
        self.commit_seconds.add(seconds)
        self.log_failures += failures

    def taken(self, kinds: Mapping[tuple[str, str], int]) -> None:
        """Events were accepted: how many by (event type, device)."""
        for label, count in kinds.items():
            known = label in self.accepted or len(self.accepted) < _MAX_LABELS
            self.accepted[label if known else (label[0], "other")] += count

    def log_failure(self, what: str, error: Exception) -> None:
        """A failure that nobody expects: with its trace into the log."""
        logging.getLogger(LOGGER).error(f"{what} failed", exc_info=error)

    def text(self) -> str:
        """The Prometheus text format."""
        lines: list[str] = []
        lines += labelled(names.COLLECT_ACCEPTED, ("event_type", "device"), self.accepted)
        lines += labelled(names.COLLECT_REJECTED, ("reason",), {(k,): v for k, v in self.rejected.items()})
        lines += labelled(names.COLLECT_REQUESTS, ("route", "status"), self.requests)
        lines += labelled(names.COLLECT_SUPPRESSIONS, ("outcome",), {(k,): v for k, v in self.suppressions.items()})
        lines += labelled(names.COLLECT_UPSERTS, ("entity",), {(k,): v for k, v in self.upserts.items()})
        for name, value in ((names.COLLECT_PACKS, self.packs), (names.COLLECT_PACK_EVENTS, self.pack_events),
                            (names.COLLECT_LOG_FAILURES, self.log_failures),
                            (names.COLLECT_STAMP_FAILURES, self.stamp_failures)):
            lines += [f"# TYPE {name} counter", f"{name} {value}"]
        for name, gauge in self.gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {gauge():g}"]
        lines += self.seconds.lines(names.COLLECT_SECONDS)
        lines += self.commit_seconds.lines(names.COLLECT_COMMIT_SECONDS)
        return "\n".join(lines) + "\n"


def labelled(name: str, labels: tuple[str, ...], counts: Mapping) -> Iterator[str]:
    """A counter by the values of labels, in the Prometheus text format."""
    yield f"# TYPE {name} counter"
    for values, count in sorted(counts.items()):
        said = ",".join(f'{label}="{_escape(str(value))}"' for label, value in zip(labels, values, strict=True))
        yield f"{name}{{{said}}} {count}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
