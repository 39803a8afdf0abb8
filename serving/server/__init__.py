"""Processes that answer HTTP: one that accepts connections and deals them out, and workers that answer, one thread each.

deal.py is the first, worker.py the others, protocol.py what a worker does with a connection.
"""
