"""PTransforms that wire the pure functions of ``transforms`` into a Beam pipeline; no logic of their own."""
