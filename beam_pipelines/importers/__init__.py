"""Importers of published data sets: one module per data set turns its files into events, items and users.

``lines`` reads files as blocks of whole lines, ``delimited`` parses a block into columns, ``detect`` finds the files of a
data set, ``run`` writes them into the lake.
"""
