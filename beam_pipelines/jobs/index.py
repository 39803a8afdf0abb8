"""Builds the item index of a model, beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from beam_pipelines.errors import UserError
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from models.inference import index as item_index
from models.registry import ModelNotFoundError, ModelVersion, Registry


@dataclass(frozen=True)
class IndexReport:
    """What ``run`` did. ``recall`` is recall@100 against brute force on sample queries (1 for an exact index)."""

    model_version: str
    kind: str
    items: int
    recall: float
    seconds: float
    reused: bool


def run(config: Config, model_version: str | None = None, kind: str = "auto", force: bool = False) -> IndexReport:
    """Builds the index of a model (default: the newest), or finds it built.

    Args:
      kind: ``exact``, ``scann``, or ``auto``: exact on small catalogues.
      force: build it again.

    Raises:
      UserError: no such model, or a model without items.
    """
    model = find_model(config, model_version)
    started = time.monotonic()
    if not force:
        found = _built(model, kind)
        if found is not None:
            return _report(found, time.monotonic() - started, reused=True)
    with Stage("item index", quiet=config.quiet):
        try:
            item_ids, vectors = item_index.read_vectors(model.items)
            built = item_index.build(item_ids, vectors, model.version, kind)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise UserError(f"no index can be built of model {model.version}: {error}") from error
        built.save(model.index)
    return _report(built, time.monotonic() - started, reused=False)


def find_model(config: Config, model_version: str | None) -> ModelVersion:
    """The model of that version, or the newest; raises UserError when it is not there."""
    registry = Registry(config.workspace.models)
    try:
        return registry.get(model_version) if model_version else registry.newest()
    except ModelNotFoundError as error:
        raise UserError(str(error)) from error


def _built(model: ModelVersion, kind: str) -> item_index.ItemIndex | None:
    try:
        found = item_index.load(model.index)
    except item_index.IndexFormatError:
        return None
    return found if found.model_version == model.version and kind in ("auto", found.kind) else None


def _report(index: item_index.ItemIndex, seconds: float, reused: bool) -> IndexReport:
    recall = float(getattr(index, "settings", {}).get("recall", 1.0))
    return IndexReport(index.model_version, index.kind, len(index.vectors), recall, seconds, reused)
