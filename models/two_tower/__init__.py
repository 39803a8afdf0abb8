"""The two-tower retrieval model: settings, towers, training (run_fn), export, inference in Beam.

``runtime`` is the one place that imports TensorFlow and TensorFlow Recommenders; only modules that compute import it.
"""
