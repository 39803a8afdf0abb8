"""Stores, versions and the HTTP API. Never imports Beam or TensorFlow."""
