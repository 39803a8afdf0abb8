"""How the processes of a Flink cluster are set up: flink-conf.yaml and the commands, sized for one small machine."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.services.ports import HOST

_OPENED = ("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.text", "java.time",
           "java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks", "sun.nio.ch")
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Memory:
    """Sizes in MiB. The TaskManager's process takes about their sum over ``heap``, ``managed``, ``network`` and 600.

    State lies on the heap and wants five times its size there: a heap that is full stops the stream again and again, and one of
    1.5 GB ended a job whose checkpoints were 340 MB. RocksDB takes twice the CPU for few keys with megabytes each.
    """

    jobmanager: int = 512
    jobserver: int = 384
    heap: int = 2048
    managed: int = 128
    network: int = 96


def config(folder: Path, ports: Mapping[str, int], slots: int, memory: Memory, checkpoints: Path,
           extra: Mapping[str, str]) -> dict[str, object]:
    """The lines of flink-conf.yaml; ``extra`` wins."""
    return {
        "jobmanager.rpc.address": HOST, "jobmanager.rpc.port": ports["rpc"], "jobmanager.bind-host": HOST,
        "rest.address": HOST, "rest.bind-address": HOST, "rest.port": ports["rest"],
        "taskmanager.host": HOST, "taskmanager.bind-host": HOST,
        "io.tmp.dirs": folder / "tmp", "web.upload.dir": folder / "tmp",
        # Without it the watermark of Beam's GroupByKey stays at its minimum and no window ever fires.
        "pipeline.operator-chaining.enabled": "false",
        # A record is a batch of columns: it is sent at once, not after 100 ms at each of a job's edges.
        "execution.buffer-timeout.interval": "0 ms",
        # Jobs bring no classes of their own, so one loader is enough and none leaks.
        "classloader.resolve-order": "parent-first",
        "state.checkpoints.dir": f"file://{checkpoints}", "state.savepoints.dir": f"file://{checkpoints}/savepoints",
        "state.checkpoints.num-retained": 3,
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "taskmanager.numberOfTaskSlots": slots, "taskmanager.cpu.cores": float(slots),
        "taskmanager.memory.task.heap.size": f"{memory.heap}m", "taskmanager.memory.task.off-heap.size": "0m",
        "taskmanager.memory.framework.heap.size": "64m", "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.managed.size": f"{memory.managed}m",
        "taskmanager.memory.network.min": f"{memory.network}m", "taskmanager.memory.network.max": f"{memory.network}m",
        "taskmanager.memory.jvm-metaspace.size": "192m",
        "taskmanager.memory.jvm-overhead.min": "192m", "taskmanager.memory.jvm-overhead.max": "192m",
        # A job is restored for ever, at growing pauses that begin anew once it has run for long: fixed-delay, which is what
        # Beam's --number_of_execution_retries sets, counts failures over a job's whole life.
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "1 min",
        "restart-strategy.exponential-delay.reset-backoff-threshold": "10 min",
        # A killed TaskManager is missed after 2 s, not after 50.
        "heartbeat.interval": 1000, "heartbeat.timeout": 20000, "heartbeat.rpc-failure-threshold": 2,
        "cluster.registration.initial-timeout": 100, "cluster.registration.max-timeout": 2000,
        "cluster.registration.refused-registration-delay": 1000,
        **extra,
    }


def command(part: str, java: str, jars: Path, folder: Path, ports: Mapping[str, int], memory: Memory) -> list[str]:
    """The command line of "jobmanager", "taskmanager", "jobserver" or "workers"."""
    if part == "workers":
        return [sys.executable, "-m", "beam_pipelines.services.workers", f"--port={ports['workers']}"]
    flags = [java, *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED), "-XX:+UseParallelGC",
             "-XX:MaxMetaspaceSize=256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
             "-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]
    if part == "jobmanager":
        return [*flags, f"-Xmx{memory.jobmanager}m", "-cp", f"{jars}/*",
                "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", str(folder)]
    if part == "taskmanager":
        heap, direct = memory.heap + 64, memory.network + 128
        return [*flags, f"-Xms{heap}m", f"-Xmx{heap}m", f"-XX:MaxDirectMemorySize={direct * _MIB}", "-cp", f"{jars}/*",
                "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", "--configDir", str(folder)]
    return [*flags, f"-Xmx{memory.jobserver}m", f"-javaagent:{_unseen(jars, folder)}", "-cp", str(folder / "no.jar"),
            "org.apache.beam.runners.flink.FlinkJobServerDriver",
            f"--job-host={HOST}", f"--job-port={ports['jobs']}", "--artifact-port=0", "--expansion-port=0",
            f"--flink-master={HOST}:{ports['rest']}", f"--flink-conf-dir={folder}", f"--artifacts-dir={folder / 'artifacts'}"]


def _unseen(jars: Path, folder: Path) -> Path:
    """A jar that puts all others on the class path of the job server without naming them in ``java.class.path``.

    The job server uploads what that property names with every job: 195 MB that the cluster has already. An agent's
    manifest may name a class path too; jamm is an agent that only keeps what it is handed.
    """
    paths = " ".join(jar.as_uri() for jar in sorted(jars.glob("*.jar")))
    lines = ["Manifest-Version: 1.0", "Premain-Class: org.github.jamm.MemoryMeter", *_wrapped(f"Class-Path: {paths}")]
    jar = folder / "jobserver.jar"
    with zipfile.ZipFile(jar, "w") as file:
        file.writestr("META-INF/MANIFEST.MF", "".join(f"{line}\r\n" for line in lines))
    return jar


def _wrapped(line: str) -> list[str]:
    """A manifest's line, cut to 70 characters; a continuation starts with a blank."""
    return [line[:70], *(f" {line[at:at + 69]}" for at in range(70, len(line), 69))]
