"""Settings of the two-tower model; nothing here loads TensorFlow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1
"""Part of every model version: raise it when the same data and settings would give other weights or another layout."""


@dataclass(frozen=True)
class TwoTowerConfig:
    """Settings of model and training. Defaults were chosen on validation slices of MovieLens 100K, never on test targets.

    Attributes:
      dim: length of an exported vector; one of its components carries the item bias.
      hidden: units of each tower's hidden layer.
      dropout: rate on hidden layers and on the pooled history.
      learning_rate: of Adam.
      batch_size: examples per step, which are one another's negatives.
      epochs: passes over the examples.
      max_steps: many examples are passed over less often, but once at least: after so many steps training ends. On 1.06 M
        news clicks 4,000 steps found as much as 16,600 (Recall@20 .122 and .125, intervals of .008 to either side).
      temperature: divides the cosine of the two vectors; the item bias stays outside.
      history_dropout: share of a history's items hidden at random in training.
    """

    dim: int = 64
    hidden: int = 128
    dropout: float = 0.3
    learning_rate: float = 2e-3
    batch_size: int = 512
    epochs: int = 8
    max_steps: int = 4_000
    temperature: float = 0.15
    history_dropout: float = 0.2

    def epoch_steps(self, rows: int) -> int:
        """Steps of one pass over so many examples (at least one): whole batches only."""
        return max(1, rows // max(1, min(self.batch_size, rows)))

    def steps(self, rows: int) -> int:
        """Steps of a training on so many examples."""
        return max(self.epoch_steps(rows), min(self.epochs * self.epoch_steps(rows), self.max_steps))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for manifests and hashes."""
        return asdict(self)
