"""Aggregates that a stream keeps per bucket of entities: the same values as a batch over the same events, pane by pane.

base.py says what a state offers; table.py and names.py are its storage; one module per kind of value reads the tables
(panes, sessions, preference, recent, minutes, pairs); user.py and item.py put them together.
"""
