"""What only Kafka does: retention, transactions, a broker that goes away, client settings, two ways of reading."""

import asyncio
import time

import pytest
from eventlog_world import BASE, broker_at, read_all, topic

from serving.eventlog import LogError, LogUnavailable, LogUriError, OffsetGone, open_log

rdkafka = pytest.importorskip("serving.eventlog.rdkafka", reason="needs the Kafka client: pip install 'beamrec[stream]'")
kafka_log = pytest.importorskip("serving.eventlog.kafka", reason="needs the Kafka client: pip install 'beamrec[stream]'")

PASSWORD = "hunter2-very-secret"


@pytest.fixture(params=["batches", "objects"])
def log(request, broker, monkeypatch):
    """A new topic of two partitions, read in either way."""
    if request.param == "objects":
        monkeypatch.setattr(rdkafka, "library", lambda: None)
    elif rdkafka.library() is None:
        pytest.skip("librdkafka cannot be called directly here; message objects are used")
    opened = open_log(f"kafka://{broker}/{topic()}?partitions=2")
    yield opened
    opened.close()


def test_both_ways_of_reading_give_the_same(log):
    sent = {(p, i): b"%d" % i * (i % 50) for p in (0, 1) for i in range(3000)}
    for p in (0, 1):
        log.append(p, [sent[p, i] for i in range(3000)], BASE)
    reader = log.reader({0: 0, 1: 0})
    assert {(p, o): r for p, o, r in read_all(reader, 6000)} == sent
    assert len(reader.poll(1 << 20, 0.3)) == 0
    assert reader.positions() == {0: 3000, 1: 3000} == reader.high_watermarks()
    reader.only([0])
    reader.seek({0: 2990, 1: 2995})
    assert [o for _, o, _ in read_all(reader, 15, 3)] == list(range(2990, 3000))
    reader.close()


def test_records_deleted_by_retention_are_told(log, broker):
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    log.append(0, [b"%d" % i for i in range(100)], BASE)
    admin = AdminClient({"bootstrap.servers": broker, "log_level": 0})
    for future in admin.delete_records([TopicPartition(log.topic, 0, 60)]).values():
        future.result(10)
    reader = log.reader({0: 10, 1: 0})
    with pytest.raises(OffsetGone) as caught:
        read_all(reader, 1, 10)
    assert (caught.value.partition, caught.value.asked, caught.value.earliest) == (0, 10, 60)
    assert log.earliest(0) == 60
    reader.seek({0: 60})
    assert [o for _, o, _ in read_all(reader, 40)] == list(range(60, 100))
    reader.close()


def test_positions_pass_what_only_the_broker_sees(log, broker):
    from confluent_kafka import Producer

    client = Producer({"bootstrap.servers": broker, "transactional.id": topic(), "log_level": 0})
    client.init_transactions(30)
    for end in (client.commit_transaction, client.abort_transaction):
        client.begin_transaction()
        for _ in range(3):
            client.produce(log.topic, b"x", partition=0)
        client.flush(30)
        end(30)
    reader = log.reader({0: 0})
    assert [o for _, o, _ in read_all(reader, 3)] == [0, 1, 2], "aborted records are not shown"
    for _ in range(50):
        reader.poll(1 << 20, 0.1)
        if reader.positions() == {0: 8}:
            break
    assert reader.positions() == {0: 8} == reader.high_watermarks()
    reader.close()


