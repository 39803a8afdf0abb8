"""Other engines that compute the windows of ``beamrec bench stream`` from the same records.

A module is an engine (``flink_sql`` and ``spark`` are run by Pythons of their own and import nothing of ours); ``truth`` is
what all results are compared with, ``run`` starts them and makes the figures.
"""
