"""The demo of the stream, for people: each step as it happens, then what came of it all."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from beam_pipelines.jobs.demo_stream import StreamDemo
from beam_pipelines.jobs.demo_visit import Step

_WIDTHS = (7, 30, 20, 24, 30, 12)


def heading() -> Text:
    """The columns of ``line``."""
    names = ("time", "the visitor", "what is read", "before", "after", "readable")
    return Text("\n" + _columns(names), style="dim")


def line(step: Step) -> Text:
    """A step of the visitor."""
    took = step.seconds
    readable = "" if took is None else f"{took:.2f} s" if took >= 0.1 else f"{took * 1000:.0f} ms"
    cells = (f"{step.at:.1f} s", step.did, step.feature, step.before, step.after, readable if step.good else "NOT IN TIME")
    return Text(_columns(cells), style="" if step.good else "bold red")


def _columns(cells: tuple[str, ...]) -> str:
    fitted = [c if len(c) <= w else c[: w - 1] + "…" for c, w in zip(cells, _WIDTHS, strict=True)]
    return "  ".join(c.ljust(w) for c, w in zip(fitted, _WIDTHS, strict=True)).rstrip()


def conclusion(demo: StreamDemo) -> RenderableType:
    """Counts, freshness, and commands to go on with."""
    live = demo.live
    facts = [
        f"{live.accepted:,} of {live.sent:,} simulated events accepted over HTTP ({live.rate:,.0f}/s), {live.rejected:,} "
        f"rejected; beside them {demo.probes:,} probes and the visitor",
        f"{demo.stored:,} events in the stream's state; {demo.duplicates:,} copies left out, {demo.late:,} too late; "
        f"{demo.refused} refused with a reason and kept as a dead letter",
        f"freshness, event accepted to value readable, of {demo.probes:,} probes: "
        + (f"p50 {demo.freshness_p50_s:g} s, p99 {demo.freshness_p99_s:g} s, at most {demo.freshness_max_s:g} s"
           if demo.freshness_p50_s is not None else "none came through") + (f", {demo.lost} lost" if demo.lost else ""),
        f"{demo.seconds:.0f} s in all, {demo.started_s:.0f} s of them until everything was up; workspace {demo.workspace}",
    ]
    told = Text("\nWhat came of it\n", style="bold")
    for fact in facts:
        told.append(f"  {fact}\n", style="not bold")
    ahead = Text("Go on with (each in a terminal of its own)\n", style="bold")
    for command in demo.commands:
        ahead.append(f"  {command}\n", style="not bold")
    return Group(told, ahead)