def test_a_reader_and_a_producer_go_on_after_the_broker_was_away(tmp_path):
    with broker_at(tmp_path) as broker:
        log = open_log(f"kafka://{broker.bootstrap}/{topic()}?partitions=1", {"delivery.timeout.ms": "120000"})
        log.append(0, [b"before"], BASE)
        reader = log.reader({0: 0})
        assert read_all(reader, 1) == [(0, 0, b"before")]

        found = []

        async def outage():
            producer = log.producer()
            assert await producer.send(0, b"one", BASE) == 1
            broker.kill()
            waiting = asyncio.create_task(producer.send(0, b"two", BASE))
            refused = None
            for _ in range(100):
                await asyncio.sleep(0.1)
                probe = asyncio.create_task(producer.send(0, b"three", BASE))
                await asyncio.sleep(0.01)
                if probe.done() and isinstance(probe.exception(), LogUnavailable):
                    refused = probe.exception()
                    break
            assert refused is not None and refused.retry_after_s > 0
            with pytest.raises(LogUnavailable):
                for _ in range(100):
                    found.extend(await asyncio.get_running_loop().run_in_executor(None, read_all, reader, 1, 0.2))
            await asyncio.get_running_loop().run_in_executor(None, broker.start)
            offset = await asyncio.wait_for(waiting, 100)
            await producer.flush()
            producer.close()
            return offset

        assert asyncio.run(outage()) == 2
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (0, 2, b"two") not in found:
            try:
                found += read_all(reader, 1, 1)
            except LogUnavailable:
                time.sleep(0.2)
        assert found[:2] == [(0, 1, b"one"), (0, 2, b"two")]
        reader.close()
        log.close()


def test_a_broker_that_is_not_there_is_told_quickly(monkeypatch):
    monkeypatch.setattr(kafka_log, "_ASK_S", 1.0)
    log = open_log("kafka://127.0.0.1:9/t")
    with pytest.raises(LogUnavailable):
        log.partitions()
    log.close()


def settings_file(tmp_path, **settings):
    path = tmp_path / "client.properties"
    path.write_text("# a comment\n\n" + "".join(f"{k.replace('_', '.')} = {v}\n" for k, v in settings.items()))
    return path


def told(uri, use):
    """Everything that using a log says: its repr and the error."""
    try:
        log = open_log(uri)
        try:
            return repr(log) + repr(log._settings) + str(log._settings) + repr(vars(log)) + str(use(log))
        finally:
            log.close()
    except LogError as error:
        return repr(error) + str(error) + repr(error.__cause__) + repr(error.__context__)


@pytest.mark.parametrize("use", [lambda log: log.partitions(), lambda log: log.append(0, [b"x"], 0),
                                 lambda log: log.producer(), lambda log: log.reader({0: 0})])
@pytest.mark.parametrize("settings", [
    {"sasl_mechanism": "PLAIN", "security_protocol": "SASL_PLAINTEXT", "sasl_username": "u", "sasl_password": PASSWORD},
    {"sasl_password": PASSWORD, "no_such_setting": "1"}, {"ssl_key_pem": PASSWORD, "security_protocol": "ssl"},
    {"security_protocol": PASSWORD}, {"ssl_keystore_password": PASSWORD, "ssl_keystore_location": "/nowhere"}])
def test_secrets_of_the_settings_file_are_never_told(broker, tmp_path, monkeypatch, capfd, settings, use):
    monkeypatch.setattr(kafka_log, "_ASK_S", 1.0)
    path = settings_file(tmp_path, **settings)
    text = told(f"kafka://{broker}/{topic()}?client={path}", use)
    if settings != {"security_protocol": PASSWORD}:  # there it is no secret, but a mistake
        assert PASSWORD not in text
    out, err = capfd.readouterr()
    assert PASSWORD not in out + err


def test_settings_pass_through_and_mistakes_are_told(broker, tmp_path):
    path = settings_file(tmp_path, client_id="shop", fetch_wait_max_ms="50", acks="1", group_id="mine")
    log = open_log(f"kafka://{broker}/{topic()}?client={path}&partitions=1")
    assert log.append(0, [b"a"], BASE) == 0
    assert read_all(log.reader({0: 0}), 1) == [(0, 0, b"a")]
    assert log._for({}, always={})["client.id"] == "shop"
    assert open_log(log.uri).partitions() == 1, "the URI opens it again"
    log.close()
    path.write_text(f"sasl.password\nx={PASSWORD}")
    with pytest.raises(LogUriError, match="line 1 is not key=value"):
        open_log(f"kafka://{broker}/t?client={path}")
    with pytest.raises(LogUriError, match="No such file"):
        open_log(f"kafka://{broker}/t?client={tmp_path}/none")
