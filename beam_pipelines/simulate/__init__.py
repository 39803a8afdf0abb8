"""A seeded world with known truth: ``world`` (who and what there is), ``behaviour`` (what happens on a day), ``columns``
(events as Arrow columns), ``write`` (into the lake). Everything is a pure function of the seed and the sizes.
"""
