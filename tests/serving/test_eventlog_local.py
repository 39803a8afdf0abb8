"""The local log under crashes, damage, retention and a second writer."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from eventlog_world import BASE, SECOND, read_all

from serving.eventlog import LogBusy, LogError, LogUnavailable, OffsetGone, open_log
from serving.eventlog.committer import LocalProducer
from serving.eventlog.local import LocalLog

WRITER = """
import asyncio, sys
from serving.eventlog import open_log

async def main():
    log = open_log(sys.argv[1])
    producer = log.producer()
    async def one(i):
        record = b"%d:" % i + b"x" * (i * 7919 % 5000)
        offset = await producer.send(i % 2, record, i)
        print(i % 2, offset, i, flush=True)
    i = int(sys.argv[2])
    while True:
        await asyncio.gather(*(one(i + k) for k in range(20)))
        i += 20

asyncio.run(main())
"""


def start_writer(uri, first):
    return subprocess.Popen([sys.executable, "-c", WRITER, uri, str(first)], stdout=subprocess.PIPE, text=True,
                            cwd=Path(__file__).parents[2])


def test_whatever_was_acknowledged_survives_twenty_kills(tmp_path):
    uri, draw, acknowledged = f"dir:{tmp_path}/log", random.Random(0), {}
    open_log(f"{uri}?partitions=2").close()
    for life in range(20):
        writer = start_writer(uri, life * 1_000_000)
        lines = [writer.stdout.readline()]
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.read().splitlines(True)
        writer.wait()
        for line in lines:
            if line.endswith("\n"):
                partition, offset, number = map(int, line.split())
                assert (partition, offset) not in acknowledged, "an offset is given once"
                acknowledged[partition, offset] = number
    log = open_log(uri)
    log.append(0, [b"after"], 0)  # takes up the torn segments
    log.append(1, [b"after"], 0)
    reader = log.reader({0: 0, 1: 0})
    found = {(p, o): r for p, o, r in read_all(reader, log.latest(0) + log.latest(1))}
    assert len(found) == log.latest(0) + log.latest(1)
    assert len(acknowledged) > 400
    for place, number in acknowledged.items():
        assert found[place].startswith(b"%d:" % number)
    reader.close()
    log.close()


def test_a_torn_tail_is_dropped_and_writing_goes_on(tmp_path):
    log = LocalLog(tmp_path, 1)
    log.append(0, [b"a", b"b"], BASE)
    log.close()
    (segment,) = tmp_path.glob("p00000/*.log")
    whole = segment.read_bytes()
    for torn in (b"BRL1", whole[:30], whole[:-1], b"\0" * 100, b"garbage" * 50):
        segment.write_bytes(whole + torn)
        again = LocalLog(tmp_path)
        reader = again.reader({0: 0})
        assert [r for *_, r in read_all(reader, 2, 1)] == [b"a", b"b"], "readers see only what is durable"
        again.writer(0)
        assert segment.read_bytes() == whole
        reader.close()
        again.close()


def test_damage_of_acknowledged_records_is_an_error_not_a_loss(tmp_path):
    log = LocalLog(tmp_path, 1)
    for text in (b"first", b"second", b"third"):
        log.append(0, [text * 10], BASE)
    log.close()
    (segment,) = tmp_path.glob("p00000/*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(b"second")] ^= 1
    segment.write_bytes(data)
    again = LocalLog(tmp_path)
    with pytest.raises(LogError, match="damaged"):
        again.append(0, [b"x"], BASE)
    reader = again.reader({0: 0})
    assert len(reader.poll(1 << 20, 1)) == 1
    with pytest.raises(LogError, match="damaged"):
        reader.poll(1 << 20, 1)
    reader.close()
    assert bytes(data) == segment.read_bytes(), "nothing was cut off"


def test_two_writers_of_a_partition_exclude_each_other(tmp_path):
    uri = f"dir:{tmp_path}/log"
    log = open_log(f"{uri}?partitions=2")
    log.append(0, [b"a"], BASE)
    code = ("import sys\nfrom serving.eventlog import *\n"
            "try: open_log(sys.argv[1]).append(0, [b'b'], 0)\nexcept LogError as e: print(e)")
    told = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert f"pid {os.getpid()}" in told.stdout, told.stderr
    second = open_log(uri)
    assert second.append(1, [b"b"], BASE) == 0, "another partition is free"
    log.close()
    assert second.append(0, [b"c"], BASE) == 1, "and this one once it is released"
    second.close()


def test_retention_deletes_whole_segments_and_readers_are_told(tmp_path):
    log = LocalLog(tmp_path, 1, segment_bytes=2000)
    for i in range(40):
        log.append(0, [b"%04d" % i * 50], BASE + i * SECOND)
    assert len(list(tmp_path.glob("p00000/*.log"))) == 5
    early, late = log.reader({0: 0}), log.reader({0: 30})
    assert early.poll(200, 1).offset[0] == 0
    earliest = log.trim(0, 25)
    assert earliest == 24 and log.earliest(0) == earliest
    with pytest.raises(OffsetGone) as caught:
        for _ in range(40):
            early.poll(200, 0.1)
    assert (caught.value.partition, caught.value.earliest) == (0, earliest)
    early.seek({0: earliest})
    assert [o for _, o, _ in read_all(early, 40 - earliest)] == list(range(earliest, 40))
    assert [o for _, o, _ in read_all(late, 10)] == list(range(30, 40))
    with pytest.raises(OffsetGone):
        log.reader({0: 3}).poll(1000, 0.1)
    assert log.offset_at(0, BASE) == earliest
    assert log.trim(0, 10_000) < 40, "the last segment stays"
    assert log.append(0, [b"x"], BASE) == 40
    log.close()


def test_offsets_by_time_over_segments_and_index_gaps(tmp_path):
    log = LocalLog(tmp_path, 1, segment_bytes=600_000)
    times = [BASE + (i ^ 3) * SECOND for i in range(60)]  # not in order
    for t in times:
        log.append(0, [b"x" * 30_000], t)
    for t in range(BASE - SECOND, BASE + 62 * SECOND, SECOND):
        want = next((i for i, time_of in enumerate(times) if time_of >= t), 60)
        assert log.offset_at(0, t) == want
    reader = log.reader({0: 37})
    assert read_all(reader, 23)[0][1] == 37
    for index in tmp_path.glob("p00000/*.idx"):
        index.unlink()
    assert log.offset_at(0, BASE + 33 * SECOND) == next(i for i, t in enumerate(times) if t >= BASE + 33 * SECOND)
    reader.seek({0: 50})
    assert read_all(reader, 10)[0][1] == 50
    reader.close()
    log.close()


def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path):
    log = LocalLog(tmp_path, 1)
    log.append(0, [b"a"], BASE)
    writer = log.writer(0)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, writer._fd)  # the next write finds no space
    os.close(full)
    with pytest.raises(LogUnavailable, match="No space"):
        log.append(0, [b"lost"], BASE)
    assert log.append(0, [b"b"], BASE) == 1, "the writer recovers by itself"
    reader = log.reader({0: 0})
    assert [r for *_, r in read_all(reader, 2)] == [b"a", b"b"]
    reader.close()
    log.close()


def test_a_producer_with_too_much_waiting_is_busy(tmp_path):
    async def run():
        log = LocalLog(tmp_path, 1)
        producer = LocalProducer(log, max_backlog_bytes=1000)
        results = await asyncio.gather(*(producer.send(0, b"x" * 300, BASE) for _ in range(5)), return_exceptions=True)
        assert [isinstance(r, LogBusy) for r in results] == [False] * 3 + [True] * 2
        assert results[-1].retry_after_s > 0
        assert await producer.send(0, b"y" * 300, BASE) == 3
        producer.close()
        log.close()

    asyncio.run(run())


def test_a_log_of_another_version_or_none_is_refused(tmp_path):
    with pytest.raises(LogError, match="no log at"):
        LocalLog(tmp_path / "none")
    LocalLog(tmp_path / "log", 1)
    (tmp_path / "log" / "log.json").write_text('{"version": 9, "partitions": 1}')
    with pytest.raises(LogError, match="version 9"):
        LocalLog(tmp_path / "log")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogError, match="cannot open"):
        LocalLog(tmp_path / "file" / "log", 1)
