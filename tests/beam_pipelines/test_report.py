"""The report of a demo, as text: what was rejected and why, quality, users with titles or by id."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from beam_pipelines.jobs.daily import DailyReport, StepResult
from beam_pipelines.jobs.demo import DemoReport, Loaded, UserExample
from beam_pipelines.report import render
from serving.profile import HistoryItem
from serving.responses import Explanation, Metadata, RankedItem

INTERVAL = {"mean": 0.25, "low": 0.2, "high": 0.3}
METRICS = {"users": 9, "split": "by time", **{name: {"recall_20": INTERVAL, "ndcg_10": INTERVAL}
                                              for name in ("two_tower", "popularity", "item_cf")}}
TRAINED = {"model_version": "tt-1", "examples": 90, "metrics": METRICS}


def user(title: str | None, reason: str = "Because you watched [it]") -> UserExample:
    return UserExample("u[1]", [HistoryItem("h1", title, "2024-01-01T00:00:00Z", 1.0)],
                       [RankedItem("i1", 1, 0.5, "item_cf", Explanation("because_you_watched", reason, "h1"), Metadata(title))])


def text(report: DemoReport) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


REPORT = DemoReport(
    "/somewhere/w", "--workspace w", Loaded("movielens", 12, 9, 1, 2, {"malformed_row": 2}, 1.0, 100.0),
    DailyReport("run", "2024-01-01", "v1", 3.0, [StepResult("train", "model", "done", "first run", 2.0, 200.0, TRAINED)]),
    [user("Fargo [1996]")], 4.0, ["beamrec show user u1"])


def test_rejected_rows_quality_and_titles_are_told() -> None:
    shown = text(REPORT)
    assert "12 read, 9 stored, 1 duplicates, 2 rejected (2 malformed_row)" in shown
    assert "tt-1 from 90 examples" in shown and shown.count("0.250  (0.200 to 0.300)") == 6
    assert "User u[1]" in shown and " 1. Fargo [1996]" in shown and "Because you watched [it]" in shown
    assert "beamrec show user u1" in shown and "no titles" not in shown


def test_data_without_titles_says_so_and_shows_ids() -> None:
    shown = text(replace(REPORT, users=[user(None), user(None)]))
    assert "The items of this data have no titles" in shown and " 1. i1" in shown and "h1" in shown
    assert "no titles" not in text(replace(REPORT, users=[user(None), user("Fargo")]))
    assert "no titles" not in text(replace(REPORT, users=[]))


def test_what_was_done_before_and_what_was_not_measured_is_said() -> None:
    before = replace(REPORT.run.steps[0], state="skipped", outputs={**TRAINED, "metrics": {"users": 0, "split": "none"}})
    shown = text(replace(REPORT, loaded=replace(REPORT.loaded, again=True), run=replace(REPORT.run, steps=[before])))
    assert shown.count("(done before)") == 2 and "Quality: not measured" in shown
