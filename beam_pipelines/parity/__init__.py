"""``beamrec parity``: the same clicks through the stream, the batch accumulators and plain SQL; every value must be equal.

``clicks`` makes a disturbed event log of published clicks, ``oracle`` computes every value by DuckDB over the files,
``compare`` counts the cells that differ.
"""
