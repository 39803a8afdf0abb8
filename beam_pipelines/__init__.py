"""Jobs: options, sources and sinks (``io/``), one module per job (``jobs/``) and the command line (``cli/``)."""
