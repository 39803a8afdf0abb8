"""The steps of the daily run: what each reads, when its output counts as there, and the job that does it.

Everything here but ``Step.run`` is cheap and loads neither Beam nor TensorFlow: it decides whether a step can be skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from typing import Any

from beam_pipelines import crashpoints
from beam_pipelines.errors import KeptPrevious
from beam_pipelines.io.lake import Lake
from beam_pipelines.manifest import fingerprint
from beam_pipelines.options import Config, active_days
from models.registry import Registry
from models.two_tower.config import FORMAT, TwoTowerConfig
from schemas.workspace import DAY_MICROS
from serving.stores import open_store
from serving.stores.base import Active, StoreError
from transforms import definitions

SURFACE = "homepage"
MAX_SNAPSHOTS = 32
"""Training reads the features as they were on at most so many earlier days."""


@dataclass(frozen=True)
class Context:
    """What a step knows: the config, the midnight it works for, and the outputs of the steps before it."""

    config: Config
    as_of: int
    run_id: str
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def lake(self) -> Lake:
        """The lake of the config."""
        return Lake.open(self.config.lake, self.config.catalog)


@dataclass(frozen=True)
class Step:
    """One step of the daily run.

    Attributes:
      name, title: as in --from-step, and as a person reads it.
      tables: lake tables it reads.
      inputs: fingerprints by name of all it reads.
      settings: what else its result depends on.
      missing: given the outputs that an earlier run recorded, what of them is no longer there; None when all is.
      run: does the work; what it returns is recorded as the outputs.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    inputs: Callable[[Context, Lake], dict[str, str]]
    settings: Callable[[Context], dict[str, Any]]
    missing: Callable[[Context, Lake, Mapping[str, Any]], str | None]
    run: Callable[[Context], dict[str, Any]]


def table_fingerprint(lake: Lake, table: str, start: int | None = None, end: int | None = None) -> str:
    """Changes whenever the data files of days [start, end) of a table do."""
    return fingerprint([(f.path, f.rows, f.bytes) for f in lake.files(table, start, end)])


def active_version(config: Config) -> Active | None:
    """What the store serves now on SURFACE; None before the first publish."""
    try:
        store = open_store(config.store, create=False)
    except StoreError:
        return None
    try:
        return store.active(SURFACE)
    finally:
        store.close()


