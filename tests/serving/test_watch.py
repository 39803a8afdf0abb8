"""``beamrec show --watch`` on a store that changes under it, as lines and drawn."""

import io
import itertools
import json
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from serving_world import NOW
from test_asking import suppress
from test_features import put_panes, put_status

from beam_pipelines.watch import Pace, changes, follow_drawn, follow_lines
from serving.features import FeatureReader, FeatureValue, ListEntry

CLI = [sys.executable, "-m", "beam_pipelines.cli.main", "show"]


def value(number, source="stream", age=0.0):
    return FeatureValue(number, source, age)


def test_a_change_is_another_value_or_source_and_not_another_age():
    before = {"a": value(1.0), "b": value(1.0), "c": value(1.0), "d": value([ListEntry("x", 1.0)])}
    now = {"a": value(1.0, age=9.0), "b": value(2.0), "c": value(1.0, "batch"), "d": value([ListEntry("y", 1.0)]),
           "e": value(0.0)}
    found = changes(before, now)
    assert [(c.feature, c.before, c.value, c.source) for c in found] == [
        ("b", 1.0, 2.0, "stream"), ("c", 1.0, 1.0, "batch"),
        ("d", [ListEntry("x", 1.0)], [ListEntry("y", 1.0)], "stream"), ("e", None, 0.0, "stream")]


def test_lines_say_what_changed_and_looks_end_in_time():
    views = itertools.chain([{"n": value(0.0), "l": value([ListEntry("a", 1.0), ListEntry("b", 1.0)])},
                             {"n": value(2.0), "l": value([ListEntry("b", 1.0), ListEntry("c", 1.0)])}],
                            itertools.repeat({"n": value(2.0), "l": value([])}))
    lines, started = [], time.monotonic()
    follow_lines(lambda: next(views), Pace(0.05, 0.3), lines.append, as_json=False)
    assert 0.2 < time.monotonic() - started < 2
    assert [line.split("  ", 1)[1] for line in lines] == [
        "n  0 -> 2  (stream, 0.0 s old)", "l  +c -a  (stream, 0.0 s old)", "l  -b -c  (stream, 0.0 s old)"]


def test_the_drawn_table_marks_what_changed_and_hides_what_is_empty():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    views = itertools.chain([{"clicks": value(1.0), "empty": value(0.0)}],
                            itertools.repeat({"clicks": value(2.0), "empty": value(0.0)}))
    follow_drawn(lambda: next(views), Pace(0.05, 0.1), console, "User ann", lambda f: f.value == 0.0)
    text = out.getvalue()
    assert "User ann" in text and "clicks" in text and "\x1b[1;32m" in text and "1 changes" in text
    assert "empty" not in text


def test_a_process_that_watches_sees_events_and_a_suppression_at_once(world, tmp_path):
    put_status(world)
    world.put_list("ann", "v1", ["a", "b"])
    world.flip("v1")
    words = ["user", "ann", "--json", "--watch", "--interval", "0.1", "--for", "30", "--workspace", str(world.workspace.root)]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen([*CLI, *words], stdout=out, stderr=subprocess.PIPE, text=True)
    try:
        deadline, clicks, text = time.monotonic() + 20, 0, ""
        while time.monotonic() < deadline and not ("count_click_1h" in text and "recommendations" in text):
            put_panes(world, "ann", clicks := clicks + 1, NOW)
            if "count_click_1h" in text:
                suppress(world, "ann", "a")
            time.sleep(0.1)
            text = (tmp_path / "out").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    found = [json.loads(line) for line in text.splitlines()]
    click = next(c for c in found if c["feature"] == "count_click_1h")
    assert click["value"] > 0 and click["source"] == "stream" and click["age_s"] == 0.0
    listed = next(c for c in found if c["feature"] == "recommendations")
    assert [e["id"] for e in listed["before"]] == ["a", "b"] and [e["id"] for e in listed["value"]] == ["b"]


@pytest.mark.parametrize("flags", [["--interval", "0"], ["--for", "-1"]])
def test_impossible_paces_are_one_line(world, flags):
    done = subprocess.run([*CLI, "user", "ann", "--watch", *flags, "--workspace", str(world.workspace.root)],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--interval" in done.stderr


def test_an_item_is_watched_too(world):
    done = subprocess.run([*CLI, "item", "i1", "--watch", "--for", "0", "--workspace", str(world.workspace.root)],
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "" and FeatureReader().status(world.store) is None
