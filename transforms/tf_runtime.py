"""TensorFlow and tf.Transform, imported in the one way that works; import them from here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TFRS is built on Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the model is small, and a CPU gives the same bits everywhere


@contextlib.contextmanager
def native_log_off() -> Iterator[None]:
    """The C++ libraries print notes while they load, before any log level applies; Python's errors are raised as ever."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


with native_log_off():
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam

tf.get_logger().setLevel("ERROR")

__all__ = ["native_log_off", "tf", "tft", "tft_beam"]
