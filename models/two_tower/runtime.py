"""TensorFlow Recommenders beside TensorFlow, imported in the one way that works; import both from here."""

from __future__ import annotations

import sys
import types

from transforms.tf_runtime import native_log_off, tf

# TFRS imports scann's TensorFlow op, which is built for another TensorFlow; its place is taken, for we only use the pybind API.
sys.modules.setdefault("scann.scann_ops.py.scann_ops", types.ModuleType("scann.scann_ops.py.scann_ops"))

with native_log_off():
    import tensorflow_recommenders as tfrs

__all__ = ["deterministic", "tf", "tfrs"]


def deterministic(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow and makes every TensorFlow op give the same bits in each run."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
