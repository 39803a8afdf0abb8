"""What every event log does, run over the local one and Kafka."""

import asyncio

import numpy as np
import pytest
from eventlog_world import BASE, SECOND, read_all

from serving.eventlog import LogError, LogUriError, OffsetGone, open_log, partition_of
from serving.eventlog.base import MAX_RECORD_BYTES


def test_records_come_back_in_order_at_the_offsets_told(log):
    assert log.partitions() == 2
    first = [log.append(0, [b"a", b"bb"], BASE), log.append(0, [b"ccc"], BASE + SECOND), log.append(1, [b"d"], BASE)]
    assert first == [0, 2, 0]
    assert [log.earliest(0), log.latest(0), log.latest(1)] == [0, 3, 1]
    reader = log.reader({0: 0, 1: 0})
    found = read_all(reader, 4)
    assert sorted(found) == [(0, 0, b"a"), (0, 1, b"bb"), (0, 2, b"ccc"), (1, 0, b"d")]
    assert [f for f in found if f[0] == 0] == sorted(f for f in found if f[0] == 0)
    assert reader.positions() == {0: 3, 1: 1} == reader.high_watermarks()
    assert len(reader.poll(1 << 20, 0.05)) == 0
    reader.close()


def test_timestamps_are_kept(log):
    log.append(0, [b"a"], BASE + 5 * SECOND)
    reader = log.reader({0: 0})
    records = reader.poll(1 << 20, 10)
    assert records.timestamp.tolist() == [BASE + 5 * SECOND]
    reader.close()


def test_an_empty_log_has_nothing_to_read(log):
    reader = log.reader({0: 0, 1: 0})
    assert len(reader.poll(1 << 20, 0.2)) == 0
    assert reader.positions() == {0: 0, 1: 0} == reader.high_watermarks()
    assert [log.earliest(0), log.latest(0), log.offset_at(0, BASE)] == [0, 0, 0]
    reader.close()


def test_a_waiting_reader_sees_what_is_written_meanwhile(log):
    reader = log.reader({0: 0, 1: 0})
    assert len(reader.poll(1 << 20, 0.05)) == 0
    log.append(1, [b"x"], BASE)
    assert read_all(reader, 1) == [(1, 0, b"x")]
    reader.close()


def test_readers_begin_and_go_on_anywhere(log):
    log.append(0, [b"%d" % i for i in range(50)], BASE)
    reader = log.reader({0: 47})
    assert [r for *_, r in read_all(reader, 3)] == [b"47", b"48", b"49"]
    reader.seek({0: 10})
    assert read_all(reader, 40)[0] == (0, 10, b"10")
    reader.seek({0: 49, 1: 0})
    assert read_all(reader, 1) == [(0, 49, b"49")]
    assert reader.positions() == {0: 50, 1: 0}
    reader.close()


def test_a_seek_drops_what_was_fetched_before(log):
    log.append(0, [b"%d" % i for i in range(2000)], BASE)
    reader = log.reader({0: 0})
    for start in (1990, 3, 1000, 1995):
        assert len(reader.poll(1, 10)) > 0
        reader.seek({0: start})
    assert [o for _, o, _ in read_all(reader, 5)] == list(range(1995, 2000))
    reader.close()


def test_only_some_partitions_are_polled_when_told_so(log):
    log.append(0, [b"a"], BASE)
    log.append(1, [b"b"], BASE)
    reader = log.reader({0: 0, 1: 0})
    reader.only([1])
    assert read_all(reader, 2, seconds=1) == [(1, 0, b"b")]
    assert reader.positions() == {0: 0, 1: 1}
    reader.only(None)
    assert read_all(reader, 1) == [(0, 0, b"a")]
    reader.close()


def test_a_poll_takes_about_what_it_may(log):
    for _ in range(20):
        log.append(0, [bytes(1000)] * 50, BASE)
    reader = log.reader({0: 0})
    assert len(reader.poll(100_000, 10)) > 0
    sizes = [len(reader.poll(100_000, 10).data) for _ in range(3)]
    assert 0 < max(sizes) <= 200_000
    reader.close()


def test_large_and_empty_records_pass_and_larger_ones_are_refused(log):
    large = bytes(np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8))
    log.append(0, [b"", large], BASE)
    reader = log.reader({0: 0})
    assert [r for *_, r in read_all(reader, 2)] == [b"", large]
    reader.close()
    with pytest.raises(ValueError, match="8,388,608 bytes"):
        log.append(0, [bytes(MAX_RECORD_BYTES + 1)], BASE)


def test_an_offset_is_found_by_time(log):
    for i in range(10):
        log.append(0, [b"%d" % i], BASE + i * SECOND)
    assert log.offset_at(0, BASE - 1) == 0
    assert log.offset_at(0, BASE + 3 * SECOND) == 3
    assert log.offset_at(0, BASE + 3 * SECOND + 1) == 4
    assert log.offset_at(0, BASE + 60 * SECOND) == 10


def test_partitions_may_become_more(log, uri):
    log.append(0, [b"a"], BASE)
    grown = open_log(uri.replace("partitions=2", "partitions=3"))
    assert grown.partitions() == 3
    assert grown.append(2, [b"b"], BASE) == 0
    reader = grown.reader({0: 0, 2: 0})
    assert sorted(read_all(reader, 2)) == [(0, 0, b"a"), (2, 0, b"b")]
    reader.close()
    grown.close()
    again = open_log(uri)  # fewer than there are: none is taken away
    assert again.partitions() == 3
    again.close()


