"""What computed values mean, as numbers: raise one when the same inputs would give other values than before.

Fingerprints and the daily run's settings hold them, so raising one is what makes a step be done again. The package's version
is only recorded: most releases change no value, and a release alone must not cost a night of recomputation. A model's number
is models.two_tower.config.FORMAT.
"""

FEATURES = "1"
"""Accumulators, their extracts and the snapshots made of them."""

LISTS = 2
"""Candidates, scores, exclusion and reasons of ranked lists; what their bundle holds."""
