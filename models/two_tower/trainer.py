"""run_fn: trains the two-tower model on transformed examples and exports it, as a TFX Trainer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from models.two_tower import export
from models.two_tower.config import TwoTowerConfig
from models.two_tower.data import batches, read_columns
from models.two_tower.model import Sizes, TwoTower
from models.two_tower.runtime import deterministic, tf
from transforms.preprocessing import CATEGORY_OOV, CATEGORY_VOCABULARY, ITEM_OOV, ITEM_VOCABULARY
from transforms.tf_runtime import tft


class FnArgs(Protocol):
    """The part of TFX's FnArgs that run_fn reads; ``LocalFnArgs`` is one without TFX."""

    train_files: Sequence[str]
    eval_files: Sequence[str]
    transform_graph_path: str
    serving_model_dir: str
    train_steps: int | None
    custom_config: dict[str, Any] | None


@dataclass(frozen=True)
class LocalFnArgs:
    """Arguments of run_fn.

    Attributes:
      train_files, eval_files: transformed examples (Parquet); eval_files may be empty.
      transform_graph_path: the folder that tf.Transform wrote.
      serving_model_dir: receives the SavedModel.
      train_steps: at most so many steps, but never more than the settings' epochs; None: TwoTowerConfig.steps.
      custom_config: ``config`` (TwoTowerConfig), ``seed`` (int), ``on_epoch`` (called with epoch and loss).
    """

    train_files: Sequence[str]
    transform_graph_path: str
    serving_model_dir: str
    eval_files: Sequence[str] = ()
    train_steps: int | None = None
    custom_config: dict[str, Any] = field(default_factory=dict)


def run_fn(fn_args: FnArgs | LocalFnArgs) -> dict[str, list[float]]:
    """Trains and exports; returns the loss of each epoch (``loss``, and ``eval_loss`` when there are eval_files).

    The same files, settings and seed give the same weights to the last bit.

    Raises:
      ValueError: the train files hold no example.
    """
    custom = fn_args.custom_config or {}
    config: TwoTowerConfig = custom.get("config", TwoTowerConfig())
    seed = int(custom.get("seed", 7))
    on_epoch: Callable[[int, float], None] | None = custom.get("on_epoch")
    tf.keras.backend.clear_session()
    deterministic(seed)
    columns = read_columns(fn_args.train_files)
    rows = len(columns["item_id"])
    if not rows:
        raise ValueError("no training examples")
    graph = tft.TFTransformOutput(fn_args.transform_graph_path)
    sizes = Sizes(int(graph.vocabulary_size_by_name(ITEM_VOCABULARY)) + ITEM_OOV,
                  int(graph.vocabulary_size_by_name(CATEGORY_VOCABULARY)) + CATEGORY_OOV)
    counts = np.bincount(columns["item_id"], minlength=sizes.items)
    model = TwoTower(config, sizes, (np.maximum(counts, 0.5) / rows).astype(np.float32))
    model.compile(optimizer=tf.keras.optimizers.Adam(config.learning_rate))
    data = batches(columns, config.batch_size, seed)
    held_out = batches(read_columns(fn_args.eval_files), config.batch_size, seed, False) if fn_args.eval_files else None
    per_epoch = config.epoch_steps(rows)
    steps_left = config.steps(rows) if fn_args.train_steps is None else min(fn_args.train_steps, config.epochs * per_epoch)
    history: dict[str, list[float]] = {"loss": []}
    epoch = 0
    while steps_left > 0:
        part = data if steps_left >= per_epoch else data.take(steps_left)
        loss = float(model.fit(part, epochs=1, verbose=0).history["total_loss"][-1])
        history["loss"].append(loss)
        if held_out is not None:
            measured = model.evaluate(held_out, verbose=0, return_dict=True)
            history.setdefault("eval_loss", []).append(float(measured["total_loss"]))
        if on_epoch:
            on_epoch(epoch, loss)
        epoch, steps_left = epoch + 1, steps_left - per_epoch
    export.save(model, fn_args.transform_graph_path, fn_args.serving_model_dir, config)
    return history
