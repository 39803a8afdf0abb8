"""Local servers for development and tests: one module per server, plus how they are installed, started and found again.

``install`` builds them into .services/ from the recipes in deploy/services; ``process`` starts and ends one operating-system
process; ``kafka``, ``flink``, ``bigtable`` and ``prism`` know one server each; ``control`` is what ``beamrec services`` does.
"""
