"""One module per job: it picks source and sink by its config; the middle is a function of ``transforms.beam``."""