def snapshot_days(lake: Lake, as_of: int) -> list[int]:
    """The midnights before as_of whose features training reads: every day, or every 2nd, 4th, ... of a long history.

    They are multiples of the stride since 1970, so that the next night needs at most one more.
    """
    days = [d // DAY_MICROS for d in lake.days("events") if d < as_of]
    if not days:
        return []
    first, last = days[0] + 1, as_of // DAY_MICROS - 1
    stride = 1
    while (last - first) // stride + 1 > MAX_SNAPSHOTS:
        stride *= 2
    return [d * DAY_MICROS for d in range(first + -first % stride, last + 1, stride)]


def outputs_of(report: object) -> dict[str, Any]:
    """A job's report (a dataclass, a mapping or None) as plain values."""
    if is_dataclass(report) and not isinstance(report, type):
        return asdict(report)
    return dict(report) if isinstance(report, Mapping) else {}


def _events(context: Context, lake: Lake) -> dict[str, str]:
    return {"events": table_fingerprint(lake, "events", end=context.as_of)}


def _nothing(context: Context) -> dict[str, Any]:
    return {}


def _features_settings(context: Context) -> dict[str, Any]:
    days = [*snapshot_days(context.lake(), context.as_of), context.as_of]
    return {"features definition": definitions.FEATURES, "as_ofs": [_date(d) for d in days]}


def _run_features(context: Context) -> dict[str, Any]:
    from beam_pipelines.jobs import features

    lake = context.lake()
    report = features.backfill(context.config, [*snapshot_days(lake, context.as_of), context.as_of], publish=False)
    if report.failures:
        raise KeptPrevious(f"features failed {len(report.failures)} checks: {'; '.join(report.failures[:3])}")
    crashpoints.reached("features.snapshots")
    report.published = features.publish_snapshot(context.config, context.as_of, lake=lake)
    return outputs_of(report)


def _features_missing(context: Context, lake: Lake, outputs: Mapping[str, Any]) -> str | None:
    absent = {*snapshot_days(lake, context.as_of), context.as_of} - set(lake.days("user_snapshots"))
    if absent:
        return f"{len(absent)} feature snapshots"
    try:
        store = open_store(context.config.store, create=False)
    except StoreError:
        return "the store"
    try:
        newest = next(iter(store.scan_features("batch", "user_stats")), None)
        return None if newest and newest[1].timestamp >= context.as_of else "the features in the store"
    finally:
        store.close()


def _train_inputs(context: Context, lake: Lake) -> dict[str, str]:
    end = context.as_of + DAY_MICROS
    return {**_events(context, lake), "items": table_fingerprint(lake, "items"),
            **{t: table_fingerprint(lake, t, end=end) for t in ("user_snapshots", "item_snapshots")}}


def _train_settings(context: Context) -> dict[str, Any]:
    return {"model format": FORMAT, "seed": context.config.seed, **TwoTowerConfig().as_dict()}


def _run_train(context: Context) -> dict[str, Any]:
    from beam_pipelines.jobs import train

    return outputs_of(train.run(context.config, context.as_of))


def _train_missing(context: Context, lake: Lake, outputs: Mapping[str, Any]) -> str | None:
    version = outputs.get("model_version", "")
    return None if Registry(context.config.workspace.models).has(version) else f"model {version}"


def _model(context: Context) -> str:
    return str(context.outputs["train"]["model_version"])


def _index_inputs(context: Context, lake: Lake) -> dict[str, str]:
    return {"model": _model(context)}


def _run_index(context: Context) -> dict[str, Any]:
    from beam_pipelines.jobs import index

    return outputs_of(index.run(context.config, _model(context)))


def _index_missing(context: Context, lake: Lake, outputs: Mapping[str, Any]) -> str | None:
    folder = Registry(context.config.workspace.models).get(_model(context)).index
    return None if folder.is_dir() else "the index"


def _recommend_inputs(context: Context, lake: Lake) -> dict[str, str]:
    end = context.as_of + DAY_MICROS
    return {"model": _model(context), "items": table_fingerprint(lake, "items"),
            **{t: table_fingerprint(lake, t, context.as_of, end) for t in ("user_snapshots", "item_snapshots")}}


def _recommend_settings(context: Context) -> dict[str, Any]:
    return {"lists definition": definitions.LISTS, "active days": active_days(context.config.workspace)}


def _run_recommend(context: Context) -> dict[str, Any]:
    from beam_pipelines.jobs import recommend

    return outputs_of(recommend.run(context.config, context.as_of, _model(context)))


def _version(context: Context) -> str:
    return str(context.outputs["recommend"]["version"])


def _recommend_missing(context: Context, lake: Lake, outputs: Mapping[str, Any]) -> str | None:
    version = str(outputs.get("version"))
    try:
        store = open_store(context.config.store, create=False)
    except StoreError:
        return "the store"
    try:
        return None if next(iter(store.scan_lists(version)), None) else f"lists of version {version}"
    finally:
        store.close()


def _publish_inputs(context: Context, lake: Lake) -> dict[str, str]:
    return {"version": _version(context)}


def _run_publish(context: Context) -> dict[str, Any]:
    from beam_pipelines.jobs import publish

    return outputs_of(publish.run(context.config, _version(context)))


def _publish_missing(context: Context, lake: Lake, outputs: Mapping[str, Any]) -> str | None:
    """Once published it stays so: a later rollback is not undone by running the same day again."""
    return None if active_version(context.config) else "the active version"


STEPS: tuple[Step, ...] = (
    Step("features", "features", ("events",), _events, _features_settings, _features_missing, _run_features),
    Step("train", "model", ("events", "items", "user_snapshots", "item_snapshots"), _train_inputs, _train_settings,
         _train_missing, _run_train),
    Step("index", "item index", (), _index_inputs, _nothing, _index_missing, _run_index),
    Step("recommend", "lists", ("items", "user_snapshots", "item_snapshots"), _recommend_inputs, _recommend_settings,
         _recommend_missing, _run_recommend),
    Step("publish", "publish", (), _publish_inputs, _nothing, _publish_missing, _run_publish),
)
FEATURE_STEP = "features"
"""The step that --deadline bounds."""


def step_named(name: str) -> Step:
    """The step of that name; raises KeyError with the known names."""
    for step in STEPS:
        if step.name == name:
            return step
    raise KeyError(f"no step {name!r}; one of: {', '.join(s.name for s in STEPS)}")


def _date(day: int) -> str:
    return f"{datetime.fromtimestamp(day // 1_000_000, UTC):%Y-%m-%d}"
