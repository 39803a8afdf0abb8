"""What one worker says of itself: its counters and gauges in the Prometheus text format."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from schemas import metric_names as names
from serving.api.metrics import coverage_and_gini
from serving.breaker import STATES

if TYPE_CHECKING:
    from serving.api.state import State


SHOWN_EVERY_S = 15.0
"""Coverage is counted anew so often: of 100,000 items that takes milliseconds, in which no request is answered."""


def shown_of(state: State, oldest_s: float = 0.0) -> tuple[int, float, float] | None:
    """(items, coverage, Gini) of what this worker showed, at most so many seconds ago; None before the first list."""
    return state.counters.shown.kept(oldest_s, partial(_count_shown, state))


def _count_shown(state: State) -> tuple[int, float, float] | None:
    counts = state.counters.shown.times()
    if not len(counts):
        return None
    versions = state.recommender.bundles.versions
    bundle = state.recommender.bundles.get(versions[-1]) if versions else None
    active = int(bundle.active.sum()) if bundle is not None else len(counts)
    coverage, gini = coverage_and_gini(counts, active)
    return len(counts), round(coverage, 4), round(gini, 4)


def worker_lines(state: State) -> list[str]:
    """The exposition of this worker alone."""
    lines = state.counters.lines()
    gauges: list[tuple[str, str, float]] = [(names.SERVE_WORKERS, "", state.settings.workers)]
    gauges += [(names.SERVE_BREAKER, f'{{dependency="{b.name}"}}', STATES.index(b.state)) for b in state.breakers]
    shown = shown_of(state, SHOWN_EVERY_S)
    if shown is not None:
        gauges += [(names.SERVE_COVERAGE, "", shown[1]), (names.SERVE_GINI, "", shown[2])]
    if state.truth is not None:
        gauges.append((names.SERVE_TRUTH_WAITING, "", state.truth.waiting))
    for name in dict.fromkeys(name for name, _, _ in gauges):
        lines.append(f"# TYPE {name} gauge")
        lines += [f"{name}{labels} {value:g}" for its_name, labels, value in gauges if its_name == name]
    if state.collector is not None:
        lines += state.collector.counters.text().splitlines()
    return lines
