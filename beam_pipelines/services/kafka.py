"""A Kafka broker of one node (KRaft).

``with kafka.running(directory) as broker: broker.bootstrap`` starts one on free ports and ends it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beam_pipelines.errors import UserError
from beam_pipelines.services import process
from beam_pipelines.services.install import java, location
from beam_pipelines.services.ports import HOST, answers, claim
from beam_pipelines.services.server import OneProcess

PORT = 9092
_QUIET = {"log_level": 0}


@dataclass
class Broker(OneProcess):
    """A broker; its data stay in ``directory`` over ``kill()`` and ``start()``.

    Attributes:
      controller_port: of its own controller.
      heap_mib: of the JVM.
    """

    NAME: ClassVar[str] = "kafka"

    port: int = PORT
    controller_port: int = 0
    heap_mib: int = 768

    @property
    def bootstrap(self) -> str:
        """``bootstrap.servers`` of clients."""
        return f"{HOST}:{self.port}"

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.bootstrap

    @property
    def environment(self) -> dict[str, str]:
        """What a shell exports to use it."""
        return {"BEAMREC_KAFKA": self.bootstrap}

    @classmethod
    def found(cls, directory: Path) -> Broker | None:
        """The broker that a directory's pid file describes; None without one."""
        known = process.find(directory, cls.NAME)
        return None if known is None else cls(directory, known.ports["kafka"],
                                                 controller_port=known.ports["controller"])

    def start(self, seconds: float = 60.0) -> Broker:
        """Starts it and waits until it answers; nothing when it runs already.

        Raises:
          UserError: not installed, a port is taken, or it does not come up.
        """
        known = self.process
        if known is not None and known.alive:
            self.port, self.controller_port = known.ports["kafka"], known.ports["controller"]
        else:
            jars, program = location(self.NAME), java()
            self.port = claim(self.port, "Kafka", "--port-kafka")
            self.controller_port = claim(self.controller_port, "Kafka's controller", "--port-kafka-controller")
            settings = self._configure()
            classpath = ["-cp", f"{jars}/*"]
            if not (self.directory / "kafka-data" / "meta.properties").exists():
                _format(settings, program, classpath, self.directory / f"{self.NAME}.log")
            known = process.start(
                self.directory, self.NAME,
                [program, f"-Xms{self.heap_mib // 2}m", f"-Xmx{self.heap_mib}m", "-XX:+UseG1GC", "-Djava.awt.headless=true",
                 "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
                 *classpath, "kafka.Kafka", str(settings)],
                ports={"kafka": self.port, "controller": self.controller_port}, parent=self.parent)
        known.wait_ready(self.healthy, seconds, "Kafka")
        return self

    def healthy(self) -> bool:
        """Whether it answers a metadata request."""
        if not answers(self.port):
            return False
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            return bool(AdminClient({"bootstrap.servers": self.bootstrap, **_QUIET}).list_topics(timeout=5).brokers)
        except KafkaException:
            return False

    def create_topic(self, topic: str, partitions: int = 4, **settings: str) -> None:
        """Creates a topic, or adds partitions to one that has fewer; ``settings`` with ``_`` for ``.``."""
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

        admin = AdminClient({"bootstrap.servers": self.bootstrap, **_QUIET})
        config = {name.replace("_", "."): value for name, value in settings.items()}
        try:
            admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            if len(admin.list_topics(topic, timeout=10).topics[topic].partitions) < partitions:
                admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)
        # metadata travel: a producer that asks too early would create the topic by itself
        process.poll(lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) >= partitions, 10)

    def _configure(self) -> Path:
        """Writes server.properties; small topics of its own, so that it starts fast on two cores."""
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self.directory / "kafka-data",
            "num.partitions": 4,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "message.max.bytes": 8_388_608,
            "replica.fetch.max.bytes": 8_388_608,
            "log.cleaner.dedupe.buffer.size": 16_777_216,
            "num.io.threads": 4,
            "num.network.threads": 2,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "kafka.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return path


@contextlib.contextmanager
def running(directory: Path, port: int = 0, heap_mib: int = 768) -> Iterator[Broker]:
    """A broker for the length of a ``with``; killed with this process if that dies first."""
    broker = Broker(directory, port, heap_mib=heap_mib, parent=os.getpid())
    try:
        yield broker.start()
    finally:
        broker.stop()


def _cluster_id(settings: Path) -> str:
    """A cluster id of one's own for every settings file: 16 bytes in URL-safe base64."""
    name = base64.urlsafe_b64encode(uuid.uuid5(uuid.NAMESPACE_OID, str(settings)).bytes).decode().rstrip("=")
    return "A" + name[1:]  # one in 64 would begin with "-", which Kafka's tool takes for an option


def _format(settings: Path, program: str, classpath: list[str], log: Path) -> None:
    done = subprocess.run([program, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
                           *classpath, "kafka.tools.StorageTool", "format", "-t", _cluster_id(settings), "-c", str(settings)],
                          capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        log.write_text(said + "\n")
        last = said.rpartition("\n")[2] or f"exit code {done.returncode}"
        raise UserError(f"Kafka cannot format its data folder: {last} (all of it in {log})")
