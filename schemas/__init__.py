"""Contracts that every part shares: Avro schemas, their Arrow forms, the feature registry, keys and packed cells.

Nothing here imports another package of beamrec, and nothing here needs Beam, TensorFlow or a server.
"""
