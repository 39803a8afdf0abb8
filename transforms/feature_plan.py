"""The plan of a features run: what it reads, reuses and writes. Made by the job, read by every step of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transforms.accumulators import ACCUMULATORS, GROUP_ACCUMULATORS


@dataclass(frozen=True)
class EventFile:
    """One file of events of one day, and the accumulators to make from it."""

    path: str
    day: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class StoredStates:
    """A file of ``partials`` of that day, or of ``states`` up to that day, and what to take from it."""

    path: str
    day: int
    names: tuple[str, ...]
    buckets: int
    running: bool = False


@dataclass(frozen=True)
class Snapshot:
    """One as_of (day number): its published_at (microseconds) and the file of each (entity, bucket)."""

    as_of: int
    published_at: int
    paths: Mapping[tuple[str, int], str]


@dataclass(frozen=True)
class Plan:
    """All that a run computes, reuses and writes; days are numbers since 1970, ascending.

    Attributes:
      units: buckets in which entities are merged and extracted.
      cuts: day -> buckets of the partials made of that day.
      groups: feature groups to extract.
      files: event files to read.
      stored: partials and states to reuse.
      pair_days: days whose pairs are made.
      partial_paths: (day, shard) -> file; partial_inputs: day -> accumulator -> fingerprint.
      shards: files per day of partials (1, or one per bucket on large days).
      snapshots: by as_of, ascending.
      state_day: running states are written up to this day (None: not), to state_paths by (entity, bucket);
        state_inputs: accumulator -> fingerprint.
      schema_metadata: written into every snapshot file.
    """

    units: int
    cuts: Mapping[int, int]
    groups: tuple[str, ...]
    files: tuple[EventFile, ...]
    stored: tuple[StoredStates, ...]
    pair_days: frozenset[int]
    shards: Mapping[int, int]
    partial_paths: Mapping[tuple[int, int], str]
    partial_inputs: Mapping[int, Mapping[str, str]]
    snapshots: tuple[Snapshot, ...]
    state_day: int | None = None
    state_paths: Mapping[tuple[str, int], str] = field(default_factory=dict)
    state_inputs: Mapping[str, str] = field(default_factory=dict)
    schema_metadata: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    def names(self, entity: str) -> list[str]:
        """Accumulators of an entity that the groups need."""
        wanted = {n for g in self.groups for n in GROUP_ACCUMULATORS[g]}
        return [n for n, a in ACCUMULATORS.items() if n in wanted and entity == a.ENTITY]
