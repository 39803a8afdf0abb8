"""The one preprocessing_fn (tf.Transform): raw user and item columns -> integers and normalised floats.

It is analysed by Beam over training examples, applied to them, and exported inside the SavedModel: the same graph turns raw
features into model inputs in training, evaluation and serving. A user's columns alone, or an item's alone, can be
transformed too. Importing this module loads TensorFlow.
"""

from __future__ import annotations

from transforms.examples import ITEM_STATS, USER_STATS
from transforms.tf_runtime import tf, tft

Tensors = dict[str, tf.Tensor | tf.SparseTensor]

ITEM_VOCABULARY, CATEGORY_VOCABULARY = "items", "categories"
MAX_ITEMS, ITEM_OOV = 1_000_000, 64
MAX_CATEGORIES, CATEGORY_OOV = 10_000, 8
"""Bounds of the vocabularies; rarer ids share hash buckets, so that no analysis grows without end."""

DAY_BOUNDS = (0.0, 0.02, 0.1, 0.5, 1.0, 3.0, 7.0, 14.0, 30.0, 90.0, 365.0)
COUNT_BOUNDS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0, 144.0)
DWELL_BOUNDS = (0.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6)
RATE_BOUNDS = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
USER_BOUNDS: dict[str, tuple[float, ...]] = {
    "recency_days": DAY_BOUNDS, "active_days_30d": COUNT_BOUNDS, "distinct_items_30d": COUNT_BOUNDS,
    "segment": (0.0, 0.5, 1.5, 2.5), "dwell_mean_7d": DWELL_BOUNDS,
}
ITEM_BOUNDS: dict[str, tuple[float, ...]] = {"ctr_smoothed_30d": RATE_BOUNDS}
"""Fixed bucket bounds of counts, rates and ages. Bucket 0 holds missing values (-1), so n bounds make n + 1 buckets."""
QUANTILES = 12
"""Buckets of what has no natural scale: year and price."""

LISTS = ("liked_items", "liked_ages", "affinity_ids", "affinity_shares", "categories")
USER_BUCKETS = (*USER_BOUNDS, "price_mean_30d")
ITEM_BUCKETS = (*ITEM_BOUNDS, "year", "price")
ITEM_NUMBERS = ("popularity_share_30d",)


def raw_feature_spec() -> dict[str, tf.io.FixedLenFeature | tf.io.VarLenFeature]:
    """The TFT feature spec of the raw columns that transforms.examples builds."""
    spec: dict[str, tf.io.FixedLenFeature | tf.io.VarLenFeature] = {
        name: tf.io.VarLenFeature(tf.float32 if name in ("liked_ages", "affinity_shares") else tf.string) for name in LISTS}
    spec |= {name: tf.io.FixedLenFeature([], tf.float32) for name in (*USER_STATS, "year", "price", *ITEM_STATS)}
    spec["item_id"] = tf.io.FixedLenFeature([], tf.string)
    return spec


def preprocessing_fn(inputs: Tensors) -> Tensors:
    """Raw columns -> model inputs of the same names.

    Args:
      inputs: ``raw_feature_spec``; lists are sparse, [batch, *]; NaN is a missing number.

    Returns:
      liked_items, affinity_ids, categories: sparse int64 vocabulary indices; liked_ages: sparse int64 buckets;
      affinity_shares: sparse float32; item_id: [batch] int64; USER_BUCKETS, ITEM_BUCKETS: [batch] int64;
      ITEM_NUMBERS: [batch] float32, z-scores of log shares.
    """
    out: Tensors = {}
    items = tft.vocabulary(inputs["item_id"], top_k=MAX_ITEMS, vocab_filename=ITEM_VOCABULARY)
    for name in ("item_id", "liked_items"):
        out[name] = tft.apply_vocabulary(inputs[name], items, num_oov_buckets=ITEM_OOV)
    categories = tft.vocabulary(inputs["categories"], top_k=MAX_CATEGORIES, vocab_filename=CATEGORY_VOCABULARY)
    for name in ("categories", "affinity_ids"):
        out[name] = tft.apply_vocabulary(inputs[name], categories, num_oov_buckets=CATEGORY_OOV)
    out["affinity_shares"] = tf.sparse.map_values(tf.identity, inputs["affinity_shares"])
    out["liked_ages"] = tf.sparse.map_values(_bucket, inputs["liked_ages"], DAY_BOUNDS)
    for name, bounds in {**USER_BOUNDS, **ITEM_BOUNDS}.items():
        out[name] = _bucket(inputs[name], bounds)
    for name in ("price_mean_30d", "year", "price"):
        out[name] = tft.bucketize(_present(inputs[name]), QUANTILES)
    for name in ITEM_NUMBERS:
        out[name] = tft.scale_to_z_score(tf.math.log1p(1e4 * tf.maximum(_present(inputs[name]), 0.0)))
    return out


def _present(values: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_nan(values), -tf.ones_like(values), values)


def _bucket(values: tf.Tensor, bounds: tuple[float, ...]) -> tf.Tensor:
    return tft.apply_buckets(_present(values), tf.constant([bounds]))
