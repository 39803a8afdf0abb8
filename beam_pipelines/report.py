"""The report of a demo, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from beam_pipelines.jobs.demo import DemoReport, UserExample

_METHODS = {"two_tower": "two-tower", "item_cf": "item-CF", "popularity": "popularity"}


def render(report: DemoReport) -> RenderableType:
    """Stages, quality, three users, commands to go on with."""
    parts: list[RenderableType] = [_stages(report), _quality(report.outputs("train").get("metrics", {}))]
    if report.users and not any(_titles(user) for user in report.users):
        parts.append(Text("\nThe items of this data have no titles: they are shown by their ids.", style="dim"))
    parts += [_user(user) for user in report.users]
    parts.append(_commands(report))
    return Group(*parts)


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(f"\n{title}", style="bold"), table)  # a table's own title would wrap at the table's width


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _stages(report: DemoReport) -> RenderableType:
    loaded = report.loaded
    table = _table("stage", "seconds", "peak MiB", "result", right=("seconds", "peak MiB"))
    rejected = "; ".join(f"{n:,} {reason}" for reason, n in loaded.rejected_by_reason.items())
    events = (f"{loaded.read:,} read, {loaded.stored:,} stored, {loaded.duplicates:,} duplicates, {loaded.rejected:,} rejected"
              + (f" ({rejected})" if rejected else ""))
    table.add_row(_again(f"events: {loaded.dataset}", loaded.again), f"{loaded.seconds:.1f}", f"{loaded.peak_rss_mib:.0f}",
                  events)
    for step in report.run.steps:
        table.add_row(_again(step.title, step.state == "skipped"), f"{step.seconds:.1f}", f"{step.peak_rss_mib:.0f}",
                      escape(_result(step.step, step.outputs)))
    table.add_row("in all, this time", f"{report.seconds:.1f}", "", f"workspace {escape(report.workspace)}")
    return _titled("What happened", table)


def _again(title: str, again: bool) -> str:
    return f"{title} [dim](done before)[/dim]" if again else title


def _result(step: str, out: Mapping[str, Any]) -> str:
    """One line of what a step made."""
    if step == "features":
        return (f"{out['users']:,} users and {out['items']:,} items, as of {len(out['as_ofs'])} days; "
                f"{out['published']:,} cells stored")
    if step == "train":
        return f"{out['model_version']} from {out['examples']:,} examples"
    if step == "index":
        return f"{out['kind']}, {out['items']:,} items, recall against brute force {out['recall']:.3f}"
    if step == "recommend":
        return (f"{out['users']:,} users' lists of {out['list_length']}, {out['without_vector']:,} by popularity alone"
                + (f"; retrieval recall {out['recall']:.3f}" if out.get("recall") is not None else ""))
    if step == "publish":
        stats = out.get("stats", {})
        return f"version {out['version']} is served; {stats.get('lists', 0):,} lists passed the gate"
    return ""


def _quality(metrics: Mapping[str, Any]) -> RenderableType:
    """Full-catalogue quality of the model beside the baselines, with 95 % intervals."""
    shown = [name for name in _METHODS if name in metrics]
    if not shown:
        return Text("\nQuality: not measured (too few events for a time split)")
    table = _table("", "Recall@20", "NDCG@10", right=("Recall@20", "NDCG@10"))
    for name in shown:
        table.add_row(_METHODS[name], *(_interval(metrics[name][m]) for m in ("recall_20", "ndcg_10")))
    title = f"Quality on a time split ({metrics.get('users', 0):,} test users, every item ranked, 95 % intervals)"
    return Group(_titled(title, table), Text(f"{metrics.get('split', '')}", style="dim"))


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f}  ({value['low']:.3f} to {value['high']:.3f})"


def _titles(user: UserExample) -> list[str]:
    return [title for title in (*(h.title for h in user.history), *(i.metadata.title for i in user.items)) if title]


def _user(user: UserExample) -> RenderableType:
    table = _table("last seen", "recommended", "why")
    for row in range(max(len(user.history), len(user.items))):
        seen = user.history[row] if row < len(user.history) else None
        item = user.items[row] if row < len(user.items) else None
        table.add_row(escape((seen.title or seen.item_id) if seen else ""),
                      escape(f"{item.rank:>2}. {item.metadata.title or item.item_id}" if item else ""),
                      escape(item.explanation.reason if item else ""))
    return _titled(f"User {user.user_id}", table)


def _commands(report: DemoReport) -> RenderableType:
    lines = Text("\nGo on with\n", style="bold")
    for command in report.commands:
        lines.append(f"  {command}\n", style="not bold")
    return lines
