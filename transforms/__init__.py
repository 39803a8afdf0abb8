"""Pure functions over Arrow columns; no I/O. Thin PTransforms that wire them are in ``transforms.beam``."""
