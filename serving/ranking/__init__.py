"""Ranking at request time, without I/O: candidates and signals in, a page out. What reads stores lives in serving/ itself."""
