"""Prism, Beam's small portable runner: streams with state and timers on one machine, without Java.

``with prism.running(directory) as server: PipelineOptions(server.pipeline_options())`` starts one on a free port.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

from beam_pipelines.errors import UserError
from beam_pipelines.services.install import HOW, RECIPES, install, program
from beam_pipelines.services.ports import free_port
from beam_pipelines.services.server import OneGrpcServer

PORT = 8073
_LONGEST_S = 365 * 86_400
"""How long a job may run: on Prism Beam follows it with calls that end after --job_server_timeout, by its default 300 s, and a
job that ends later has failed then, whatever became of it (2.77)."""


def binary() -> Path:
    """Prism's program: the one in .services, else the one that Beam downloads once and keeps.

    Raises:
      UserError: neither is there, and Beam's download cannot be reached.
    """
    with contextlib.suppress(UserError):
        return program("prism")
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.prism_runner import PrismJobServer

    logging.getLogger(__name__).info("looking for Beam's download of Prism")
    try:
        return Path(PrismJobServer.local_bin(PrismJobServer(PipelineOptions([])).path_to_binary()))
    except (OSError, RuntimeError, ValueError, BadZipFile) as error:
        raise UserError("no Prism: Beam's download cannot be reached; build it once with: make services SERVICES=prism "
                        f"(needs {HOW['go']})") from error


def is_here() -> bool:
    """Whether ``binary`` finds it; where not, it can be built.

    Raises:
      UserError: neither download nor Go.
    """
    try:
        binary()
    except UserError:
        if shutil.which("go") is None or not RECIPES.is_dir():
            raise
        return False
    return True


def ensure(news: Callable[[str], None]) -> None:
    """Builds it where it is not here; for ``news`` see ``build``. Raises UserError: neither download nor Go."""
    if not is_here():
        build(news)


def build(news: Callable[[str], None]) -> None:
    """Builds it with Go, for all later runs; ``news`` hears before that begins. Raises UserError when that fails."""
    news("Prism is built with Go, once: about a minute")
    outcome = install(["prism"], lambda _: None)[0]
    if outcome.state == "failed":
        raise UserError(f"no Prism: building it failed: {outcome.reason}")


@dataclass
class Prism(OneGrpcServer):
    """A Prism server."""

    NAME: ClassVar[str] = "prism"
    TITLE: ClassVar[str] = "Prism"

    port: int = PORT

    @property
    def environment(self) -> dict[str, str]:
        """What a shell exports to use it."""
        return {"BEAMREC_PRISM": self.address}

    def pipeline_options(self, job: str = "", streaming: bool = True) -> list[str]:
        """Beam's flags for a job on it, whose workers run in the submitting process (LOOPBACK)."""
        # When it splits a slow bundle whose key is on both sides, it runs the two at once and one's state is lost (2.77).
        flags = ["--runner=PortableRunner", f"--job_endpoint={self.address}", "--environment_type=LOOPBACK",
                 "--experiments=prism_disable_sdf_split", f"--job_server_timeout={_LONGEST_S}"]
        return [*flags, *(["--streaming"] if streaming else []), *([f"--job_name={job}"] if job else [])]

    def command(self) -> list[str]:
        """See OneGrpcServer."""
        return [str(binary()), "-serve_http=false", "-log_kind=json", "-log_level=warn", f"-web_port={free_port()}"]

    def port_flag(self) -> str:
        """See OneGrpcServer."""
        return f"-job_port={self.port}"


@contextlib.contextmanager
def running(directory: Path, port: int = 0) -> Iterator[Prism]:
    """A server for the length of a ``with``; killed with this process if that dies first."""
    server = Prism(directory, port, parent=os.getpid())
    try:
        yield server.start()
    finally:
        server.stop()