def test_a_partition_that_is_not_there_is_refused(log):
    with pytest.raises(ValueError, match="no partition 9"):
        log.append(9, [b"a"], BASE)
    with pytest.raises(ValueError, match="no partition 9"):
        log.reader({9: 0})
    with pytest.raises(ValueError, match="no partition 9"):
        log.latest(9)


def test_a_log_that_is_not_there_says_how_to_create_it(uri):
    with pytest.raises(LogError, match="partitions=4"):
        open_log(uri.removesuffix("?partitions=2")).partitions()


def test_an_offset_beyond_the_end_is_refused(log):
    log.append(0, [b"a"], BASE)
    log.append(1, [b"b"], BASE)
    reader = log.reader({0: 5, 1: 0})
    found = []
    with pytest.raises(LogError, match="beyond the end") as caught:
        for _ in range(100):
            records = reader.poll(1 << 20, 0.1)
            found += records.partition.tolist()
    assert not isinstance(caught.value, OffsetGone)
    with pytest.raises(LogError, match="beyond the end"):
        reader.poll(1 << 20, 0.1)
    reader.only([1])
    found += reader.poll(1 << 20, 0.5).partition.tolist()
    assert found == [1], "the other partition is read all the same"
    reader.only(None)
    reader.seek({0: 0})
    assert read_all(reader, 1) == [(0, 0, b"a")]
    reader.close()


def test_many_sends_of_a_loop_are_all_told_their_offset(log):
    async def run():
        producer = log.producer()
        sent = [producer.send(i % 2, b"%d" % i, BASE + i * 1000) for i in range(2000)]
        offsets = await asyncio.gather(*sent)
        await producer.flush()
        assert producer.backlog() == 0
        with pytest.raises(ValueError, match="no partition"):
            await producer.send(7, b"x", BASE)
        with pytest.raises(ValueError, match="at most"):
            await producer.send(0, bytes(MAX_RECORD_BYTES + 1), BASE)
        producer.close()
        with pytest.raises(LogError, match="closed"):
            await producer.send(0, b"x", BASE)
        return offsets

    offsets = asyncio.run(run())
    reader = log.reader({0: 0, 1: 0})
    found = read_all(reader, 2000)
    reader.close()
    assert {(p, o): r for p, o, r in found} == {(i % 2, o): b"%d" % i for i, o in enumerate(offsets)}
    assert len(found) == 2000


def test_records_of_several_partitions_are_sent_together(log):
    async def run():
        producer = log.producer()
        assert await producer.send_all([], BASE) == []
        with pytest.raises(ValueError, match="no partition"):
            await producer.send_all([(0, b"x"), (7, b"x")], BASE)
        rounds = [producer.send_all([(p, b"%d-%d-%d" % (n, p, i)) for i in range(3) for p in (1, 0)], BASE) for n in range(20)]
        offsets = await asyncio.gather(*rounds)
        producer.close()
        return offsets

    offsets = asyncio.run(run())
    reader = log.reader({0: 0, 1: 0})
    found = {(p, o): r for p, o, r in read_all(reader, 120)}
    reader.close()
    assert found == {(p, offsets[n][2 * i + 1 - p]): b"%d-%d-%d" % (n, p, i)
                     for n in range(20) for i in range(3) for p in (0, 1)}
    assert all(o[p] < o[p + 2] < o[p + 4] for o in offsets for p in (0, 1)), "in their order"


def test_flush_waits_for_what_was_sent(log):
    async def run():
        producer = log.producer()
        tasks = [asyncio.create_task(producer.send(0, b"x", BASE)) for _ in range(100)]
        await asyncio.sleep(0)
        await producer.flush()
        await asyncio.sleep(0)
        assert all(t.done() for t in tasks)
        producer.close()

    asyncio.run(run())
    assert log.latest(0) == 100


def test_a_cancelled_sender_harms_nobody(log):
    async def run():
        producer = log.producer()
        lost = asyncio.create_task(producer.send(0, b"a", BASE))
        await asyncio.sleep(0)
        lost.cancel()
        offset = await producer.send(0, b"b", BASE)
        producer.close()
        return offset

    assert asyncio.run(run()) in (0, 1)


@pytest.mark.parametrize("bad", [
    "", "dir:", "dir", "file:/x", "kafka:x", "kafka://h:1", "kafka://h:1/", "kafka://h:1/a/b", "kafka:///t",
    "dir:/x?partitions=x", "dir:/x?partitions=0", "dir:/x?other=1", "kafka://user:pw@h/t", "kafka://h/t?partitions=99999"])
def test_a_uri_that_is_none_is_refused(bad):
    with pytest.raises(LogUriError) as caught:
        open_log(bad)
    assert "pw" not in str(caught.value)


def test_a_user_has_one_partition_and_all_are_used():
    found = [partition_of(f"u{i}", 5) for i in range(1000)]
    assert found == [partition_of(f"u{i}", 5) for i in range(1000)]
    assert np.bincount(found).min() > 150
