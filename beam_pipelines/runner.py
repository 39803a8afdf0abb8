"""Builds a Beam pipeline from a Config; the runner is pinned, because DirectRunner switches between three."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipelines.options import Config


def pipeline(config: Config, name: str) -> beam.Pipeline:
    """A pipeline on the config's runner: ``with pipeline(config, "features") as p: ...``."""
    flags = [f"--job_name=beamrec-{name}", *config.beam_args]
    if config.runner == "direct":
        return beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(flags))
    return beam.Pipeline(options=PipelineOptions([f"--runner={config.runner}", *flags]))
