"""The two towers and their TFRS training model.

A user is what they liked (the last 50 positives, weighted by age) plus batch features: no user id, so a new user's first click
already counts. An item is its id (rare ids share buckets) plus content and statistics. Vectors are of length ``dim``; the
last component of an item is its bias and that of a user is 1, so the score IS the dot product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.two_tower.config import TwoTowerConfig
from models.two_tower.runtime import tf, tfrs
from transforms.preprocessing import (
    DAY_BOUNDS,
    ITEM_BOUNDS,
    ITEM_BUCKETS,
    ITEM_NUMBERS,
    QUANTILES,
    USER_BOUNDS,
    USER_BUCKETS,
)

Features = dict[str, "tf.Tensor"]

USER_COLUMNS = ("liked_items", "liked_ages", "affinity_ids", "affinity_shares", *USER_BUCKETS)
ITEM_COLUMNS = ("item_id", "categories", *ITEM_BUCKETS, *ITEM_NUMBERS)
PADDING = -1
"""Fills the lists of a batch to one length; affinity_shares are filled with 0."""

_SMALL = 8


@dataclass(frozen=True)
class Sizes:
    """Rows of the embedding tables: vocabulary plus its OOV buckets."""

    items: int
    categories: int


def _buckets(name: str) -> int:
    bounds = {**USER_BOUNDS, **ITEM_BOUNDS}
    return len(bounds[name]) + 1 if name in bounds else QUANTILES


def _table(rows: int, width: int, name: str, scale: float = 0.05) -> tf.keras.layers.Embedding:
    return tf.keras.layers.Embedding(rows, width, embeddings_initializer=tf.keras.initializers.RandomNormal(stddev=scale),
                                     name=name)


class CategoryBag(tf.keras.layers.Layer):
    """Weighted mean of category embeddings: [b, n] ids (PADDING ends a list) and weights -> [b, width]."""

    def __init__(self, categories: int, width: int = 16, name: str = "category_bag") -> None:
        super().__init__(name=name)
        self._table = _table(categories, width, f"{name}_table")

    def call(self, ids: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        present = tf.cast(ids >= 0, tf.float32)
        weights = present if weights is None else weights * present
        share = weights / tf.maximum(tf.reduce_sum(weights, 1, keepdims=True), 1e-6)
        return tf.einsum("bn,bnd->bd", share, self._table(tf.maximum(ids, 0)))


class UserTower(tf.keras.layers.Layer):
    """USER_COLUMNS -> [b, dim], the last component 1. ``histories`` embeds the liked items, [rows, dim - 1]."""

    def __init__(self, config: TwoTowerConfig, sizes: Sizes, histories: tf.keras.layers.Embedding) -> None:
        super().__init__(name="user_tower")
        self._config = config
        width = config.dim - 1
        self._histories = histories
        self._age_logits = _table(len(DAY_BOUNDS) + 1, 1, "age_logits")
        self._bag = CategoryBag(sizes.categories, name="affinity_bag")
        self._bucket_tables = {n: _table(_buckets(n), _SMALL, f"user_{n}") for n in USER_BUCKETS}
        self._hidden = tf.keras.layers.Dense(config.hidden, "relu", name="user_hidden")
        self._out = tf.keras.layers.Dense(width, name="user_out")
        self._dropout = tf.keras.layers.Dropout(config.dropout, seed=1)

    def call(self, features: Features, training: bool = False) -> tf.Tensor:
        liked = self._pool(features["liked_items"], features["liked_ages"], training)
        parts = [liked, self._bag(features["affinity_ids"], features["affinity_shares"]),
                 *(self._bucket_tables[n](features[n]) for n in USER_BUCKETS)]
        hidden = self._dropout(self._hidden(tf.concat(parts, 1)), training=training)
        vector = tf.math.l2_normalize(self._dropout(liked, training=training) + self._out(hidden), 1)
        return tf.concat([vector, tf.ones_like(vector[:, :1])], 1)

    def _pool(self, ids: tf.Tensor, ages: tf.Tensor, training: bool) -> tf.Tensor:
        embedded = self._histories(tf.maximum(ids, 0))
        logits = self._age_logits(tf.maximum(ages, 0))
        present = tf.cast(ids >= 0, tf.float32)
        if training and self._config.history_dropout:
            present *= tf.cast(tf.random.uniform(tf.shape(ids), seed=2) >= self._config.history_dropout, tf.float32)
        weights = tf.exp(tf.clip_by_value(logits[:, :, 0], -8.0, 8.0)) * present
        weights /= tf.maximum(tf.reduce_sum(weights, 1, keepdims=True), 1e-6)
        return tf.einsum("bn,bnd->bd", weights, embedded)


class ItemTower(tf.keras.layers.Layer):
    """ITEM_COLUMNS -> [b, dim]: the direction over the temperature, then the bias. ``ids`` embeds item ids."""

    def __init__(self, config: TwoTowerConfig, sizes: Sizes, ids: tf.keras.layers.Embedding) -> None:
        super().__init__(name="item_tower")
        self._config = config
        self._ids = ids
        self._bias = _table(sizes.items, 1, "item_bias", 0.01)
        self._bag = CategoryBag(sizes.categories, name="content_bag")
        self._bucket_tables = {n: _table(_buckets(n), _SMALL, f"item_{n}") for n in ITEM_BUCKETS}
        self._hidden = tf.keras.layers.Dense(config.hidden, "relu", name="item_hidden")
        self._out = tf.keras.layers.Dense(config.dim - 1, name="item_out")
        self._feature_bias = tf.keras.layers.Dense(1, name="item_feature_bias")
        self._dropout = tf.keras.layers.Dropout(config.dropout, seed=3)

    def call(self, features: Features, training: bool = False) -> tf.Tensor:
        content = tf.concat([self._bag(features["categories"]), *(self._bucket_tables[n](features[n]) for n in ITEM_BUCKETS),
                             tf.stack([features[n] for n in ITEM_NUMBERS], 1)], 1)
        hidden = self._dropout(self._hidden(content), training=training)
        vector = tf.math.l2_normalize(self._ids(features["item_id"]) + self._out(hidden), 1)
        bias = self._bias(features["item_id"]) + self._feature_bias(hidden)
        return tf.concat([vector / self._config.temperature, bias], 1)


class TwoTower(tfrs.Model):
    """In-batch softmax over the dot product, each candidate's logit less its log sampling probability.

    Args:
      config, sizes: settings and table rows.
      sampling: (sizes.items,) share of each item among the training candidates, the sampling probability of Yi et al.,
        "Sampling-bias-corrected neural modeling for large corpus item recommendations" (RecSys 2019).
    """

    def __init__(self, config: TwoTowerConfig, sizes: Sizes, sampling: npt.NDArray[np.float32]) -> None:
        super().__init__()
        ids = _table(sizes.items, config.dim - 1, "item_ids")  # one table: what one likes lies near what one will like
        self.user_tower = UserTower(config, sizes, ids)
        self.item_tower = ItemTower(config, sizes, ids)
        self._sampling = tf.constant(sampling)
        self._task = tfrs.tasks.Retrieval(
            loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True), remove_accidental_hits=True)

    def compute_loss(self, features: Features, training: bool = False) -> tf.Tensor:
        users = self.user_tower(features, training=training)
        items = self.item_tower(features, training=training)
        ids = features["item_id"]
        # an item that the user liked before is no negative: it is never shown to them again
        own = tf.eye(tf.shape(ids)[0], dtype=tf.bool)  # rare items share ids, so a label may look like a liked item
        mask = tf.logical_or(own, tf.logical_not(among(features["liked_items"], ids)))
        return self._task(users, items, candidate_sampling_probability=tf.gather(self._sampling, ids), candidate_ids=ids,
                          compute_metrics=False, compute_batch_metrics=False, score_mask=mask)


def among(lists: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """[b, c] bool: whether list b of [b, n] holds id c of [c]; by sorting, as comparing all would cost b * n * c."""
    ordered = tf.sort(ids)
    at = tf.minimum(tf.searchsorted(ordered, tf.reshape(lists, [-1])), tf.shape(ids)[0] - 1)
    found = tf.gather(ordered, at) == tf.reshape(lists, [-1])
    row = tf.repeat(tf.range(tf.shape(lists)[0]), tf.shape(lists)[1])
    where = tf.stack([row, at], 1)[found]
    marked = tf.scatter_nd(where, tf.ones(tf.shape(where)[:1], tf.int32), [tf.shape(lists)[0], tf.shape(ids)[0]])
    return tf.gather(marked, tf.searchsorted(ordered, ids), axis=1) > 0
