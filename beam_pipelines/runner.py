"""Builds a Beam pipeline from a Config; the runner is pinned, because DirectRunner switches between three."""

from __future__ import annotations

import logging

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipelines.options import Config
from transforms.beam import coder


def _is_news(record: logging.LogRecord) -> bool:
    # Beam 2.77 says so wherever PyTorch is absent: one failed import takes the resource module with it.
    return not str(record.msg).startswith("Resource module is not available")


def quiet_logs() -> None:
    """Leaves out what Beam logs by mistake."""
    logging.getLogger().addFilter(_is_news)
    # It warns of every flag that is another runner's, though it hands them all on.
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)


def pipeline(config: Config, name: str) -> beam.Pipeline:
    """A pipeline on the config's runner: ``with pipeline(config, "features") as p: ...``."""
    quiet_logs()
    coder.register()
    flags = [f"--job_name=beamrec-{name}", *config.beam_args]
    if config.runner == "direct":
        return beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(flags))
    return beam.Pipeline(options=PipelineOptions([f"--runner={config.runner}", *flags]))
