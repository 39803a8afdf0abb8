"""TensorFlow and TensorFlow Recommenders, imported in the one way that works; import both from here."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TFRS is built on Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the model is small, and a CPU gives the same bits everywhere
# TFRS imports scann's TensorFlow op, which is built for another TensorFlow; its place is taken, for we only use the pybind API.
sys.modules.setdefault("scann.scann_ops.py.scann_ops", types.ModuleType("scann.scann_ops.py.scann_ops"))


@contextlib.contextmanager
def _native_log_off() -> Iterator[None]:
    """The C++ libraries print notes while they load, before any log level applies; Python's errors are raised as ever."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


with _native_log_off():
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

tf.get_logger().setLevel("ERROR")

__all__ = ["deterministic", "tf", "tfrs"]


def deterministic(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow and makes every TensorFlow op give the same bits in each run."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
