"""``beamrec services``: up, a message through Kafka, status, down, and no process left."""

import json
import os
import signal
from pathlib import Path

import pytest
from e2e.servers import need

from beam_pipelines.cli.main import main
from beam_pipelines.services import prism, process


@pytest.fixture
def services(tmp_path, capsys):
    """Runs the command in a directory of its own; (exit code, stdout). Whatever the test does, nothing stays up."""
    def command(*words):
        code = main(["services", *words, "--dir", str(tmp_path / "services"), "--quiet"])
        return code, capsys.readouterr().out

    yield command
    command("down")


def free(*names):
    return [word for name in names for word in (f"--port-{name}", "0")]


def test_up_status_message_down(services, tmp_path):
    need("kafka", "bigtable")
    confluent = pytest.importorskip("confluent_kafka")
    code, out = services("up", "kafka", "bigtable", "--json", *free("kafka", "bigtable"))
    assert code == 0
    started = json.loads(out)
    bootstrap = started["kafka"]["address"]
    assert started["bigtable"]["environment"] == {"BIGTABLE_EMULATOR_HOST": started["bigtable"]["address"]}

    code, out = services("status", "--json")
    rows = {row["part"]: row for row in json.loads(out)["processes"]}
    assert code == 0 and {row["state"] for row in rows.values()} == {"healthy"}
    assert rows["kafka"]["ports"]["kafka"] == int(bootstrap.rpartition(":")[2]) and rows["kafka"]["memory_mib"] > 50

    producer = confluent.Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})
    producer.produce("greetings", b"hello")
    assert producer.flush(30) == 0
    consumer = confluent.Consumer({"bootstrap.servers": bootstrap, "group.id": "g", "auto.offset.reset": "earliest",
                                   "log_level": 0})
    consumer.subscribe(["greetings"])
    assert consumer.poll(30).value() == b"hello"
    consumer.close()

    code, out = services("up", "kafka", "--json", "--port-kafka", "1")  # it runs already: its port stays
    assert code == 0 and json.loads(out)["kafka"]["address"] == bootstrap
    code, out = services("env")
    assert out.splitlines() == [f"export BEAMREC_KAFKA={bootstrap}",
                                f"export BIGTABLE_EMULATOR_HOST={started['bigtable']['address']}"]

    os.kill(rows["bigtable"]["pid"], signal.SIGKILL)
    code, out = services("status")
    assert code == 1 and "bigtable     dead" in out and "kafka        healthy" in out

    runs = [process.find(tmp_path / "services" / name, name) for name in ("kafka", "bigtable")]
    code, out = services("down")
    assert (code, out) == (0, "ended: bigtable, kafka\n")
    assert [run.members() for run in runs] == [[], []]
    code, out = services("status", "kafka")
    assert (code, out) == (1, "kafka        down\n")
    assert services("status")[0] == 0 and services("down") == (0, "nothing was up\n")


def test_a_taken_port_is_one_clear_line(tmp_path, bigtable_emulator, capsys):
    taken = str(bigtable_emulator.port)
    assert main(["services", "up", "bigtable", "--dir", str(tmp_path), "--quiet", "--port-bigtable", taken]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"port {taken}" in error and "--port-bigtable" in error


@pytest.mark.parametrize("words, reason", [
    (["up", "kafak"], "no service 'kafak'"), (["down", "x"], "no service 'x'"), (["status", "x"], "no service 'x'"),
    (["up", "kafka", "--port-kafka", "70000"], "--port-kafka is a number from 0 to 65535"),
    (["up", "flink", "--slots", "0"], "--slots is a number from 1 to 64"),
])
def test_wrong_words_are_one_line(tmp_path, capsys, words, reason):
    assert main(["services", *words, "--dir", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err


def test_a_broker_comes_back_with_its_messages(kafka_broker):
    from confluent_kafka import Consumer, Producer, TopicPartition

    kafka_broker.create_topic("kept", 3)
    kafka_broker.create_topic("kept", 5)  # a topic may grow
    producer = Producer({"bootstrap.servers": kafka_broker.bootstrap, "acks": "all", "log_level": 0})
    producer.produce("kept", b"before", partition=4)
    assert producer.flush(30) == 0
    bootstrap, pid = kafka_broker.bootstrap, kafka_broker.process.pid
    kafka_broker.kill()
    assert not kafka_broker.healthy()
    kafka_broker.start()
    assert kafka_broker.bootstrap == bootstrap and kafka_broker.process.pid != pid
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "g", "log_level": 0})
    consumer.assign([TopicPartition("kept", 4, 0)])
    assert consumer.poll(30).value() == b"before"
    consumer.close()


def test_prism_runs_a_pipeline(prism_server):
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.testing.util import assert_that, equal_to

    with beam.Pipeline(options=PipelineOptions(prism_server.pipeline_options(streaming=False))) as p:
        sums = p | beam.Create([("a", 1), ("b", 2), ("a", 3)]) | beam.CombinePerKey(sum)
        assert_that(sums, equal_to([("a", 4), ("b", 2)]))


def test_a_job_on_prism_may_run_for_months():
    from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

    options = PipelineOptions(prism.Prism(Path("nowhere"), 1).pipeline_options())
    assert options.view_as(PortableOptions).job_server_timeout > 90 * 86_400  # calls that follow a job end after so long
