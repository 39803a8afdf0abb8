"""The graph of the job for other runners, with the flags of the commands in docs/: each is known, the graph is translated."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines.cli.main import COMMANDS, build_parser
from beam_pipelines.cli.stream import config_of
from beam_pipelines.errors import UserError
from beam_pipelines.jobs.stream import construct
from beam_pipelines.options import StreamConfig
from beam_pipelines.services.install import location

ROOT = Path(__file__).parents[2]
NAMES = {r"(--project[= ])P\b": r"\1project-one", r"(--region[= ])R\b": r"\1us-central1", r"gs://B/": "gs://bucket-one/"}
OFFLINE = ["--dry_run=True", "--no_auth"]


def documented(runner: str) -> list[tuple[str, StreamConfig]]:
    """(file, what ``beamrec stream`` makes of it) of every command in docs/ for a runner."""
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        for line in re.findall(r"^beamrec stream .*$", path.read_text().replace("\\\n", " "), re.M):
            if f"--runner {runner}" in line:
                for placeholder, name in NAMES.items():
                    line = re.sub(placeholder, name, line)
                parser = build_parser(next(c for c in COMMANDS if c.name == "stream"))
                found.append((path.name, config_of(parser.parse_args(shlex.split(line)[2:]))))
    return found


def flags_of(config: StreamConfig) -> set[str]:
    """Names of the flags that go to Beam."""
    return {flag[2:].partition("=")[0] for flag in config.common.beam_args if flag.startswith("--")}


def test_the_documented_commands_for_dataflow_are_translated_without_credentials() -> None:
    commands = documented("DataflowRunner")
    assert {name for name, _ in commands} == {"deploy.md", "stream.md"}
    for name, config in commands:
        flags = list(config.common.beam_args)
        if "--setup_file" in flags:  # its package is built and staged, which is for a bucket that there is
            at = flags.index("--setup_file")
            assert (ROOT / flags[at + 1]).exists()
            del flags[at : at + 2]
        options = PipelineOptions(["--runner=DataflowRunner", "--streaming", "--job_name=beamrec-stream", *flags, *OFFLINE])
        assert flags_of(config) <= set(options.get_all_options()), name
        pipeline = beam.Pipeline(options=options)
        construct(pipeline, config)
        job = pipeline.run().job
        assert "JOB_TYPE_STREAMING" in str(job), name
        check(job.proto_pipeline)
        containers = {e.payload for e in job.proto_pipeline.components.environments.values()}
        assert any(b"IMAGE" in payload for payload in containers), name


def check(proto: beam.portability.api.beam_runner_api_pb2.Pipeline) -> None:
    """The steps, states and sources that the job has."""
    names = {t.unique_name for t in proto.components.transforms.values()}
    for step in ("Read the event log", "Users/User state", "Items/Item state", "Users' cells/Write cells", "Status"):
        assert any(step in name for name in names), step
    specs = [t.spec for t in proto.components.transforms.values() if t.spec.urn == "beam:transform:pardo:v1"]
    payloads = [beam.portability.api.beam_runner_api_pb2.ParDoPayload.FromString(spec.payload) for spec in specs]
    assert sum(bool(p.state_specs) for p in payloads) == 3
    assert sum(bool(p.restriction_coder_id) for p in payloads) == 1


def test_the_documented_flags_for_a_flink_cluster_are_known() -> None:
    (_, config), = documented("PortableRunner")
    known = set(PipelineOptions([]).get_all_options())
    try:
        jar, = location("flink").glob("beam-runners-flink-*.jar")
    except UserError as error:
        pytest.skip(str(error))
    with zipfile.ZipFile(jar) as file:
        javas = file.read("org/apache/beam/runners/flink/FlinkPipelineOptions.class")
    for flag in flags_of(config) - known:
        assert f"get{flag.title().replace('_', '')}".encode() in javas, flag
