"""Late events, pane by pane, on TestStream: those count that count in row-wise Beam with FixedWindows and allowed lateness."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms import trigger
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.io.stream_status import merged
from schemas.metric_names import EVENTS_ACCEPTED, EVENTS_LATE
from schemas.stream_cells import decode_rings
from schemas.xxh3 import hash64_strings
from transforms.beam.stream.stages import KeepUsers, SplitByUser
from transforms.beam.stream.state import Rules

PANE_S, LATENESS_S = 300, 3600
NOON_S = 1_770_033_600  # a pane's start
MICROS = 1_000_000


@dataclass(frozen=True)
class Step:
    """Events at seconds after noon, then a watermark at seconds after noon (None: it stays)."""

    events: tuple[int, ...]
    watermark: int | None = None


def columns(times: list[int], first: int) -> pa.RecordBatch:
    """Views of item i1 by user u1, with distinct ids, at seconds after noon."""
    n = len(times)
    ids = pa.array([f"e{first + i}" for i in range(n)])
    return pa.RecordBatch.from_pydict({
        "user_id": pa.array(["u1"] * n), "item_id": pa.array(["i1"] * n), "event_type": pa.array(["view"] * n),
        "occurred_at": pa.array([(NOON_S + t) * MICROS for t in times], pa.timestamp("us", tz="UTC")),
        "ingested_at": pa.nulls(n, pa.timestamp("us", tz="UTC")),
        "event_hash": pa.array(hash64_strings(ids).view("int64")), "dwell_ms": pa.nulls(n, pa.int64()),
        "price": pa.nulls(n, pa.float64()), "categories": pa.array([[]] * n, pa.list_(pa.string())),
        "surface": pa.nulls(n, pa.string())})


def _stream(steps: list[Step], as_batches: bool) -> TestStream:
    stream, known, count = TestStream(), 0, 0
    for step in steps:
        if step.events:
            times = list(step.events)
            if as_batches:  # as the source does it: no batch is older than the watermark
                at = NOON_S + max(known, min(times))
                stream = stream.add_elements([TimestampedValue(columns(times, count), at)])
            else:
                stream = stream.add_elements([TimestampedValue((NOON_S + t, count + i), NOON_S + t)
                                              for i, t in enumerate(times)])
            count += len(times)
        if step.watermark is not None and step.watermark > known:
            known = step.watermark
            # The Python runner drops what is later than "watermark > end + lateness"; Flink, and we, "watermark >= ...".
            stream = stream.advance_watermark_to(NOON_S + known + (0 if as_batches else 0.001))
    return stream.advance_watermark_to_infinity()


def _options() -> PipelineOptions:
    options = PipelineOptions([])
    options.view_as(StandardOptions).streaming = True
    return options


_PARTS: dict[Any, Any] = {}
_COUNTERS: Counter[str] = Counter()
_CELLS: list[pa.RecordBatch] = []
_COUNTS: dict[int, int] = {}
# What pipelines leave behind: only functions of a module reach its names, for a closure is pickled with its own copies.


def _keep_final(element: Any) -> None:
    _PARTS[element[1].table, element[1].hour] = element[1].rows.to_pylist()


def _keep_stats(element: Any) -> None:
    _COUNTERS.update(merged([json.loads(element[1])])[0])


def _keep_cells(element: Any) -> None:
    _CELLS.append(element)


def _keep_count(element: Any, window: Any = beam.DoFn.WindowParam) -> None:
    at = round(float(window.start)) - NOON_S
    _COUNTS[at] = max(_COUNTS.get(at, 0), element[1])


def _keyed(row: Any) -> Any:
    return "u1", row[1]


def ours(steps: list[Step]) -> tuple[dict[int, int], Counter[str], list[pa.RecordBatch]]:
    """(events by pane among the final rows, counters, cells in the order they were written)."""
    for kept_before in (_PARTS, _COUNTERS, _CELLS):
        kept_before.clear()
    rules = Rules(LATENESS_S * MICROS, ("user_panes",), audit=True)
    with beam.Pipeline(runner=BundleBasedDirectRunner(), options=_options()) as p:
        kept = p | _stream(steps, as_batches=True) | SplitByUser(1) | KeepUsers(rules, "test", 0.0, 0)
        kept.final | "Parts" >> beam.Map(_keep_final)
        kept.stats | "Counters" >> beam.Map(_keep_stats)
        kept.cells | "Cells" >> beam.Map(_keep_cells)
    panes: Counter[int] = Counter()
    for (table, _), rows in _PARTS.items():
        for row in rows if table == "stream_panes" else ():
            panes[round(row["start"].timestamp()) - NOON_S] += row["count_view"]
    return dict(panes), Counter(_COUNTERS), list(_CELLS)


def row_wise(steps: list[Step]) -> dict[int, int]:
    """Events by pane as stock Beam counts them: the last firing of each window."""
    _COUNTS.clear()
    with beam.Pipeline(runner=BundleBasedDirectRunner(), options=_options()) as p:
        (p | _stream(steps, as_batches=False)
         | beam.Map(_keyed).with_output_types(tuple[str, int])
         | beam.WindowInto(FixedWindows(PANE_S), trigger=trigger.AfterWatermark(late=trigger.AfterCount(1)),
                           accumulation_mode=trigger.AccumulationMode.ACCUMULATING, allowed_lateness=LATENESS_S)
         | beam.CombinePerKey(beam.combiners.CountCombineFn()) | "Count" >> beam.Map(_keep_count))
    return dict(_COUNTS)


CASES = {
    "on time": [Step((10, 20, 310)), Step((), 700), Step((710,))],
    "early": [Step((10,)), Step((2_000,)), Step((20,), 900)],
    "late, corrected": [Step((10, 310), 800), Step((20,)), Step((), 3_899), Step((30,)), Step((3_950,), 5_000)],
    "too late": [Step((10, 310), 3_900), Step((20, 320)), Step((), 4_200), Step((330, 3_000))],
    "exactly at the end": [Step((10,), 300 + LATENESS_S), Step((299,)), Step((300,))],
    "a slow partition holds the watermark": [Step((10, 5_000, 9_000), 15), Step((20, 9_500), 25), Step((30,), 9_400),
                                             Step((40, 6_000))],
    "a jump over hours": [Step((10,)), Step((), 20_000), Step((20, 15_000, 16_399, 16_400, 19_000))],
}


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES.keys())
def test_the_same_events_count_as_in_row_wise_beam(steps: list[Step]) -> None:
    panes, counters, _ = ours(steps)
    expected = row_wise(steps)
    assert panes == expected
    assert counters[EVENTS_ACCEPTED] == sum(expected.values())
    assert counters[EVENTS_LATE] == sum(len(s.events) for s in steps) - sum(expected.values())


def test_a_late_event_corrects_the_stored_cell_and_one_too_late_does_not() -> None:
    _, counters, cells = ours([Step((10,), 1_000), Step((20,), 3_900), Step((30,))])
    written = [decode_rings("user_panes", rows.column("value").to_pylist())[1].sum() for rows in cells]
    assert written == [1, 2]
    assert counters[f"{EVENTS_LATE}/view/unknown"] == 1


@settings(max_examples=5)
@given(st.lists(st.tuples(st.lists(st.integers(0, 6_000), max_size=3), st.one_of(st.none(), st.integers(0, 9_000))),
                min_size=1, max_size=4))
def test_any_order_of_events_and_watermarks(drawn: list[tuple[list[int], int | None]]) -> None:
    steps = [Step(tuple(events), watermark) for events, watermark in drawn]
    panes, _, _ = ours(steps)
    assert panes == row_wise(steps)
