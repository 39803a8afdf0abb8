"""A Flink cluster of one machine with Beam's job server and a pool of Python workers.

``with flink.running(directory, slots=2) as cluster: PipelineOptions(cluster.pipeline_options())`` starts it on free ports.
Its parts (jobmanager, taskmanager, jobserver, workers) can be killed and started one by one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from beam_pipelines.errors import UserError
from beam_pipelines.services import process
from beam_pipelines.services.flink_config import Memory, command, config
from beam_pipelines.services.flink_rest import Rest, newest_checkpoint
from beam_pipelines.services.install import java, location
from beam_pipelines.services.ports import HOST, answers, claim, serves_grpc

__all__ = ["PARTS", "PORTS", "Cluster", "Memory", "Rest", "newest_checkpoint", "running"]

PARTS = ("jobmanager", "taskmanager", "jobserver", "workers")  # in the order of their start
PORTS = {"rest": 8081, "rpc": 6123, "jobs": 8099, "workers": 50000}
_FLAGS = {"rest": "--port-flink", "rpc": "--port-flink-rpc", "jobs": "--port-jobs", "workers": "--port-workers"}
_PART_OF = {"rest": "jobmanager", "rpc": "jobmanager", "jobs": "jobserver", "workers": "workers"}


@dataclass
class Cluster:
    """A Flink cluster; what it keeps is in ``directory``, so a part that is started again finds its ports and files.

    Attributes:
      directory: pid files, logs, configuration, uploads.
      ports: "rest" and "rpc" of the JobManager, "jobs" of the job server, "workers" of the pool; 0 becomes a free one.
      slots: of the TaskManager: how many parallel instances of a job it runs.
      checkpoints: where checkpoints go (default: DIRECTORY/checkpoints).
      memory: sizes of the JVMs.
      settings: more lines of flink-conf.yaml.
      parent: pid of the process with which it ends; 0: it outlives all.
    """

    directory: Path
    ports: dict[str, int] = field(default_factory=lambda: dict(PORTS))
    slots: int = 2
    checkpoints: Path | None = None
    memory: Memory = field(default_factory=Memory)
    settings: Mapping[str, str] = field(default_factory=dict)
    parent: int = 0

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints are written: one folder per job, ``JOB/chk-N``."""
        return (self.checkpoints or self.directory / "checkpoints").absolute()

    @property
    def rest(self) -> Rest:
        """The JobManager's REST interface; ``rest.url`` is also its web page."""
        return Rest(f"http://{HOST}:{self.ports['rest']}")

    @property
    def address(self) -> str:
        """Its web page and REST interface."""
        return self.rest.url

    @property
    def job_endpoint(self) -> str:
        """Beam's ``--job_endpoint``."""
        return f"{HOST}:{self.ports['jobs']}"

    @property
    def worker_endpoint(self) -> str:
        """Beam's ``--environment_config``."""
        return f"{HOST}:{self.ports['workers']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a shell exports to use it."""
        return {"BEAMREC_FLINK": self.rest.url, "BEAMREC_JOB_ENDPOINT": self.job_endpoint,
                "BEAMREC_WORKERS": self.worker_endpoint}

    @classmethod
    def found(cls, directory: Path) -> Cluster | None:
        """The cluster that a directory's pid files describe; None without any."""
        ports = {name: port for part in PARTS if (known := process.find(directory, part)) for name, port in known.ports.items()}
        return cls(directory, {**PORTS, **ports}) if ports else None

    def pipeline_options(self, job: str = "", parallelism: int = 0, streaming: bool = True, checkpoint_ms: int = 2000,
                         savepoint: Path | None = None, retries: int | None = None) -> list[str]:
        """Beam's flags for a job on this cluster; workers outlive the process that submits.

        Args:
          job: name of the job; none leaves Beam's.
          parallelism: instances of each step (default: slots); there are twice as many worker processes.
          streaming: False for a bounded job, which takes no checkpoints.
          checkpoint_ms: between checkpoints.
          savepoint: a savepoint or checkpoint folder to start from.
          retries: how often in its life the job is restored before it fails, for one that somebody waits for; None: for ever,
            and a bounded job never.
        """
        wide = parallelism or self.slots
        flags = ["--runner=PortableRunner", f"--job_endpoint={self.job_endpoint}", "--environment_type=EXTERNAL",
                 f"--environment_config={self.worker_endpoint}", f"--parallelism={wide}",
                 # Instances of steps are dealt out to processes in the order in which they happen to open: of as many processes
                 # as instances one often gets all the user state, and with it the whole job's pace.
                 f"--sdk_worker_parallelism={2 * wide}"]
        if job:
            flags.append(f"--job_name={job}")
        if streaming:
            # Without a finished bundle before each checkpoint first elements can vanish silently.
            flags += ["--streaming", f"--checkpointing_interval={checkpoint_ms}", "--finish_bundle_before_checkpointing",
                      "--externalized_checkpoints_enabled", "--retain_externalized_checkpoints_on_cancellation"]
        if retries is not None or not streaming:
            flags += [f"--number_of_execution_retries={retries or 0}", "--execution_retry_delay=1000"]
        if savepoint is not None:
            flags.append(f"--savepoint_path=file://{savepoint.absolute()}")
        return flags

    def part(self, name: str) -> process.Process | None:
        """The process of a part, alive or not; None before its first start."""
        return process.find(self.directory, name)

    def start(self, seconds: float = 90.0) -> Cluster:
        """Starts every part that does not run and waits until the cluster takes jobs.

        Raises:
          UserError: not installed, a port is taken, or a part does not come up.
        """
        for name in self.ports:
            owner = self.part(_PART_OF[name])
            if owner is not None and owner.alive:
                self.ports[name] = owner.ports[name]
            else:
                self.ports[name] = claim(self.ports[name], f"Flink's {_PART_OF[name]} ({name})", _FLAGS[name])
        self._configure()
        started = [self._start(name) for name in PARTS]
        for part, name in zip(started, PARTS, strict=True):
            part.wait_ready(lambda name=name: self.ready(name), seconds, f"Flink's {name}")  # type: ignore[misc]
        return self

    def start_part(self, name: str, seconds: float = 60.0) -> None:
        """Starts one part again, on its ports, and waits until it is ready."""
        self._start(name).wait_ready(lambda: self.ready(name), seconds, f"Flink's {name}")

    def kill_part(self, name: str) -> None:
        """Kills one part at once (SIGKILL), as a crash would; of the workers, the pool with every worker."""
        if (known := self.part(name)) is not None:
            known.kill()

    def worker_pids(self) -> list[int]:
        """Pids of the Python workers of running jobs, without the pool that started them."""
        pool = self.part("workers")
        return [] if pool is None else [pid for pid in pool.members() if pid != pool.pid]

    def kill_worker(self) -> int:
        """Kills one Python worker (SIGKILL) and returns its pid; raises UserError when none runs."""
        pids = self.worker_pids()
        if not pids:
            raise UserError("no Python worker runs on this cluster")
        os.kill(pids[0], signal.SIGKILL)
        return pids[0]

    def kill_taskmanager(self) -> None:
        """Kills the TaskManager; its jobs wait for ``start_taskmanager()``, then restore their last checkpoint."""
        self.kill_part("taskmanager")

    def start_taskmanager(self) -> None:
        """Starts the TaskManager again."""
        self.start_part("taskmanager")

    def kill_jobmanager(self) -> None:
        """Kills the JobManager: its jobs are lost; submit them again from ``newest_checkpoint(checkpoint_dir)``."""
        self.kill_part("jobmanager")

    def start_jobmanager(self) -> None:
        """Starts the JobManager again and waits for the TaskManager to find it."""
        self.start_part("jobmanager")
        process.poll(lambda: self.ready("taskmanager"), 60)

    def ready(self, name: str) -> bool:
        """Whether a part does its work."""
        known = self.part(name)
        if known is None or not known.alive:
            return False
        if name == "jobserver":
            return serves_grpc(self.job_endpoint)
        if name == "workers":
            return answers(self.ports["workers"])
        try:
            managers, slots = self.rest.slots()
        except UserError:
            return False
        return name == "jobmanager" or (managers > 0 and slots > 0)

    def healthy(self) -> bool:
        """Whether every part does its work."""
        return all(self.ready(name) for name in PARTS)

    def stop(self) -> None:
        """Ends every part; checkpoints stay."""
        for name in reversed(PARTS):
            if (known := self.part(name)) is not None:
                known.stop(5.0)

    def _start(self, name: str) -> process.Process:
        known = self.part(name)
        if known is not None and known.alive:
            return known
        if known is not None:
            known.kill()  # children that outlived it
        ports = {purpose: port for purpose, port in self.ports.items() if _PART_OF[purpose] == name}
        here = str(Path(sys.executable).parent)  # the pool starts "python": it shall be this one
        return process.start(self.directory, name,
                             command(name, java(), location("flink"), self.directory, self.ports, self.memory), ports=ports,
                             environment={"PATH": f"{here}:{os.environ.get('PATH', '')}"}, parent=self.parent)

    def _configure(self) -> None:
        for folder in (self.directory / "tmp", self.checkpoint_dir):
            folder.mkdir(parents=True, exist_ok=True)
        lines = config(self.directory, self.ports, self.slots, self.memory, self.checkpoint_dir, self.settings)
        (self.directory / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))


@contextlib.contextmanager
def running(directory: Path, slots: int = 2, checkpoints: Path | None = None, memory: Memory | None = None,
            settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster on free ports for the length of a ``with``; killed with this process if that dies first."""
    cluster = Cluster(directory, dict.fromkeys(PORTS, 0), slots, checkpoints, memory or Memory(), settings or {}, os.getpid())
    try:
        yield cluster.start()
    finally:
        cluster.stop()
